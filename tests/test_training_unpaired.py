"""Labelled responses and scored lists, from a row to the loss of a step, against formulas written out here."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mi_align.critics import Candidates
from mi_align.data import (
    ByteTokenizer,
    Preference,
    encode_preferences,
    labelled,
    mismatched,
    read_rows,
    side_by_side,
)
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, cast, init_decoder
from mi_align.training import merge, preference_loss, scorer, summarise, train_step
from mi_align.training.fitting import arranged, fitted
from mi_align.training.unpaired import unpaired_metrics

SINGLES = [
    Preference(f"{i}+{i}=", answer, (), desirable=label)
    for i, (answer, label) in enumerate([("0", True), ("3", False), ("4", True), ("6 or so", True), ("9", False)])
]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@functools.cache
def setting():
    """Two different models, in float64."""
    config = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2)
    graphdef, params = init_decoder(config, jax.random.key(0))
    _, policy = init_decoder(config, jax.random.key(1))
    return jax.jit(scorer(graphdef)), cast(policy, jnp.float64), cast(params, jnp.float64)


def log_ratios(examples: list[Preference]) -> np.ndarray:
    """log π/π_ref of single responses, each scored by itself."""
    score, policy, reference = setting()
    batch, _ = encode_preferences([p._replace(rejected=(), desirable=None) for p in examples], ByteTokenizer())
    return np.asarray(score(policy, batch) - score(reference, batch)).sum(-1)[:, 0]


def encoded(examples: list[Preference]):
    return encode_preferences(examples, ByteTokenizer())[0]


def kto_by_hand(beta: float, weights: tuple[float, float], z: float, ratios: np.ndarray) -> float:
    labels = np.array([p.desirable for p in SINGLES])
    losses = np.where(
        labels, weights[0] * (1 - sigmoid(beta * (ratios - z))), weights[1] * (1 - sigmoid(beta * (z - ratios)))
    )
    return losses.mean()


def test_kto_measures_rewards_against_mismatched_responses_which_have_no_gradient(x64: None) -> None:
    score, policy, reference = setting()
    swap = [p._replace(chosen=SINGLES[(i + 1) % 5].chosen) for i, p in enumerate(SINGLES)]  # one further on
    # Whichever of the two models is the policy, one of the two estimates is above 0, where a gradient could flow.
    sign = 1 if log_ratios(swap).mean() > 0 else -1
    policy, reference = (policy, reference) if sign > 0 else (reference, policy)
    ratios, z = sign * log_ratios(SINGLES), max(0.0, (sign * log_ratios(swap)).mean())
    assert z > 0.01
    method = METHODS["kto"].configure(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    batch = encoded(mismatched(SINGLES))
    loss = preference_loss(score, method, mismatched=True)
    (mean, metrics) = jax.jit(loss)(policy, (batch, score(reference, batch)))
    assert float(mean.value()) == pytest.approx(kto_by_hand(0.3, (1.5, 0.7), z, ratios), rel=1e-10)
    assert summarise(metrics)["kl"] == pytest.approx(z, rel=1e-10)

    alone = encoded(SINGLES)

    def with_z_a_constant(p):
        given = Candidates(
            score(p, alone),
            score(reference, alone),
            response_mask=alone.response_mask[..., 1:],
            desirable=alone.desirable,
            reference_point=jnp.asarray(z),
        )
        return jnp.mean(method(given))

    scores = score(reference, batch)
    wanted = jax.jit(jax.grad(with_z_a_constant))(policy)
    came = jax.jit(jax.grad(lambda p: loss(p, (batch, scores))[0].value()))(policy)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_a_live_reference_and_a_cached_one_are_one_for_kto_too(x64: None) -> None:
    score, policy, reference = setting()
    batch, method = encoded(mismatched(SINGLES)), METHODS["kto"]
    cached, _ = preference_loss(score, method, mismatched=True)(policy, (batch, score(reference, batch)))
    live, _ = preference_loss(score, method, live=score, mismatched=True)(policy, (batch, None), reference)
    assert float(cached.total) == pytest.approx(float(live.total), rel=1e-12)


def test_an_example_that_is_not_there_counts_in_neither_the_loss_nor_the_reference_point(x64: None) -> None:
    score, policy, reference = setting()
    batch = encoded(mismatched(SINGLES))
    fewer = jax.tree.map(lambda x: x[:3], batch)
    absent = batch._replace(candidate_mask=batch.candidate_mask & (np.arange(5) < 3)[:, None])
    loss = jax.jit(preference_loss(score, METHODS["kto"], mismatched=True))
    (came, seen), (wanted, metrics) = (loss(policy, (b, score(reference, b))) for b in (absent, fewer))
    assert float(came.value()) == pytest.approx(float(wanted.value()), rel=1e-12)
    assert summarise(seen) == pytest.approx(summarise(metrics), rel=1e-12)


def test_micro_batches_are_refused_where_a_reference_point_couples_the_batch() -> None:
    score, *_ = setting()
    with pytest.raises(ValueError, match="couples the examples of a batch"):
        train_step(preference_loss(score, METHODS["kto"], mismatched=True), optax.sgd(1.0), micro_batches=2)
    train_step(preference_loss(score, METHODS["bco"]), optax.sgd(1.0), micro_batches=2)


@pytest.mark.parametrize("name", ["bco", "apo_zero_unpaired"])
def test_losses_of_single_responses_are_the_papers(name: str, x64: None) -> None:
    score, policy, reference = setting()
    batch, labels = encoded(SINGLES), np.array([p.desirable for p in SINGLES])
    mean, _ = preference_loss(score, METHODS[name].configure(beta=0.3))(policy, (batch, score(reference, batch)))
    gain = np.where(labels, 1, -1) * 0.3 * log_ratios(SINGLES)
    wanted = np.log1p(np.exp(-gain)) if name == "bco" else 1 - sigmoid(gain)
    assert float(mean.value()) == pytest.approx(wanted.mean(), rel=1e-10)


def test_metrics_of_good_and_bad_responses_are_apart_and_merge(rng: np.random.Generator) -> None:
    policy, reference = (jnp.asarray(-rng.uniform(0, 3, (5, 1)), jnp.float32) for _ in range(2))
    labels, there = np.array([1, 0, 1, 1, 0], bool), np.array([1, 1, 0, 1, 1], bool)
    given = Candidates.from_sequences(
        policy, reference, desirable=jnp.asarray(labels)[:, None], candidate_mask=jnp.asarray(there)[:, None]
    )
    method = METHODS["bco"].configure(beta=0.5)
    parts = [jax.tree.map(lambda x, s=s: x[s], given) for s in (slice(0, 2), slice(2, 5))]
    numbers = summarise(merge(*(unpaired_metrics(method, part) for part in parts)))
    scores = 0.5 * np.asarray(policy - reference)[:, 0]
    good, bad = scores[labels & there].mean(), scores[~labels & there].mean()
    assert numbers["rewards/chosen"] == pytest.approx(good, rel=1e-5)
    assert numbers["rewards/rejected"] == pytest.approx(bad, rel=1e-5)
    assert numbers["rewards/margins"] == pytest.approx(good - bad, rel=1e-5)
    assert (numbers["count/chosen"], numbers["count/rejected"]) == (2, 2)
    assert numbers["logp/chosen"] == pytest.approx(np.asarray(policy)[labels & there].mean(), rel=1e-5)


# --- From pairs and scores to labels


def test_pairs_come_apart_and_each_response_meets_another_prompt_once() -> None:
    pairs = [Preference(f"p{i}", f"good{i}", (f"bad{i}",)) for i in range(3)]
    singles = labelled(pairs)
    assert [(p.chosen, p.desirable) for p in singles[:2]] == [("good0", True), ("bad0", False)]
    others = [p.rejected[0] for p in mismatched(singles)]
    assert others == ["good1", "bad1", "good2", "bad2", "good0", "bad0"]
    uneven = [Preference(prompt, answer, (), desirable=True) for prompt, answer in ("pa", "qb", "qc", "rd")]
    assert [p.rejected[0] for p in mismatched(uneven)] == ["c", "d", "a", "b"]
    with pytest.raises(ValueError, match="all examples have the same prompt"):
        mismatched([p._replace(prompt="x") for p in singles])


def test_samples_side_by_side_hold_every_response_and_repeat_only_the_fewer() -> None:
    batch = side_by_side(encoded(SINGLES))
    assert batch.tokens.shape[:2] == (3, 2) and batch.desirable is None
    ids = [
        batch.tokens[place][batch.response_mask[place]][:-1].tolist() for place in np.ndindex(batch.tokens.shape[:2])
    ]
    assert [bytes(x).decode() for x in ids] == ["0", "3", "4", "9", "6 or so", "3"]
    with pytest.raises(ValueError, match="3 desirable and 0 undesirable"):
        side_by_side(encoded([p for p in SINGLES if p.desirable]))


def fit(name: str | None, examples: list[Preference], **options):
    notes: list[str] = []
    method = None if name is None else METHODS[name]
    came = fitted(examples, method, **{"negatives": None, "threshold": None, **options}, note=notes.append)
    return came, notes


SCORED = [Preference("p", "a", ("b", "c"), scores=(2.0, 2.0, 1.0)), Preference("q", "d", ("e",), scores=(1.0, 0.0))]


def test_data_become_what_a_method_takes_and_nothing_is_left_out_silently() -> None:
    pairs = [Preference("p", "a", ("b",)), Preference("q", "c", ("d",))]
    singles, notes = fit("bco", pairs)
    assert len(singles) == 4 and "2 preferences were taken apart into 4 labelled responses" in notes
    assert fit("plackett_luce_dpo", SCORED) == (SCORED, [])
    best, notes = fit("infonce_dpo", SCORED)
    assert [p.rejected for p in best] == [("c",), ("e",)] and best[0].scores is None
    assert notes == ["1 responses whose score is their prompt's best are not counted as rejected"]
    level = [*SCORED, Preference("r", "f", ("g",), scores=(1.0, 1.0))]
    best, notes = fit("mio", level)
    assert len(best) == 2 and "1 prompts, all of whose responses have one score" in notes[1]
    by_score, notes = fit("bco", SCORED, threshold=1.5)
    assert [p.desirable for p in by_score] == [True, True, False, False, False]
    wanted, notes = fit(None, SINGLES)
    assert len(wanted) == 3 and notes == ["2 responses labelled undesirable are not imitated"]
    _, notes = fit("kto", SINGLES)
    assert "3 desirable and 2 undesirable responses; weighed 1.5 : 1" in notes[0]
    assert "hyper.undesirable_weight=1.5" in notes[0]
    batch = arranged(encoded(SINGLES), METHODS["aot_unpaired"], notes.append)
    assert len(batch.tokens) == 3 and "1 of the fewer repeated" in notes[1]


@pytest.mark.parametrize(
    ("name", "examples", "options", "words"),
    [
        ("dpo", SINGLES, {}, "single responses with a label, but 'dpo' compares"),
        ("kto", SCORED, {}, "Say by `data.threshold`"),
        ("kto", [Preference("p", "a", ())], {}, "needs undesirable responses as well"),
        ("infonca", [Preference("p", "a", ("b",))], {}, "'infonca' reads a score of each response"),
        ("infonca", SCORED, {"negatives": 2}, "borrows responses that nobody scored"),
        ("exo", [Preference("p", "a", (), scores=(1.0,))], {}, "but each prompt has one"),
        ("dpo", [Preference("p", "a", ())], {}, "Take `method: sft`"),
        (None, [p for p in SINGLES if not p.desirable], {}, "no response is labelled desirable"),
    ],
)
def test_what_a_method_cannot_take_is_refused_with_what_to_do(name, examples, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        fit(name, examples, **options)


# --- Rankings


def test_responses_of_one_score_are_ties_whose_order_means_nothing(x64: None) -> None:
    scores = np.array([[0.3, -0.7, 1.1]])
    method = METHODS["plackett_luce_dpo"].configure(beta=1.0)

    def loss(order: list[int]) -> float:
        given = Candidates.from_sequences(
            jnp.asarray(scores[:, order]), jnp.zeros((1, 3)), reward=jnp.array([[2.0, 1.0, 1.0]])
        )
        return float(method(given)[0])

    e = np.exp(scores[0])
    # Breslow: both of the lower level compete with that whole level.
    wanted = -np.log(e[0] / e.sum()) - np.log(e[1] / (e[1] + e[2])) - np.log(e[2] / (e[1] + e[2]))
    assert loss([0, 1, 2]) == pytest.approx(wanted, rel=1e-12)
    assert loss([0, 2, 1]) == pytest.approx(wanted, rel=1e-12)


def test_ties_are_of_candidates_that_are_there(x64: None) -> None:
    policy, mask = jnp.array([[0.3, 5.0, -0.7]]), jnp.array([[True, False, True]])
    given = Candidates.from_sequences(
        policy, jnp.zeros((1, 3)), reward=jnp.array([[1.0, 0.0, 1.0]]), candidate_mask=mask
    )
    e = np.exp([0.3, -0.7])
    wanted = -np.log(e / e.sum()).sum()
    assert float(METHODS["plackett_luce_dpo"](given, beta=1.0)[0]) == pytest.approx(wanted, rel=1e-12)


def test_soft_labels_of_a_scored_list_reach_the_loss(x64: None) -> None:
    score, policy, reference = setting()
    rows = [{"prompt": "1+1=", "completions": ["3", "2", "two"], "scores": [0, 2, 1.5]}]
    batch = encoded(read_rows(rows, rows[0], source="x"))
    method = METHODS["infonca"].configure(beta=0.4, reward_temperature=0.8)
    mean, _ = jax.jit(preference_loss(score, method))(policy, (batch, score(reference, batch)))
    s = 0.4 * log_ratios([Preference("1+1=", answer, ()) for answer in ("2", "two", "3")])
    labels = np.exp(np.array([2, 1.5, 0]) / 0.8)
    wanted = -(labels / labels.sum() * (s - np.log(np.exp(s).sum()))).sum()
    assert float(mean.value()) == pytest.approx(wanted, rel=1e-7)
