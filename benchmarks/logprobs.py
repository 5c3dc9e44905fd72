"""Throughput of token log-probabilities and whole preference losses: `mi-align bench`, with peers in the same process.

    python benchmarks/logprobs.py --write                       the toy shape, float32, about 20 minutes on 2 cores
    python benchmarks/logprobs.py --write --shapes gpt2:2048    what `mi-align bench --help` lists
    python benchmarks/logprobs.py --peers torch,torch.compile   some of the peers only
    python benchmarks/logprobs.py --quick

A peer that is not installed, or cannot compute a task, has a row that says so. The memory of torch's rows is the growth
of a process's resident set on a CPU, in a process of its own, and the allocator's peak on a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import tyro
from liger_peers import LIGER
from tokamax_peers import TOKAMAX
from torch_peers import TOKEN_WAYS, contender, print_resident

from mi_align import checks
from mi_align.benchmark import harness
from mi_align.benchmark.program import Contender
from mi_align.cli.bench import Bench, bench

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options(Bench):
    """`mi-align bench` with peers beside it."""

    write: bool = False
    """Write into benchmarks/results/<device>/."""
    peers: str | None = None
    """Comma-separated: torch, torch.compile, cut_cross_entropy, liger, tokamax, tokamax_chunked. Default: all."""
    name: str = "logprobs"
    """Of the files that are written, without their endings."""


#: Everything in torch, by whatever name `--resident` asks for it.
IN_TORCH = (*TOKEN_WAYS, LIGER)
PEERS = (*map(contender, IN_TORCH), *TOKAMAX)


def chosen_peers(names: str | None) -> tuple[Contender, ...]:
    """Those of comma-separated names; all where nothing is said."""
    known = {peer.name: peer for peer in PEERS}
    if names is None:
        return PEERS
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise checks.unknown_name("peer", name, known)
    return tuple(known[name] for name in wanted)


def main() -> int:
    """Measure beside the peers, and write where asked to."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    if options.write and options.output is None:
        options = dataclasses.replace(options, output=RESULTS / harness.device_name())
    try:
        return bench(options, chosen_peers(options.peers), name=options.name)
    except (ValueError, OSError) as error:
        print(f"logprobs.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if sys.argv[1:2] == ["--resident"]:
        print_resident(IN_TORCH, sys.argv[2])
    else:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or a second compilation is a look-up
        harness.keep_freed_memory()
        sys.exit(main())
