"""L2–L4: zeros that are exactly zero at the start, other routes to the same numbers, and the rounding of log-ratios."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mi_align import critics
from mi_align.critics import Candidates
from mi_align.equivalences.claim import Kind
from mi_align.equivalences.language_model.certificate import SLIP, ModelCertificate
from mi_align.equivalences.language_model.setting import Params, Setting, TokenLogps, quickly_compiled
from mi_align.methods import METHODS, Method
from mi_align.methods.arrangements import one_against_rest, pair, ranking

__all__ = ["certify_rounding", "certify_routes", "certify_start", "first_pair"]

#: Relative to log-probabilities and gradient trees: another route adds up the same numbers in another order, in each
#: layer.
ROUTE_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

#: Critics that see of the log-probabilities nothing but their differences.
OF_LOG_RATIOS = (
    critics.implicit_reward,
    critics.log_ratio,
    critics.mean_log_ratio,
    critics.length_normalised_reward,
    critics.forward_kl_reward,
    critics.jensen_shannon_reward,
    critics.alpha_reward,
    critics.displacement_penalised_reward,
    critics.length_desensitised_reward,
    critics.length_regularised_reward,
)

Logps = Float[Array, "batch candidates time"]


def first_pair(candidates: Candidates) -> Candidates:
    """The chosen response and the first rejected one."""
    return jax.tree.map(lambda x: x[:, :2], candidates)


def certify_start(
    setting: Setting, dtype: str, *, policy: Logps, moved: Logps | None, reference: Logps
) -> list[ModelCertificate]:
    """L2: before the first step no log-ratio differs from 0, and no loss from its value at 0, in any bit.

    Args:
      setting: the model and the batch.
      dtype: the precision.
      policy: the policy's log-probabilities where it has the reference's parameters, out of the program that
        differentiates them.
      moved: the same with parameters 1e-6 too large, for the twins.
      reference: the reference's log-probabilities.
    """

    @quickly_compiled
    def losses(policy: Logps, reference: Logps) -> dict[str, Array]:
        compared = setting.candidates(policy, reference)
        rows = {row.name: row(compared if _takes_lists(row) else first_pair(compared)) for row in _rows()}
        return {"log-ratios": critics.log_ratio(compared), **rows}

    at_zero = losses(jnp.zeros_like(reference), jnp.zeros_like(reference))

    def worst(policy: Logps, *, of_losses: bool) -> float:
        came = losses(policy, reference)
        names = [name for name in came if (name != "log-ratios") == of_losses]
        return max(float(jnp.max(jnp.abs(came[name] - at_zero[name]))) for name in names)

    words = [
        ("L2a", "before the first step every log-ratio is exactly 0", r"\log\pi_\theta - \log\pi_{\mathrm{ref}} = 0"),
        (
            "L2b",
            f"and the losses of {len(_rows())} methods are exactly those at 0",
            r"\mathcal L_\theta = \mathcal L(0)",
        ),
    ]
    return [
        ModelCertificate(
            id=identifier,
            title=title,
            statement=statement + r"\quad\text{at } \theta = \theta_{\mathrm{ref}}\text{, to the last bit}",
            source="holds as policy and reference are scored by one program",
            dtype=dtype,
            error=worst(policy, of_losses=identifier == "L2b"),
            tolerance=0.0,
            twin_error=None if moved is None else worst(moved, of_losses=identifier == "L2b"),
            slip="the policy's parameters",
        )
        for identifier, title, statement in words
    ]


def _rows() -> list[Method]:
    """The methods that see of the log-probabilities nothing but their differences."""
    plain = [row for row in METHODS.values() if row.regulariser is None and row.weight is None]
    return [row for row in plain if row.critic in OF_LOG_RATIOS and row.arrange in (pair, one_against_rest, ranking)]


def _takes_lists(row: Method) -> bool:
    return row.arrange is not pair


def certify_routes(setting: Setting, dtype: str) -> list[ModelCertificate]:
    """L3: log-probabilities, and the gradient of their sum, through each of the setting's routes against `logps`."""

    @quickly_compiled
    def compare(policy: Params) -> list[tuple[Array, Array, Array]]:
        def values_and_gradient(route: TokenLogps) -> tuple[Array, Params]:
            values, pullback = jax.vjp(route, policy)
            return values, pullback(jnp.ones_like(values))[0]

        wanted = values_and_gradient(setting.logps)
        came = [values_and_gradient(route) for route in setting.routes.values()]
        return [
            (_distance(values, wanted[0]), _distance(gradient, wanted[1]), _distance(SLIP * values, wanted[0]))
            for values, gradient in came
        ]

    measured = jax.device_get(compare(setting.policy)) if setting.routes else []
    return [
        ModelCertificate(
            id="L3",
            title=f"log-probabilities {name} are the same",
            statement=r"\log\pi_\theta(y \mid x)\ \text{and its gradient do not depend on the route}",
            source="holds by construction",
            dtype=dtype,
            value=float(value),
            gradient=float(gradient),
            error=float(max(value, gradient)),
            tolerance=ROUTE_TOLERANCE[dtype],
            twin_error=float(twin) if dtype == "float64" else None,
            slip="the route's log-probabilities",
        )
        for name, (value, gradient, twin) in zip(setting.routes, measured, strict=True)
    ]


def _distance(tree: Params, wanted: Params) -> Float[Array, ""]:
    """‖tree − wanted‖ / ‖wanted‖ over all leaves."""
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True))
    difference = sum(jnp.sum(jnp.square(a - b)) for a, b in pairs)
    return jnp.sqrt(difference / sum(jnp.sum(jnp.square(b)) for _, b in pairs))


def certify_rounding(
    setting: Setting, *, time: int = 1024, difference: float = 1e-4, gain: float = 1e3
) -> ModelCertificate:
    """L4: the batch's own token log-probabilities, strung into long responses, under a policy close to its reference.

    Both ways are measured against the same float32 tokens summed in float64.

    Args:
      setting: a model and a batch.
      time: tokens of a response.
      difference: root mean square of the log-ratio of a token, in nats.
      gain: how many times more exact a sum of differences is claimed to be, at least.
    """
    single = setting.cast(jnp.dtype("float32"))
    kept = np.asarray(setting.response_mask) & np.asarray(setting.candidate_mask)[..., None]
    logps = jax.jit(single.logps)
    reference, moved = (np.asarray(logps(params))[kept] for params in (single.reference, single.policy))
    step = (moved - reference) * (difference / np.sqrt(np.mean(np.square(moved - reference))))
    shape = (1, max(8, -(-len(step) // time)), time)
    policy, reference = np.resize(reference + step, shape), np.resize(reference, shape)
    exact = np.sum(policy.astype(np.float64) - reference.astype(np.float64), axis=-1)
    ours = np.asarray(critics.log_ratio(Candidates(jnp.asarray(policy), jnp.asarray(reference))))
    other = np.asarray(jnp.sum(jnp.asarray(policy), -1) - jnp.sum(jnp.asarray(reference), -1))
    small, large = (float(np.sqrt(np.mean(np.square(x - exact)))) for x in (ours, other))
    return ModelCertificate(
        id="L4",
        title="a sum of differences is far more exact than a difference of sums",
        statement=rf"{gain:g}\,\Bigl|\mathrm{{fl}}\sum_t(\ell_t - \ell^{{\mathrm{{ref}}}}_t) - \rho\Bigr| \le "
        r"\Bigl|\mathrm{fl}\sum_t\ell_t - \mathrm{fl}\sum_t\ell^{\mathrm{ref}}_t - \rho\Bigr|",
        source="measured here",
        kind=Kind.INEQUALITY,
        dtype="float32",
        error=max(0.0, gain * small - large) / large,
        tolerance=0.0,
        twin_error=max(0.0, gain * large - small) / large,
        slip="the two ways are exchanged",
        remark=f"{time} tokens, log-ratios of {difference:g} each: errors of {small:.1e} and {large:.1e} nats",
    )
