"""At the first step the policy is its reference: every log-ratio is 0 to the last bit, in half precision too."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.data import ByteTokenizer, arithmetic_preferences, encode_preferences
from mi_align.models import DecoderConfig, init_decoder
from mi_align.training import ROUNDED, scorer

GEMMA = {"post_norms": True, "window": 8, "attention_soft_cap": 50.0, "logit_soft_cap": 30.0, "embedding_scale": 8.0}
GPT2 = {"norm": "layer", "gated": False, "learned_positions": 64, "qkv_bias": True, "out_bias": True, "mlp_bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2, "tied_head": False},
    "layers, remembered by their inputs": {"layers": 6, "remat": "layers"},
    "products kept": {"remat": "dots"},
    "gemma": GEMMA,
    "gpt2": GPT2,
}


def furthest(kind: str, dtype: str | None, *, cached: bool, options: dict[str, Any] | None) -> float:
    """The largest log-ratio of a response between a policy, differentiated, and itself as its reference."""
    graphdef, params = init_decoder(DecoderConfig(vocab_size=258, **KINDS[kind]), jax.random.key(0))
    batch, _ = encode_preferences(arithmetic_preferences(8, negatives=1, seed=0), ByteTokenizer())
    logps = scorer(graphdef, compute_dtype=dtype)
    reference = jax.jit(logps, compiler_options=options)(params, batch) if cached else None

    def loss(policy: Any, anchor: Any, reference: Any) -> tuple[jax.Array, jax.Array]:
        known = logps(anchor, batch) if reference is None else reference
        ratio = (logps(policy, batch) - known).sum(-1)
        return jax.nn.softplus(ratio[:, 1] - ratio[:, 0]).mean(), jnp.abs(ratio).max()

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)
    (_, ratio), slope = step(params, params, reference)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slope)) > 0
    return float(ratio)


CASES = [(kind, dtype, cached) for kind in KINDS for dtype in (None, "bfloat16") for cached in (False, True)]


@pytest.mark.parametrize(
    ("kind", "dtype", "cached"),
    [case if case[:2] == ("llama", "bfloat16") else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_the_first_log_ratios_are_zero_to_the_last_bit(kind: str, dtype: str | None, cached: bool) -> None:
    # An ulp of a token's: the loop over tiles of a soft-capped head is compiled otherwise beside another.
    allowed = 1e-6 if "logit_soft_cap" in KINDS[kind] and dtype is None else 0.0
    assert furthest(kind, dtype, cached=cached, options=ROUNDED) <= allowed


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="jaxlib 0.12 rounds here without being told")
@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_excess_precision_they_are_not(cached: bool) -> None:
    """Otherwise the test above would say nothing."""
    assert furthest("llama", "bfloat16", cached=cached, options=None) > 1e-3


@pytest.mark.slow
def test_kept_logits_leave_the_gradient_as_it_is_to_rounding() -> None:
    graphdef, params = init_decoder(DecoderConfig(vocab_size=258, width=32), jax.random.key(0))
    batch, _ = encode_preferences(arithmetic_preferences(2, negatives=1, seed=0), ByteTokenizer())

    def slope(budget: int | None) -> np.ndarray:
        logps = scorer(graphdef, memory_budget=budget)
        found = jax.jit(jax.grad(lambda p: logps(p, batch).sum()))(params)
        return np.concatenate([x.ravel() for x in jax.tree.leaves(found)])

    plain = slope(None)
    np.testing.assert_allclose(slope(2**30), plain, atol=1e-5 * np.abs(plain).max(), rtol=0)
