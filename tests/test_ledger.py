"""The ledger itself: complete, well-formed, and every claim holds while every twin fails."""

from __future__ import annotations

import re

import jax
import pytest

from mi_align.equivalences import Kind, certify
from mi_align.equivalences.ledger import LEDGER, first_of_each_number, join, order, select
from mi_align.equivalences.page import formula

SAMPLES = 256
#: Where a twin need not break on every sample; still few enough that programs are compiled without optimisation.
MORE_SAMPLES = 4096


def test_every_number_of_the_theory_has_a_claim():
    numbers = {int(re.match(r"\d+", identifier).group()) for identifier in LEDGER}
    assert numbers == set(range(1, 52))
    assert len(LEDGER) >= 70


@pytest.mark.parametrize("identifier", LEDGER)
def test_a_claim_is_well_formed(identifier: str):
    claim = LEDGER[identifier]
    assert "<math" in formula(claim.statement)
    assert claim.title
    assert claim.slip
    assert claim.source
    assert claim.derivatives in (0, 1, 2)
    assert claim.kind is not Kind.ASYMPTOTIC or len(claim.grid) >= 3
    assert not claim.tolerance or claim.why, "a tolerance of its own needs a reason"


@pytest.mark.parametrize("identifier", LEDGER)
def test_a_claim_holds_and_its_twin_fails(identifier: str):
    claim = LEDGER[identifier]
    few = claim.kind not in (Kind.MONTE_CARLO, Kind.INEQUALITY)
    with jax.numpy_rank_promotion("allow"):
        certificate = certify(claim, samples=SAMPLES if few else MORE_SAMPLES)
    assert certificate.holds, (certificate.error, certificate.tolerance, certificate.worst)
    assert certificate.twin_fails, certificate.twin_error


def test_the_short_form_has_the_first_claim_of_every_number():
    short = first_of_each_number(LEDGER)
    assert [order(i)[0] for i in short] == sorted({order(i)[0] for i in LEDGER})
    assert all(i == min(j for j in LEDGER if order(j)[0] == order(i)[0]) for i in short)


def test_a_number_selects_its_lettered_parts_and_an_unknown_one_is_named():
    assert {i[:2] for i in select(LEDGER, "13, 21a")} == {"13", "21"}
    assert list(select(LEDGER, "21a")) == ["21a"]
    with pytest.raises(ValueError, match=r"no claim called '13zz'\. Did you mean"):
        select(LEDGER, "13zz")


def test_two_claims_of_one_name_are_refused():
    claim = next(iter(LEDGER.values()))
    with pytest.raises(ValueError, match=f"two claims are called '{claim.id}'"):
        join([claim], [claim])
