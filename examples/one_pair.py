"""One preference pair from two texts to a gradient; each arrow is one public call.

text ─data▶ tokens ─models▶ hidden ─logprobs▶ log π ─critics▶ logits ─objectives▶ loss ─training▶ new parameters

    python examples/one_pair.py
"""

import jax
import jax.numpy as jnp
import optax

from mi_align.critics import implicit_reward
from mi_align.data import ByteTokenizer, Preference, encode_preferences
from mi_align.logprobs import token_logps
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, count_parameters, hidden_states, init_decoder, vocabulary_matrix
from mi_align.objectives import bradley_terry_loss, donsker_varadhan_bound, info_nce_loss
from mi_align.training import candidates, init_state, preference_loss, scorer, summarise, train_step


def show(arrow, what):
    """One line an arrow: where it leads, and what is found there."""
    print(f"{arrow:<18} {what}")


def numbers(values):
    """Three decimals each; a zero that is exact is written 0."""
    return " ".join(f"{x:.3f}" if x else "0" for x in values)


# text → data: which answer was preferred
preference = Preference(prompt="37+48=", chosen="85", rejected=("75",))
show("text → data", f"{preference.prompt} {preference.chosen}, and not {', '.join(preference.rejected)}")

# data → tokens: bytes; candidate 0 is the chosen one, and a mask says where its response begins and ends
tokenizer = ByteTokenizer()
batch, _ = encode_preferences([preference], tokenizer)
tokens, response = jnp.asarray(batch.tokens), jnp.asarray(batch.response_mask)
show("data → tokens", f"{tokens.shape} rejected: {' '.join(map(str, batch.tokens[0, 1]))}")

# tokens → hidden: a small decoder, freshly drawn; a structure and a pytree of parameters
config = DecoderConfig(vocab_size=tokenizer.vocab_size, width=32, layers=1)
graphdef, params = init_decoder(config, jax.random.key(0))
hidden = hidden_states(graphdef, params, tokens)
show("tokens → hidden", f"{hidden.shape} from {count_parameters(params):,} parameters")

# hidden → log π: each state is asked about the token that follows it
vocabulary = vocabulary_matrix(graphdef, params)
logps = token_logps(hidden[..., :-1, :], vocabulary, tokens[..., 1:], where=response[..., 1:])
show("hidden → log π", f"{logps.shape} chosen 8, 5, end: {numbers(logps[0, 0, 6:])}")

# log π → logits: the implicit reward β (log π − log π_ref); training begins at the reference, hence at 0
beta = 0.5
logits = implicit_reward(candidates(batch, policy=logps, reference=logps), beta=beta)
show("log π → logits", f"{logits.shape} chosen, rejected: {numbers(logits[0])}")

# logits → loss: one number a pair, and how it pulls on the logits
loss = bradley_terry_loss(logits[:, 0], logits[:, 1])
pull = jax.grad(bradley_terry_loss, argnums=(0, 1))(*logits[0])
show("logits → loss", f"{loss.shape} log 2 = {numbers(loss)}; slope in chosen, rejected: {numbers(pull)}")

# loss → new parameters: all that came after the tokens is one function of the parameters, and a step descends it
score = jax.jit(scorer(graphdef))
optimiser = optax.sgd(0.003)
step = jax.jit(train_step(preference_loss(score, METHODS["dpo"].configure(beta=beta)), optimiser))
state, metrics = step(init_state(params, optimiser), (batch, logps))
seen = summarise(metrics)
show("loss → training", f"step {state.step}: loss {seen['loss']:.3f}, norm of the gradient {seen['grad_norm']:.3f}")

# the same arrows from the new parameters: the chosen answer has gained on the rejected one
positive, negative = implicit_reward(candidates(batch, score(state.params, batch), reference=logps), beta=beta)[0]
show("new logits", f"chosen, rejected: {numbers([positive, negative])}")

# and the point of it all: three objectives, one number
dpo = bradley_terry_loss(positive, negative)
info_nce = info_nce_loss(positive, negative[None])
mixture = jnp.stack([positive, negative])  # the marginal of one pair: half chosen, half rejected
from_dv = jnp.log(2) - donsker_varadhan_bound(positive[None], mixture)
show("new loss", f"DPO {dpo:.5f} = InfoNCE {info_nce:.5f} = log 2 − DV {from_dv:.5f}")
