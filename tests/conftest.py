"""Strictness for every test: 8 CPU devices, no silent broadcasting, printed seeds; run-time types by `--typecheck`."""

from __future__ import annotations

import functools
import gc
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MI_ALIGN_CACHE"] = "off"  # nothing is written into, or read from, the user's own

import jax
import numpy as np
import pytest
from jax._src import compiler
from jax._src.interpreters import mlir

from tests.conformance.fuzz_table import pytest_terminal_summary  # noqa: F401  # a hook

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 50, 50)  # traces are many objects that live on


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="draw other random inputs (default 0)")
    parser.addoption("--optimised", action="store_true", help="compile every program as users' are, in twice the time")
    parser.addoption("--typecheck", action="store_true", help="check every annotated shape and dtype while testing")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--typecheck"):
        from jaxtyping import install_import_hook

        install_import_hook("mi_align", "beartype.beartype")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')} (each test draws from the seed and its own name)"


#: Most of the suite's time is XLA's, 40 ms for the smallest program; a quarter of that with these.
_CHEAPLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
#: Files whose subject is what users' programs compute to the last digit are compiled as those are. Where a policy and
#: its reference must be rounded alike, by fusions of one kind.
_OPTIONS: dict[str, dict[str, Any]] = {
    "test_truth": {},
    "test_found": {},
    "test_fuzz": {},
    "test_training_exact": {},
    "test_training_sharding": {"xla_backend_optimization_level": 0},
}


@pytest.fixture(scope="module", autouse=True)
def _programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile cheaply in the quick suite, and give back the memory of a file's programs, which no other file runs.

    What is slow, `make test-slow`, is compiled as users' programs are, and so is everything with `--optimised`.
    """
    quick = request.config.getoption("markexpr") == "not slow" and not request.config.getoption("--optimised")
    options = _OPTIONS.get(request.module.__name__.rpartition(".")[2], _CHEAPLY)
    with pytest.MonkeyPatch.context() as patch:
        if quick and options and jax.default_backend() == "cpu":
            known = {name: value for name, value in options.items() if _is_known(name, value)}
            patch.setattr(compiler, "get_compile_options", _with(known, compiler.get_compile_options))
            patch.setattr(mlir, "make_ir_context", functools.cache(mlir.make_ir_context))
        yield
    jax.clear_caches()


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Whether this XLA has the option: jaxlib 0.12 has one way to fuse, and none to choose."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _with(ours: dict[str, Any], made: Callable[..., Any]) -> Callable[..., Any]:
    """JAX's own compile options, with ours below those of a `jit`. It has no public way to set them for all."""

    def get(*args: Any, env_options_overrides: dict[str, Any] | None = None, **more: Any) -> Any:
        return made(*args, env_options_overrides=ours | (env_options_overrides or {}), **more)

    return get


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
