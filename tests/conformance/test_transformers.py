"""Decoders beside those of `transformers` (`make conformance` installs it): the same weights, logits and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.models import generate, hidden_states, load_pretrained, response_logps, save_pretrained, vocabulary_matrix

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: A window shorter than the text, caps that bend, heads whose features are no quotient.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": STRETCHED}),
    "llama, biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 12},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Randomly drawn models of theirs, biases and norms too, and where they were saved."""
    made = {}
    for name, (kind, changes) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**(SMALL | changes))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        made[name] = model, folder
    return made


@every_model
def test_logits_and_log_probabilities_agree(name: str, folders: dict) -> None:
    theirs, folder = folders[name]
    tokens = np.random.default_rng(0).integers(3, 97, (2, 23))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits
    with jax.default_matmul_precision("highest"):
        ours = load_pretrained(folder)
        z = hidden_states(ours.graphdef, ours.params, tokens) @ vocabulary_matrix(ours.graphdef, ours.params).T
        cap = ours.config.logit_soft_cap
        z = z if cap is None else cap * jnp.tanh(z / cap)
        logps = response_logps(ours.graphdef, ours.params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(z, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    theirs_logps = torch.log_softmax(wanted[:, :-1], -1).gather(-1, torch.tensor(tokens)[:, 1:, None])[..., 0]
    np.testing.assert_allclose(logps, theirs_logps, rtol=0, atol=2e-5 * float(theirs_logps.abs().max()))


@every_model
def test_a_folder_of_ours_is_opened_by_theirs_bit_by_bit(name: str, folders: dict, tmp_path: Path) -> None:
    theirs, folder = folders[name]
    save_pretrained(load_pretrained(folder), tmp_path, shard_bytes=20_000)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    pairs = zip(theirs.state_dict().items(), back.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@every_model
def test_the_likeliest_tokens_are_theirs(name: str, folders: dict) -> None:
    theirs, folder = folders[name]
    rng, lengths = np.random.default_rng(1), np.array([9, 4, 7])
    prompts = rng.integers(3, 97, (3, 9))
    with jax.default_matmul_precision("highest"):
        ours = load_pretrained(folder)
        came = generate(
            ours.graphdef, ours.params, prompts, lengths, jax.random.key(0), max_new=12, temperature=0.0, stop=(2,)
        )
    for row, length in enumerate(lengths):
        prompt = torch.tensor(prompts[row : row + 1, :length])
        wanted = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
        wanted = wanted[0, length:].numpy()
        np.testing.assert_array_equal(np.asarray(came.tokens)[row, 0, : len(wanted)], wanted)
        assert came.mask[row, 0].sum() == len(wanted)
