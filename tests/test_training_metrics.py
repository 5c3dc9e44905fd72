"""What a step reports in a method's own logits, and how the optimiser is made."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mi_align.critics import Candidates
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, fresh_llama, init_decoder
from mi_align.models.families import family_of, llama_json
from mi_align.training import merge, summarise
from mi_align.training.config import OptimiserConfig
from mi_align.training.metrics import method_metrics
from mi_align.training.optimiser import decays, make_optimiser, rate_schedule

BETA = 0.5


def candidates(rng: np.random.Generator, batch: int = 5, rejected: int = 2) -> Candidates:
    policy, reference = (jnp.asarray(-rng.uniform(0, 3, (batch, 1 + rejected)).astype(np.float32)) for _ in range(2))
    mask = np.ones((batch, 1 + rejected), bool)
    mask[1, 2] = mask[3, 0] = False
    return Candidates.from_sequences(policy, reference, candidate_mask=jnp.asarray(mask))


def test_rewards_and_bounds_are_those_of_the_kept_candidates(rng: np.random.Generator) -> None:
    given = candidates(rng)
    numbers = summarise(method_metrics(METHODS["dpo"].configure(beta=BETA), given))
    scores = BETA * np.asarray(given.policy - given.reference, np.float64)[..., 0]
    lists = [
        [s for s, kept in zip(row, there, strict=True) if kept]
        for row, there in zip(scores, np.asarray(given.candidate_mask), strict=True)
    ]
    lists = [row for row, there in zip(lists, np.asarray(given.candidate_mask)[:, 0], strict=True) if there]
    chosen, rejected = [row[0] for row in lists], [s for row in lists for s in row[1:]]
    margins = [row[0] - s for row in lists for s in row[1:]]
    partition = np.mean([np.mean(np.exp(row)) for row in lists])
    wanted = {
        "rewards/chosen": np.mean(chosen),
        "rewards/rejected": np.mean(rejected),
        "rewards/margins": np.mean(margins),
        "rewards/accuracies": np.mean(np.array(margins) > 0),
        "mi/info_nce": np.mean([row[0] - np.log(np.mean(np.exp(row))) for row in lists]),
        "mi/donsker_varadhan": np.mean(chosen) - np.log(partition),
        "mi/jensen_shannon": np.log(4)
        + np.mean([-np.log1p(np.exp(-row[0])) - np.mean(np.log1p(np.exp(row))) for row in lists]),
    }
    assert numbers == pytest.approx(wanted, rel=1e-5)


def test_parts_of_a_batch_merge_into_the_whole_also_where_a_logarithm_is_taken(rng: np.random.Generator) -> None:
    method, given = METHODS["mio"].configure(beta=BETA), candidates(rng)
    first, second = (jax.tree.map(lambda x, part=part: x[part], given) for part in (slice(0, 2), slice(2, 5)))
    merged = summarise(merge(method_metrics(method, first), method_metrics(method, second)))
    assert merged == pytest.approx(summarise(method_metrics(method, given)), rel=1e-5)


def test_the_bounds_order_as_the_ledger_says(rng: np.random.Generator) -> None:
    """A batch's Donsker–Varadhan is at most InfoNCE (14), and Jensen–Shannon at most that of log 2σ(s) (5)."""
    for scale in (0.1, 1.0, 10.0):
        given = candidates(rng, 50)
        given = given._replace(policy=given.policy * scale)
        numbers = summarise(method_metrics(METHODS["dpo"].configure(beta=BETA), given))
        assert numbers["mi/donsker_varadhan"] <= numbers["mi/info_nce"] + 1e-6
        assert numbers["mi/info_nce"] <= np.log(3) + 1e-6
        assert numbers["mi/jensen_shannon"] <= np.log(4)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_on_a_line_and_falls_as_asked(schedule) -> None:
    rate = rate_schedule(OptimiserConfig(rate=2.0, schedule=schedule, warmup=0.2), 50)
    assert [float(rate(n)) for n in range(11)] == pytest.approx([0.2 * n for n in range(1, 11)] + [2.0], rel=1e-6)
    middle = {"constant": 2.0, "linear": 1.0, "cosine": 1.0}[schedule]
    assert float(rate(30)) == pytest.approx(middle, rel=1e-6)
    assert float(rate(50)) == pytest.approx(2.0 if schedule == "constant" else 0.0, abs=1e-6)
    assert float(rate_schedule(OptimiserConfig(rate=2.0, schedule=schedule, warmup=0), 50)(0)) == 2.0


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_matrices_decay_and_vectors_do_not(name) -> None:
    _, params = init_decoder(
        DecoderConfig(vocab_size=31, width=16, layers=2, heads=2, qkv_bias=True), jax.random.key(0)
    )
    params = jax.tree.map(jnp.ones_like, params)
    config = OptimiserConfig(name=name, rate=0.1, schedule="constant", warmup=0, weight_decay=0.5)
    optimiser = make_optimiser(config, 10)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    after = optax.apply_updates(params, updates)
    for decayed, x in zip(jax.tree.leaves(decays(params)), jax.tree.leaves(after), strict=True):
        assert bool(jnp.all(x < 1)) == decayed and bool(jnp.all(x == 1)) != decayed
    assert decays(params)["embedding"].get_value() is True
    assert decays(params)["blocks"]["attention_norm"]["scale"].get_value() is False


def test_a_fresh_llama_is_one_and_nothing_else_is() -> None:
    config = DecoderConfig(vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, qkv_bias=True, out_bias=True)
    source = llama_json(config)
    read = family_of(source).config(source)
    assert dataclasses.replace(read, head_features=None, mlp_width=None) == config
    for change, name in [
        ({"norm": "layer"}, "`norm`"),
        ({"qkv_bias": True}, "`out_bias`|`qkv_bias`"),
        ({"window": 4}, "`window`"),
    ]:
        with pytest.raises(ValueError, match=f"no Llama has this .*({name})"):
            fresh_llama(DecoderConfig(vocab_size=31, width=16, heads=4, **change), jax.random.key(0))
