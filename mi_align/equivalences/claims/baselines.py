"""Ledger 3: a baseline in the place of the partition, in the bounds NWJ and TUBA, and what it costs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.objectives import nwj_bound, tuba_bound

__all__ = ["CLAIMS"]

_OFF = 1 + 1e-6
_NWJ = "Nguyen, Wainwright & Jordan 2010 (arXiv 0809.0853); Poole et al. 2019 (arXiv 1905.06922), eq. 6"
_TUBA = "Poole et al. 2019 (arXiv 1905.06922), eq. 5"


def _near_normalised(key: PRNGKeyArray) -> Inputs:
    """Critics with Z = e^k, where the shift k is 0 one time in seven."""
    x = finite.draw(key)
    return {**x, "T": x["T"] - finite.log_partition(x) + x["shift"]}


def _nwj(x: Inputs) -> Array:
    """1 + E_p T − E_q e^T by the library's bound, which writes T for T + 1."""
    return finite.expected(nwj_bound, {**x, "T": x["T"] + 1})


def _tuba(x: Inputs, log_baseline: Array) -> Array:
    return finite.expected(tuba_bound, x, log_baseline=log_baseline)


def _with_baseline(x: Inputs, log_c: Array | float, factor: float = 1.0) -> Array:
    """E_p T − Z/c − log c + 1, written out; the c that divides may be off by a factor."""
    return finite.laws(x)[0] @ x["T"] - jnp.exp(finite.log_partition(x) - log_c) / factor - log_c + 1


def _overshoot(x: Inputs, factor: float = 1.0) -> Array:
    """Z − 1 − log Z; the Z under the logarithm may be off by a factor."""
    log_z = finite.log_partition(x)
    return jnp.exp(log_z) - 1 - log_z - jnp.log(factor)


def _dv(x: Inputs, factor: float = 1.0) -> Array:
    """E_p T − log Z; Z may be off by a factor."""
    return finite.dv(x) - jnp.log(factor)


def _best(x: Inputs) -> Array:
    """TUBA with the best critic moved by the shift, and the baseline 1."""
    return _tuba(finite.with_best_critic(x), jnp.zeros_like(x["shift"]))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="3a",
        title="NWJ falls short of Donsker–Varadhan by Z − 1 − log Z",
        statement=r"I_{\mathrm{DV}}(T) - I_{\mathrm{NWJ}}(T) = Z - 1 - \log Z, \quad Z = \mathbb{E}_q e^T,"
        r"\ I_{\mathrm{NWJ}}(T) = 1 + \mathbb{E}_p T - Z",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: finite.dv(x) - _nwj(x),
        right=_overshoot,
        twin=lambda x: _overshoot(x, _OFF),
        slip="the Z under the logarithm multiplied by 1 + 1e-6",
        source=_NWJ,
    ),
    Claim(
        id="3b",
        title="NWJ lies below Donsker–Varadhan, and meets it where Z = 1",
        statement=r"1 + \mathbb{E}_p T - \mathbb{E}_q e^T \le \mathbb{E}_p T - \log\mathbb{E}_q e^T",
        kind=Kind.INEQUALITY,
        draw=_near_normalised,
        left=_nwj,
        right=_dv,
        twin=lambda x: _dv(x, _OFF),
        slip="the Z of Donsker–Varadhan multiplied by 1 + 1e-6",
        source=_NWJ,
    ),
    Claim(
        id="3c",
        title="TUBA puts a baseline in the place of the partition",
        statement=r"I_{\mathrm{TUBA}}(T; c) = 1 + \mathbb{E}_p\left[T - \log c\right] - \mathbb{E}_q\left[e^T/c\right]",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: _tuba(x, x["shift"]),
        right=lambda x: _with_baseline(x, x["shift"]),
        twin=lambda x: _with_baseline(x, x["shift"], _OFF),
        slip="the c that divides multiplied by 1 + 1e-6",
        source=_TUBA,
        derivatives=2,
    ),
    Claim(
        id="3d",
        title="The baseline e gives the T − 1 form of NWJ",
        statement=r"c = e:\quad I_{\mathrm{TUBA}}(T; e) = \mathbb{E}_p T - e^{-1}\,\mathbb{E}_q e^T",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: finite.expected(nwj_bound, x),
        right=lambda x: _with_baseline(x, 1.0),
        twin=lambda x: _with_baseline(x, 0.99999),
        slip="log c of 0.99999",
        source=_NWJ,
    ),
    Claim(
        id="3e",
        title="The best baseline is the partition: TUBA is then Donsker–Varadhan's bound",
        statement=r"I_{\mathrm{TUBA}}(T; Z) = \mathbb{E}_p T - \log Z",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: _tuba(x, finite.log_partition(x)),
        right=_dv,
        twin=lambda x: _dv(x, _OFF),
        slip="the Z of Donsker–Varadhan multiplied by 1 + 1e-6",
        source=_TUBA,
    ),
    Claim(
        id="3f",
        title="The best critic of TUBA has no free constant: a shift by k costs eᵏ − 1 − k",
        statement=r"T = \log\frac{p}{q} + k:\quad I_{\mathrm{TUBA}}(T; 1) = \mathrm{KL}(p\,\|\,q) - (e^k - 1 - k)",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=_best,
        right=lambda x: finite.kl(x) - (jnp.exp(x["shift"]) - 1 - x["shift"]),
        twin=finite.kl,
        slip="the shift taken to cost nothing, as in Donsker–Varadhan's bound",
        source="derived here",
        derivatives=2,
    ),
    Claim(
        id="3g",
        title="TUBA lies below the divergence, whatever the critic and the baseline",
        statement=r"I_{\mathrm{TUBA}}(T; c) \le \mathrm{KL}(p\,\|\,q)",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=lambda x: _tuba(x, x["shift"]),
        right=finite.kl,
        twin=lambda x: (1 - 1e-6) * finite.kl(x),
        slip="the divergence multiplied by 1 − 1e-6",
        source=_TUBA,
    ),
)
