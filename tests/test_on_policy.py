"""Policy gradients on an enumerable policy, rollouts, pairs made of them, rewards and prompts as users bring them."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.cli.main import main
from mi_align.data import ByteTokenizer, Preference, Prompt, encode_preferences, encode_prompts, load_prompts
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, hidden_states, init_decoder, vocabulary_matrix
from mi_align.objectives import grpo_loss
from mi_align.training import preference_loss, scorer, summarise
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.on_policy.config import OnPolicyConfig
from mi_align.training.on_policy.estimators import ADVANTAGES, ESTIMATORS, hyper_of
from mi_align.training.on_policy.losses import Learned, clip_fraction, policy_gradient_loss
from mi_align.training.on_policy.pairs import paired
from mi_align.training.on_policy.reward_functions import load_reward_function
from mi_align.training.on_policy.rollout import Rollout, rollout_metrics
from mi_align.training.on_policy.sampling import laid_out, sampler, texts_of
from mi_align.training.settings import load

# ------------------------------------------------------------------------------------------------ exact enumeration

LETTERS, EOS, BOS, LONGEST = (0, 1), 2, 3, 2
#: All that the policy can say in two tokens.
RESPONSES = [(EOS,), *((x, y) for x in (*LETTERS, BOS) for y in (*LETTERS, EOS, BOS))]
GROUP = 2
GRADES = {response: float(np.cos(3 * i) * 2) for i, response in enumerate(RESPONSES)}


class Table(NamedTuple):
    """A policy as its logits: of the first token, and of the second after each first one."""

    first: Any
    second: Any


@functools.cache
def decoder() -> tuple[Any, Any]:
    """A decoder of four tokens; what it says first has the probabilities 0.20, 0.09, 0.11 and 0.61."""
    return init_decoder(DecoderConfig(vocab_size=4, width=8, layers=1, heads=2), jax.random.key(5))


@functools.cache
def table() -> Table:
    """The decoder's own law: what it says after BOS, and after BOS and any token."""
    graphdef, params = decoder()
    hidden = hidden_states(graphdef, params, jnp.array([[BOS, x] for x in range(4)]))
    logits = hidden @ vocabulary_matrix(graphdef, params).T
    return Table(logits[0, 0], logits[:, 1])


@functools.cache
def direction() -> Table:
    return jax.tree.map(lambda x: jax.random.normal(jax.random.key(6), x.shape), table())


def logps(policy: Table, batch: Any) -> Any:
    """What `scorer` does, of a table."""
    tokens, kept = jnp.asarray(batch.tokens), jnp.asarray(batch.response_mask)[..., 1:]
    x, y = tokens[..., 1], tokens[..., 2]
    first, second = jax.nn.log_softmax(policy.first), jax.nn.log_softmax(policy.second)
    return jnp.where(kept, jnp.stack([first[x], second[x, y]], axis=-1), 0)


def batch_of(responses: list[tuple[int, ...]]):
    """One prompt, BOS alone, and these responses."""
    tokens = np.full((1, len(responses), LONGEST), EOS, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, response in enumerate(responses):
        tokens[0, i, : len(response)], mask[0, i, : len(response)] = response, True
    lengths = jnp.array([1])
    return laid_out(jnp.array([[BOS]]), lengths, jnp.asarray(tokens), jnp.asarray(mask), pad_id=EOS)


class Enumerated(NamedTuple):
    """Of every response: its probability, the slopes of its tokens' log π along `direction`, its length and grade."""

    probability: np.ndarray
    slope: np.ndarray
    length: np.ndarray
    grade: np.ndarray


@functools.cache
def enumerated() -> Enumerated:
    batch = batch_of(RESPONSES)
    value, slope = jax.jvp(lambda policy: logps(policy, batch), (table(),), (direction(),))
    mask = np.asarray(batch.response_mask)[0, :, 1:]
    probability = np.exp(np.asarray(value, np.float64)[0].sum(-1))
    assert probability.sum() == pytest.approx(1, abs=1e-5)  # nothing else can be said
    grades = np.array([GRADES[response] for response in RESPONSES])
    return Enumerated(probability, np.asarray(slope, np.float64)[0] * mask, mask.sum(-1), grades)


def advantages_by_hand(name: str, rewards: np.ndarray) -> np.ndarray:
    """Of one group, written out."""
    n = len(rewards)
    if name == "rloo":
        return np.array([rewards[k] - (rewards.sum() - rewards[k]) / (n - 1) for k in range(n)])
    if name == "group":
        return (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    return rewards - (rewards.mean() if name == "centred" else 0.0)


def expected_slope(advantage: str, over: str) -> float:
    """The mean of the loss's slope over all groups that can be drawn, each by its probability."""
    law = enumerated()
    score = {
        "sum": law.slope.sum(-1),
        "mean": law.slope.sum(-1) / law.length,
        "longest": law.slope.sum(-1) / LONGEST,
    }[over]
    total = 0.0
    for group in itertools.product(range(len(RESPONSES)), repeat=GROUP):
        picked = list(group)
        drawn = np.prod(law.probability[picked])
        total -= drawn * np.mean(advantages_by_hand(advantage, law.grade[picked]) * score[picked])
    return total


#: By method, its advantage and how its tokens add up.
EXACT = {
    "reinforce": ("rloo", "sum"),  # "batch" is the same baseline from a larger group
    "rloo": ("rloo", "sum"),
    "ppo": ("rloo", "sum"),
    "grpo": ("group", "mean"),
    "gspo": ("group", "mean"),
    "dr_grpo": ("centred", "longest"),
}
PARTS, PROMPTS = 64, 256
#: 64 independent estimates: Student's t at 63 degrees beyond ±5 has a probability of 5e-6, a false alarm in 200,000.
LIMIT = 5.0


@functools.cache
def drawn_parts():
    """Rollouts of the sampler's own, `PARTS` of them, scored and graded."""
    graphdef, params = decoder()
    own = OnPolicyConfig(reward="-", samples=GROUP, max_new_tokens=LONGEST)
    draw = jax.jit(sampler(graphdef, own, eos_id=EOS))
    prompts, lengths = jnp.full((PARTS * PROMPTS, 1), BOS), jnp.ones(PARTS * PROMPTS, jnp.int32)
    batch = draw(params, prompts, lengths, jax.random.key(11))
    logp = jax.jit(logps)(table(), batch)
    tokens, masks = np.asarray(batch.tokens), np.asarray(batch.response_mask)
    reward = np.array(
        [[GRADES[tuple(r[m].tolist())] for r, m in zip(*x, strict=True)] for x in zip(tokens, masks, strict=True)]
    )
    cut = lambda x: jnp.asarray(x).reshape(PARTS, PROMPTS, *x.shape[1:])  # noqa: E731
    return jax.tree.map(cut, (batch, logp, jnp.asarray(reward, jnp.float32)))


@functools.cache
def estimates(method: str, advantage: str) -> np.ndarray:
    """Slopes of the loss along the direction, one of each part."""
    hyper = hyper_of(method, {}, longest=LONGEST)
    loss = policy_gradient_loss(logps, method, hyper=hyper, longest=LONGEST)

    policy, along = table(), direction()  # not made while a program is traced

    def slope(part: Any) -> Any:
        batch, logp, reward = part
        learned = Learned(batch, logp, None, ADVANTAGES[advantage](reward))
        return jax.jvp(lambda p: loss(p, learned)[0].value(), (policy,), (along,))[1]

    return np.asarray(jax.jit(lambda parts: jax.lax.map(slope, parts))(drawn_parts()), np.float64)


def deviations(estimated: np.ndarray, exact: float) -> float:
    return float((estimated.mean() - exact) / (estimated.std(ddof=1) / np.sqrt(len(estimated))))


@pytest.mark.parametrize(
    "method", [x if x in ("rloo", "grpo") else pytest.param(x, marks=pytest.mark.slow) for x in EXACT]
)
def test_the_expected_gradient_is_that_of_the_enumeration(method: str) -> None:
    advantage, over = EXACT[method]
    estimated = estimates(method, ESTIMATORS[method].advantage)
    assert abs(deviations(estimated, expected_slope(advantage, over))) < LIMIT
    if method in ("reinforce", "rloo", "ppo"):  # the reward's own gradient, which has no group in it
        law = enumerated()
        value = -float((law.probability * law.slope.sum(-1) * law.grade).sum())
        assert expected_slope(advantage, over) == pytest.approx(value, rel=1e-6)  # the table's, in float32


def test_the_sampler_draws_from_the_table_and_the_scorer_reads_it() -> None:
    """What is true of the table's gradients is true of the decoder's, then. Frequencies by a chi-square."""
    batch, logp, _ = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn_parts())
    graphdef, params = decoder()
    some = jax.tree.map(lambda x: x[:4], batch)
    assert np.allclose(scorer(graphdef)(params, some), logp[:4], atol=1e-5)
    rows, masks = (np.asarray(x).reshape(-1, 1 + LONGEST) for x in batch[:2])
    said = [tuple(row[kept].tolist()) for row, kept in zip(rows, masks, strict=True)]
    counts = np.array([said.count(response) for response in RESPONSES])
    wanted = len(said) * enumerated().probability
    assert counts.sum() == len(said)
    assert ((counts - wanted) ** 2 / wanted).sum() < 45  # 12 degrees: beyond it with a probability of 1e-5
    assert ((np.roll(counts, 1) - wanted) ** 2 / wanted).sum() > 1000


@pytest.mark.parametrize(("method", "slip"), [("rloo", "centred"), ("grpo", "centred")])
def test_another_advantage_is_noticed(method: str, slip: str) -> None:
    """The twin: in its own baseline, a response halves RLOO's gradient; GRPO's without the deviation is another."""
    assert abs(deviations(estimates(method, slip), expected_slope(*EXACT[method]))) > 2 * LIMIT


def one_part() -> tuple[Any, Any, Any]:
    return jax.tree.map(lambda x: x[0, :8], drawn_parts())


def gradient(method: str, learned: Learned, **given: Any) -> Any:
    hyper = hyper_of(method, given.pop("hyper", {}), longest=LONGEST)
    loss = policy_gradient_loss(logps, method, hyper=hyper, longest=LONGEST, **given)
    return jax.grad(lambda p: loss(p, learned)[0].value())(table())


def close(x: Any, y: Any) -> bool:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(bool(np.allclose(a, b, rtol=1e-4, atol=1e-6)) for a, b in pairs)


def test_ppo_at_ratio_one_is_reinforce_with_its_baseline() -> None:
    batch, logp, reward = one_part()
    learned = Learned(batch, logp, None, ADVANTAGES["rloo"](reward))
    assert close(gradient("ppo", learned), gradient("reinforce", learned))
    assert not close(gradient("ppo", learned._replace(old_logp=logp - 0.1)), gradient("reinforce", learned))


@pytest.mark.parametrize("kl", ["k2_in_loss", "k3_in_loss"])
def test_a_penalty_in_the_loss_has_the_gradient_of_its_divergence(kl: str) -> None:
    """Each response by its probability, held: k₂'s gradient is that of KL(π ‖ π_ref), k₃'s that of KL(π_ref ‖ π)."""
    batch = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch_of(RESPONSES))  # each response a prompt of its own
    reference = jax.tree.map(lambda x: 0.5 * x, table())
    held, law = logps(reference, batch), jnp.asarray(enumerated().probability, jnp.float32)

    def penalty(policy: Table) -> Any:
        loss = policy_gradient_loss(logps, "reinforce", hyper={}, longest=LONGEST, kl_weight=1.0, kl=kl)
        learned = Learned(batch, logps(policy, batch), held, jnp.zeros((len(RESPONSES), 1)))
        each = jax.vmap(lambda one: loss(policy, jax.tree.map(lambda x: x[None], one))[0].value())(learned)
        return each @ law

    def divergence(policy: Table) -> Any:
        ours, theirs = (jnp.sum(x, axis=-1)[:, 0] for x in (logps(policy, batch), held))
        first, second = (ours, theirs) if kl == "k2_in_loss" else (theirs, ours)
        return jnp.sum(jnp.exp(first) * (first - second))

    came, wanted = (jax.jvp(f, (table(),), (direction(),))[1] for f in (penalty, divergence))
    assert abs(float(wanted)) > 0.05
    assert float(came) == pytest.approx(float(wanted), rel=1e-4)


def test_the_penalty_of_tokens_is_the_objectives_own() -> None:
    batch, logp, reward = one_part()
    reference, advantage = logp - 0.3, ADVANTAGES["group"](reward)
    came = gradient("grpo", Learned(batch, logp, reference, advantage), kl_weight=0.3, kl="k3_in_loss")
    where = batch.response_mask[..., 1:]

    def own(policy: Table) -> Any:
        return grpo_loss(logps(policy, batch), logp, advantage, where=where, reference_logp=reference, beta=0.3).mean()

    assert close(came, jax.grad(own)(table()))


def test_the_clipped_share_counts_what_has_no_gradient() -> None:
    ratio = jnp.log(jnp.array([[[0.5, 1.1, 2.0, 0.9]], [[0.5, 1.1, 2.0, 9.0]]]))
    where = jnp.array([[[True, True, True, False]], [[True, True, True, True]]])
    advantage = jnp.array([[1.0], [-1.0]])
    hyper = {"clip_low": 0.2, "clip_high": 0.2, "ratio_cap": 5.0}
    share = clip_fraction(ESTIMATORS["grpo"], ratio, advantage, where, hyper)["clip_fraction"]
    assert float(share.value()) == pytest.approx(3 / 7)  # 2.0 of the first; 0.5 and, capped, 9.0 of the second
    cap = clip_fraction(ESTIMATORS["cispo"], ratio, advantage, where, {"ratio_cap": 5.0})["clip_fraction"]
    assert float(cap.value()) == pytest.approx(1 / 7)
    whole = clip_fraction(ESTIMATORS["gspo"], ratio, advantage, where, hyper)["clip_fraction"]
    assert float(whole.value()) == 0.0  # means of log-ratios: 1.03 and 1.77, below the cap where A < 0
    assert clip_fraction(ESTIMATORS["rloo"], ratio, advantage, where, {}) == {}


# ------------------------------------------------------------------------------------------------------- rollouts


def test_rows_are_laid_out_as_the_data_room_encodes_them() -> None:
    tokenizer = ByteTokenizer()
    texts = [("1+1=", ["2", "22"]), ("10+10=", ["20", "7"])]
    prompts, _ = encode_prompts([Prompt(p, {}) for p, _ in texts], tokenizer)
    tokens = np.full((2, 2, 4), tokenizer.eos_id)
    for i, (_, answers) in enumerate(texts):
        for k, answer in enumerate(answers):
            tokens[i, k, : len(answer)] = tokenizer.encode(answer)
    mask = np.arange(4) <= np.array([[[len(a)] for a in answers] for _, answers in texts])
    came = laid_out(*map(jnp.asarray, (prompts.tokens, prompts.lengths, tokens, mask)), pad_id=tokenizer.eos_id)
    wanted, _ = encode_preferences([Preference(p, a[0], (a[1],)) for p, a in texts], tokenizer)
    time = wanted.tokens.shape[-1]
    assert np.array_equal(came.tokens[..., :time], wanted.tokens)
    assert np.array_equal(came.response_mask[..., :time], wanted.response_mask)
    assert not np.asarray(came.response_mask)[..., time:].any()
    repeated, said = texts_of(came, [Prompt(p, {}) for p, _ in texts], tokenizer)
    assert said == ["2", "22", "20", "7"]
    assert [p.text for p in repeated] == ["1+1=", "1+1=", "10+10=", "10+10="]


def rollout(reward: Any) -> Rollout:
    """Two prompts, three responses each, with this reward."""
    batch = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[2:]), batch_of(RESPONSES[:6]))
    logp = logps(table(), batch)
    return Rollout(batch, logp, logp - 0.25 * batch.response_mask[..., 1:], jnp.asarray(reward, jnp.float32))


def test_the_metrics_of_a_rollout_are_means_of_what_counts() -> None:
    came = rollout([[1, 0, 0.5], [2, 2, 2]])
    lengths = np.asarray(came.where).sum(-1)
    told = summarise(rollout_metrics(came, eos_id=EOS))
    assert told["reward/mean"] == pytest.approx(7.5 / 6)
    assert told["reward/std"] == pytest.approx(np.std([1, 0, 0.5]) / 2)
    assert told["reward/no_spread"] == 0.5
    assert told["response/length"] == pytest.approx(lengths.mean())
    assert told["kl"] == pytest.approx(0.25 * lengths.mean(), rel=1e-5)
    assert told["entropy"] == pytest.approx(-float(came.logp.sum()) / lengths.sum(), rel=1e-5)
    rows, masks = (np.asarray(x).reshape(6, -1) for x in came.batch[:2])
    ended = [EOS in row[kept] for row, kept in zip(rows, masks, strict=True)]
    assert told["response/unfinished"] == pytest.approx(1 - np.mean(ended))
    first = summarise(rollout_metrics(came, eos_id=EOS, where=jnp.array([True, False])))
    assert first["reward/mean"] == 0.5
    assert first["response/length"] == pytest.approx(lengths[0].mean())


def test_pairs_are_the_best_and_the_worst_and_ties_prefer_nothing() -> None:
    came = rollout([[1, 3, 2], [2, 2, 2]])
    batch, reference = paired(came, METHODS["dpo"])
    assert np.array_equal(batch.tokens[0], came.batch.tokens[0, [1, 0]])
    assert np.array_equal(reference[0], came.reference_logp[0, [1, 0]])
    assert np.asarray(batch.candidate_mask).tolist() == [[True, True], [False, False]]
    some = paired(rollout([[1, 3, 3], [1, 2, 1]]), METHODS["mio"])[0]
    assert np.asarray(some.candidate_mask).tolist() == [[True, False, True], [True, True, True]]
    assert np.array_equal(some.tokens[0], came.batch.tokens[0, jnp.array([1, 2, 0])])
    ranked = paired(rollout([[1, 3, 3], [1, 1, 1]]), METHODS["plackett_luce_dpo"])[0]
    assert np.asarray(ranked.reward).tolist() == [[3, 3, 1], [1, 1, 1]]
    assert np.asarray(ranked.candidate_mask).tolist() == [[True] * 3, [False] * 3]
    scored = paired(rollout([[1, 3, 3], [1, 1, 1]]), METHODS["nca_reward"])[0]
    assert np.asarray(scored.candidate_mask).all()


@pytest.mark.parametrize(
    "name",
    [
        "dpo",
        "mio",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("orpo", "simpo", "ipo", "plackett_luce_dpo", "aot")),
    ],
)
def test_a_batch_of_ties_has_neither_loss_nor_gradient(name: str) -> None:
    loss = preference_loss(logps, METHODS[name])
    slope_of = jax.jit(jax.value_and_grad(lambda p, given: loss(p, given)[0].value()))
    value, slope = slope_of(table(), paired(rollout([[1, 1, 1], [0, 0, 0]]), METHODS[name]))
    assert float(value) == 0.0
    assert all(np.array_equal(x, np.zeros_like(x)) for x in jax.tree.leaves(slope))
    value, slope = slope_of(table(), paired(rollout([[1, 0, 1], [0, 0, 0]]), METHODS[name]))
    assert np.isfinite(value)
    assert any(np.any(x) for x in jax.tree.leaves(slope))


# -------------------------------------------------------------------------------------------------------- rewards

PROMPTS_GIVEN = [Prompt("1+1=", {"answer": "2"}), Prompt("2+2=", {"answer": "4"})]


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def good(prompts, responses): return [len(p) + len(r) for p, r in zip(prompts, responses)]\n"
        "def rows(prompts, responses, rows): return [float(r == row['answer']) for r, row in zip(responses, rows)]\n"
        "def option(prompts, responses, scale=2.0): return np.full(len(responses), scale)\n"
        "def raises(prompts, responses): return 1 / 0\n"
        "def short(prompts, responses): return [1.0]\n"
        "def none(prompts, responses): pass\n"
        "def text(prompts, responses): return ['good', 'bad']\n"
        "def nan(prompts, responses): return [1.0, float('nan')]\n"
    )
    return str(tmp_path / "mine.py")


def test_rewards_come_from_files_modules_and_by_name(
    rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["2", "5"]
    assert load_reward_function(f"{rewards}:good")(PROMPTS_GIVEN, said).tolist() == [5, 5]
    assert load_reward_function(f"{rewards}:rows")(PROMPTS_GIVEN, said).tolist() == [1, 0]
    assert load_reward_function(f"{rewards}:option")(PROMPTS_GIVEN, said).tolist() == [2, 2]
    assert load_reward_function("arithmetic")(PROMPTS_GIVEN, said).tolist() == [1, 0]
    module = "mi_align.training.on_policy.reward_functions:arithmetic"
    assert load_reward_function(module)(PROMPTS_GIVEN, said).tolist() == [1, 0]
    import sys
    import types

    fake = types.ModuleType("mi_align.training.rewards")
    fake.load_reward = lambda folder: lambda prompts, responses: np.full(len(responses), 7.0)
    monkeypatch.setitem(sys.modules, "mi_align.training.rewards", fake)
    assert load_reward_function(str(tmp_path))(PROMPTS_GIVEN, said).tolist() == [7, 7]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"mine.py:5.* failed: ZeroDivisionError: .*prompt '1\+1=', response '2'"),
        ("short", r"shape \[1\], but one for each of 2 responses was wanted: \[2\].*'1\+1='"),
        ("none", r"gave numbers of shape \[\]|gave nan|gave None"),
        ("text", r"gave \['good', 'bad'\].*prompt '1\+1=', response '2'"),
        ("nan", r"gave nan for prompt '2\+2=', response '5', but a finite number"),
    ],
)
def test_wrong_rewards_are_named_with_prompt_and_response(name: str, message: str, rewards: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward_function(f"{rewards}:{name}")(PROMPTS_GIVEN, ["2", "5"])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("arithmatic", ValueError, "'arithmetic', `package.module:function`"),
        ("runs/none", FileNotFoundError, "no folder 'runs/none' of a reward model"),
        ("none.py:f", FileNotFoundError, "no file none.py to load a reward from"),
        ("no_such_module:f", ValueError, "names the module 'no_such_module'"),
        ("math:sqroot", ValueError, "no function in math called 'sqroot'. Did you mean 'sqrt'"),
    ],
)
def test_a_reward_that_is_not_there_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_reward_function(name)


# ----------------------------------------------------------------------------------------------- prompts and settings


def test_prompts_come_from_every_layout(tmp_path: Path) -> None:
    def read(*rows: dict[str, Any], **more: Any) -> list[str]:
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [p.text for p in load_prompts(tmp_path / "x.jsonl", **more)]

    assert read({"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}) == ["a", "b"]
    assert read({"prompt": "a", "chosen": "b", "rejected": "c"}) == ["a"]
    dialogue = "\n\nHuman: hi\n\nAssistant:"
    assert read({"chosen": f"{dialogue} yes", "rejected": f"{dialogue} no"}) == [dialogue]
    messages = [{"role": "user", "content": "hi"}]

    def chat(said: Any, *, open_turn: bool = False) -> str:
        return "".join(f"<{m['content']}>" for m in said) + "|" * open_turn

    assert read({"prompt": messages}, chat=chat) == ["<hi>|"]
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": 3}\n')
    assert load_prompts(tmp_path / "x.jsonl")[0].row == {"prompt": "a", "answer": 3}
    with pytest.raises(ValueError, match=r"has the columns \(answer, question\), but a `prompt` was wanted"):
        read({"question": "a", "answer": "b"})
    with pytest.raises(ValueError, match="row 2: `prompt` is of type int, but text or a list of messages was wanted"):
        read({"prompt": "a"}, {"prompt": 3})
    with pytest.raises(ValueError, match="row 1: `prompt` is a list of messages, which the tokenizer has no chat"):
        read({"prompt": messages})
    faults: list[str] = []
    assert read({"prompt": None}, {"prompt": "b"}, on_fault=faults.append) == ["b"]
    assert "row 1: `prompt` is missing" in faults[0]


def test_long_prompts_lose_their_beginning() -> None:
    batch, cut = encode_prompts([Prompt("abcdef", {}), Prompt("a", {})], ByteTokenizer(), max_prompt=3)
    assert batch.tokens.tolist() == [[257, 101, 102], [257, 97, 256]]
    assert (batch.lengths.tolist(), cut) == ([3, 2], 1)


REFUSED = {
    "method=grpo": "Say how they are rewarded: `on_policy: {reward: …}`",
    "on_policy.samples=2": "the setting `on_policy.reward` is missing",
    "on_policy={reward: arithmetic, temperature: 0.7}": "`temperature` is 0.7, but 1 was wanted",
    "on_policy={reward: arithmetic, kl: k1_in_loss}": "Did you mean 'k3_in_loss' or 'k2_in_loss'",
    "on_policy={reward: arithmetic}": "`reference: live`",
    "on_policy={reward: arithmetic} method=grpo on_policy.kl_weight=0.1": "`reference: live`",
    "on_policy={reward: arithmetic} method=grpo on_policy.samples=1": "compares responses, of which there is one",
    "on_policy={reward: arithmetic} method=grpo hyper.beta=0.1": "`on_policy.kl_weight`",
    "on_policy={reward: arithmetic} method=grpo hyper.clip_lo=0.1": "Did you mean 'clip_low'",
    "on_policy={reward: arithmetic} method=reinforce hyper.clip_low=0.1": "has no hyper-parameters",
    "on_policy={reward: arithmetic} method=rloo on_policy.inner_steps=2": "take 'ppo'",
    "on_policy={reward: arithmetic} method=rloo on_policy.advantage=group": "Take `method: reinforce`",
    "on_policy={reward: arithmetic} method=gpro": "called 'gpro'. Did you mean 'gspo' or 'grpo'",
    "on_policy={reward: arithmetic} method=sft": "no method with `on_policy` called 'sft'",
    "on_policy={reward: arithmetic} method=kto reference=live": "'kto' does not learn from the policy's own responses",
    "on_policy={reward: arithmetic} method=dpo reference=live on_policy.samples=1": "at least 2",
    "on_policy={reward: arithmetic} method=dpo reference=live on_policy.kl_weight=1": "`hyper.beta`",
    "on_policy={reward: arithmetic, inner_steps: 2} method=grpo steps=3": "a multiple of `on_policy.inner_steps` = 2",
    "on_policy={reward: arithmetic} method=grpo data.packing=shared": "`data.packing` is about responses in the data",
    "on_policy={reward: arithmetic} method=grpo keep_best=1": "`best_by: eval/reward/mean`",
    "on_policy={reward: arithmetic} method=grpo evaluate_entropy=true": "tells `entropy` anyway",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_is_refused_in_words(arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1="}\n')
    words = arguments.replace("} ", "}\n").replace(" method", "\nmethod")
    given = [part for line in words.splitlines() for part in ([line] if "{" in line else line.split())]
    code = main(["train", *given, f"data.train={tmp_path}/p.jsonl", f"output={tmp_path}/run"])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 2
    assert REFUSED[arguments] in said


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="8 devices")
def test_eight_devices_draw_and_learn_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mi_align.training.on_policy.program import build_on_policy

    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"{n}+{n}="}) + "\n" for n in range(8)))
    (tmp_path / "r.py").write_text("def vowels(prompts, responses): return [len(r) for r in responses]\n")
    own = f"on_policy={{reward: {tmp_path}/r.py:vowels, samples: 4, max_new_tokens: 4, kl_weight: 0.1}}"
    shape = "model.shape={width: 32, layers: 1, heads: 4}"
    many = ["data_parallel=2", "fsdp=2", "tensor=2"]

    def first(*more: str) -> tuple[np.ndarray, dict[str, float]]:
        settings = ["method=grpo", own, shape, f"data.train={tmp_path}/p.jsonl", "reference=live", "batch=8", *more]
        config = load(RunConfig, None, settings)
        program = build_on_policy(config, load_inputs(config), 2)
        state, batch = program.state, program.batch(program.state, 0)
        tokens = np.asarray(batch.examples.tokens)
        state, _ = program.step(state, batch)
        return tokens, summarise(program.step(state, program.batch(state, 1))[1])

    spread, told = first(*many)
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    alone, wanted = first()
    assert np.array_equal(spread, alone)
    assert told == pytest.approx(wanted, rel=1e-3, abs=1e-4)
