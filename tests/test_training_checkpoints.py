"""Checkpoints: whole states, bit for bit, and nothing lost to a signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mi_align.models import DecoderConfig, init_decoder
from mi_align.training import TrainState, init_state, partition
from mi_align.training.checkpoints import Best, Checkpoints, stopping

CONFIG = DecoderConfig(vocab_size=31, width=16, layers=2, heads=2)
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def state(dtype=jnp.float32, *, config: DecoderConfig = CONFIG, at: int = 3) -> TrainState:
    _, params = init_decoder(config, jax.random.key(0), dtype)
    trained, frozen = partition(params, lambda path: path.startswith("blocks"))
    begun = init_state(trained, OPTIMISER, frozen=frozen, reference=jax.tree.map(jnp.copy, trained))
    return begun._replace(step=jnp.int32(at))


def assert_same(came, wanted) -> None:
    assert jax.tree.structure(came) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_state_comes_back_bit_for_bit(dtype, tmp_path: Path) -> None:
    wanted = state(dtype)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(wanted, {"settings": {"method": "dpo", "hyper": {"beta": 0.1}}})
    with Checkpoints(tmp_path) as checkpoints:
        came, about = checkpoints.restore(jax.tree.map(jnp.zeros_like, wanted))
    assert_same(came, wanted)
    assert about == {"settings": {"method": "dpo", "hyper": {"beta": 0.1}}}


def test_the_last_ones_stay(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state(at=step), {})
        checkpoints.save(state(at=3), {"again": True})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert int(checkpoints.restore(state(), 2)[0].step) == 2
        assert checkpoints.restore(state())[1] == {}


def test_what_eight_devices_wrote_one_reads(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def spread(x: jax.Array) -> jax.Array:
        axis = next((i for i, n in enumerate(x.shape) if n % 8 == 0), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")
        return jax.device_put(x, NamedSharding(mesh, spec))

    wanted = state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(jax.tree.map(spread, wanted), {})
    with Checkpoints(tmp_path) as checkpoints:
        came, _ = checkpoints.restore(wanted)
    assert_same(came, wanted)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(came))
    assert isinstance(mesh, Mesh)


def test_a_checkpoint_of_another_run_is_named(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match="has no checkpoint"):
            checkpoints.restore(state())
        checkpoints.save(state(), {})
        wide = DecoderConfig(vocab_size=31, width=24, layers=2, heads=2)
        with pytest.raises(
            ValueError, match=r"`params.blocks\S+` is float32\[2, 16.*\] there and float32\[2, 24.*\] here"
        ):
            checkpoints.restore(state(config=wide))
        with pytest.raises(ValueError, match="of another run"):
            checkpoints.restore(state()._replace(reference=None))
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 9"):
            checkpoints.restore(state(), 9)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_acts(which: signal.Signals) -> None:
    seen = []
    before = signal.signal(which, lambda *_: seen.append(which))
    try:
        with stopping() as stop:
            assert not stop.requested
            os.kill(os.getpid(), which)
            assert stop.requested and not seen
            os.kill(os.getpid(), which)
            assert seen == [which]
        assert signal.getsignal(which) is not None
        os.kill(os.getpid(), which)
        assert len(seen) == 2
    finally:
        signal.signal(which, before)


@pytest.mark.parametrize(("highest", "stay", "best"), [(False, [2, 5, 6], 5), (True, [1, 4, 6], 1)])
def test_the_best_ones_stay_beside_the_last(highest: bool, stay: list[int], best: int, tmp_path: Path) -> None:
    kept = Best(2, "eval/loss", highest=highest)
    with Checkpoints(tmp_path, keep=1, best=kept) as checkpoints:
        assert checkpoints.best_step() is None
        for step, loss in enumerate((0.9, 0.3, 0.5, 0.7, 0.2), start=1):
            checkpoints.save(state(at=step), {}, {"eval/loss": loss, "loss": -loss})
        checkpoints.save(state(at=6), {}, {"eval/loss": float("nan")})  # no number: it counts for none
    with Checkpoints(tmp_path, keep=1, best=kept) as checkpoints:
        assert checkpoints.steps() == stay
        assert checkpoints.best_step() == best
