"""Strictness for every test: 8 CPU devices, no silent broadcasting, printed seeds; run-time types by `--typecheck`."""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MI_ALIGN_CACHE"] = "off"  # nothing is written into, or read from, the user's own

import jax
import numpy as np
import pytest

from tests.conformance.fuzz_table import pytest_terminal_summary  # noqa: F401  # a hook

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 50, 50)  # traces are many objects that live on


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="draw other random inputs (default 0)")
    parser.addoption("--typecheck", action="store_true", help="check every annotated shape and dtype while testing")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        install_import_hook("mi_align", "beartype.beartype")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (each test draws from the seed and its own name)"


#: Beginnings of the names of files that compile many large programs and run each a few times.
_WHOLE_PROGRAMS = (
    "test_training",
    "test_models",
    "test_packing",
    "test_on_policy",
    "test_reward",
    "test_evaluate",
    "test_logprobs_pallas",
    "test_benchmark",
)


@pytest.fixture(scope="module", autouse=True)
def _programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile whole programs in half the time, and give back the memory of a file's programs, which no other file runs.

    LLVM optimises them little; what is slow, `make test-slow`, is compiled as users' programs are.
    """
    quick = request.config.getoption("markexpr") == "not slow"
    lazy = quick and request.module.__name__.rpartition(".")[2].startswith(_WHOLE_PROGRAMS)
    jax.config.update("jax_disable_most_optimizations", lazy)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The test's own seed, printed when it fails."""
    value = zlib.crc32(f"{request.config.getoption('--seed')} {request.node.nodeid}".encode())
    print(f"seed of this test: {value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers of the test's own."""
    return np.random.default_rng(seed)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 within this test only, so that the others see what a user sees by default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs see one device, as on most of their users' machines."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
