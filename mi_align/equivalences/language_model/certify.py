"""How claims on a language model are certified: every loss and every gradient of the parameters, on one batch.

A loss's gradient is the pullback of its derivative with respect to the log-probabilities. All losses of all claims
share one forward pass and one compiled program; their pullbacks run one after the other, in the memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.equivalences.language_model.certificate import SLIP, TOLERANCE, ModelCertificate
from mi_align.equivalences.language_model.exactness import certify_rounding, certify_routes, certify_start, first_pair
from mi_align.equivalences.language_model.identities import IDENTITIES, Losses, LossIdentity
from mi_align.equivalences.language_model.setting import Params, Setting, quickly_compiled

__all__ = ["certify_model"]


def certify_model(
    setting: Setting, *, dtype: str = "float32", identities: Sequence[LossIdentity] = IDENTITIES
) -> tuple[ModelCertificate, ...]:
    """Every claim on a language model, in one precision; perturbed twins are run in float64.

    Args:
      setting: the model and the batch. Its parameters are cast to `dtype`.
      dtype: `"float32"` or `"float64"`.
      identities: the L1 claims to certify; a user's own may be among them.

    Returns:
      Certificates of L1 (`identities`), L2 (the start), L3 (the setting's routes) and, in float32, L4 (rounding).
    """
    if dtype not in TOLERANCE:
        raise checks.unknown_name("precision", dtype, TOLERANCE)
    with jax.enable_x64(dtype == "float64"):
        typed = setting.cast(jnp.dtype(dtype))
        certificates = [*_certify_in_common(typed, identities, dtype), *certify_routes(typed, dtype)]
    if dtype == "float32":
        certificates.append(certify_rounding(setting))
    return tuple(certificates)


class _Measured(NamedTuple):
    """Distances of right from left sides (the last axis: the claim, then its twin if run), and log-probabilities."""

    value: Float[Array, "claims factors"]
    gradient: Float[Array, "claims factors"]
    logps: Float[Array, "batch candidates time"]


def _certify_in_common(setting: Setting, identities: Sequence[LossIdentity], dtype: str) -> list[ModelCertificate]:
    """L1 and L2, which one compiled program measures at several parameters."""
    twins = dtype == "float64"
    compare = _comparison(setting, identities, jnp.array([1.0, SLIP] if twins else [1.0]))
    # Policy and reference are scored by one program: this is why the start is exactly 0.
    reference = compare(setting.reference, jnp.zeros(setting.response_mask.shape)).logps
    anywhere, at_reference = (compare(params, reference) for params in (setting.policy, setting.reference))
    moved = compare(jax.tree.map(lambda x: SLIP * x, setting.reference), reference).logps if twins else None
    return [
        *_of_identities(identities, jax.device_get(anywhere), jax.device_get(at_reference), dtype),
        *certify_start(setting, dtype, policy=at_reference.logps, moved=moved, reference=reference),
    ]


def _of_identities(
    identities: Sequence[LossIdentity], anywhere: _Measured, at_reference: _Measured, dtype: str
) -> list[ModelCertificate]:
    certificates = []
    for i, claim in enumerate(identities):
        measured = at_reference if claim.at_reference else anywhere
        value, gradient = measured.value[i].tolist(), measured.gradient[i].tolist()
        errors = [max(pair) for pair in zip(value, gradient, strict=True)] if claim.values else gradient
        certificates.append(
            ModelCertificate(
                id=claim.id,
                title=claim.title,
                statement=claim.statement,
                source=claim.source,
                dtype=dtype,
                value=value[0] if claim.values else None,
                gradient=gradient[0],
                error=errors[0],
                tolerance=TOLERANCE[dtype],
                twin_error=errors[1] if len(errors) > 1 else None,
                slip=claim.slip,
            )
        )
    return certificates


def _comparison(
    setting: Setting, identities: Sequence[LossIdentity], factors: Float[Array, "factors"]
) -> Callable[[Params, Float[Array, "batch candidates time"]], _Measured]:
    """(policy, the reference's log-probabilities) -> how far the right sides are from the left, in value and gradient.

    A loss that several claims have on their left is evaluated once.
    """
    lefts = list(dict.fromkeys((claim.left, claim.pair) for claim in identities))
    place = np.array([lefts.index((claim.left, claim.pair)) for claim in identities])

    @quickly_compiled
    def compare(policy: Params, reference: Float[Array, "batch candidates time"]) -> _Measured:
        logps, pullback = jax.vjp(setting.logps, policy)

        def slope(losses: Losses, pair: bool) -> tuple[Array, Array]:
            """The mean loss and its derivative with respect to the log-probabilities."""

            def mean(logps: Array) -> Array:
                compared = setting.candidates(logps, reference)
                return jnp.mean(losses(first_pair(compared) if pair else compared))

            return jax.value_and_grad(mean)(logps)

        def right(claim: LossIdentity) -> tuple[Array, Array]:
            return jax.vmap(lambda factor: slope(lambda c: claim.right(c, factor), claim.pair))(factors)

        rights = [right(claim) for claim in identities]
        slopes = [jax.tree.map(lambda x: x[None], slope(losses, pair)) for losses, pair in lefts] + rights
        values, logp_slopes = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *slopes)
        trees = values, jax.lax.map(lambda x: pullback(x)[0], logp_slopes)
        wanted = jax.tree.map(lambda x: x[place], trees)
        came = jax.tree.map(lambda x: x[len(lefts) :].reshape(len(identities), len(factors), *x.shape[1:]), trees)
        return _Measured(
            value=_distance(came[0], wanted[0]),
            gradient=_distance(came[1], wanted[1]),
            logps=logps,
        )

    return compare


def _distance(trees: Params, wanted: Params) -> Float[Array, "claims factors"]:
    """‖tree − wanted‖ / ‖wanted‖, where leaves are `[claims, factors, …]` and wanted ones `[claims, …]`."""

    def squares(leaf: Array) -> Array:
        return jnp.sum(jnp.square(leaf).reshape(*leaf.shape[:2], -1), axis=-1)

    pairs = [(x, y[:, None]) for x, y in zip(jax.tree.leaves(trees), jax.tree.leaves(wanted), strict=True)]
    return jnp.sqrt(sum(squares(x - y) for x, y in pairs) / sum(squares(y) for _, y in pairs))
