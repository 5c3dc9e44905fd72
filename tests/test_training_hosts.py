"""Several hosts: two processes of four devices each make the run that one process of eight devices makes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mi_align.training.hosts import connect
from mi_align.training.journal import OF_THE_MOMENT

STEPS = 3
RUN = ["batch=8", f"steps={STEPS}", "data.held_out=8", "optimiser.rate=1e-2", "fsdp=4", "tensor=2"]
RUN += ["data.max_prompt=24", "data.max_response=12", "model.shape={width: 32, layers: 1, heads: 4}", "save_every=2"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    rows = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": str(n + 2)} for n in range(32)]
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def started(output: Path, pairs: Path, *more: str, devices: int, others: dict[str, str] | None = None):
    """One process of a run."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "PYTHONUNBUFFERED": "1",
        **(others or {}),
    }
    command = [sys.executable, "-m", "mi_align", "train", f"data.train={pairs}", f"output={output}", *RUN, *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pair(output: Path, pairs: Path, *more: str):
    """Two processes of four devices that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [
        started(output, pairs, "--several-hosts", *more, devices=4, others=told | {"JAX_PROCESS_ID": str(n)})
        for n in range(2)
    ]


def finished(*processes) -> list[str]:
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(output / "model" / "model.safetensors")


def same(one: Path, other: Path) -> None:
    assert [line["step"] for line in lines(one)] == [line["step"] for line in lines(other)]
    for here, there in zip(lines(one), lines(other), strict=True):
        for name in here.keys() - set(OF_THE_MOMENT):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for name, array in weights(one).items():
        np.testing.assert_allclose(array, weights(other)[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("reference", ["cached", pytest.param("live", marks=pytest.mark.slow)])
def test_two_hosts_make_the_run_of_one(pairs, tmp_path, reference):
    alone, together = tmp_path / "alone", tmp_path / "together"
    finished(started(alone, pairs, f"reference={reference}", devices=8))
    first, second = finished(*pair(together, pairs, f"reference={reference}"))
    assert "trained for 3 steps" in first
    assert "trained for" not in second  # one voice
    same(together, alone)


@pytest.mark.slow
def test_two_hosts_stop_and_resume_together(pairs, tmp_path):
    """One of the two is asked to end; both do, with one checkpoint, and go on from it to the end that was wanted."""
    output = tmp_path / "run"
    processes = pair(output, pairs, "steps=100000", "save_every=0", "evaluate_every=0")
    while not (output / "metrics.jsonl").exists() or len(lines(output)) < 3:
        assert all(process.poll() is None for process in processes), finished(*processes)
        time.sleep(0.1)
    processes[1].terminate()
    said = finished(*processes)
    assert "stopped at step" in said[0]
    done = lines(output)[-1]["step"]
    assert done % 8 == 0
    finished(*pair(output, pairs, f"steps={done + 2}", "--resume"))
    assert [line["step"] for line in lines(output)][-3:] == [done + 1, done + 2, done + 2]


@pytest.mark.parametrize("told", [None, "48"])
def test_cpu_devices_have_threads_to_wait_in(told, monkeypatch):
    """Two hosts once stood still: all four threads of one waited for collectives that the other had not begun."""
    monkeypatch.setenv("PJRT_NPROC", told or "")
    if told is None:
        monkeypatch.delenv("PJRT_NPROC")
    begun = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: begun.append(os.environ["PJRT_NPROC"]))
    connect()
    assert begun == [told] if told else int(begun[0]) >= 32


def test_other_hosts_that_nobody_named(pairs, tmp_path):
    process = started(tmp_path / "run", pairs, "--several-hosts", devices=1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2, said
    assert "JAX_COORDINATOR_ADDRESS" in said
