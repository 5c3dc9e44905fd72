#!/usr/bin/env bash
# Checks correctness and times every kernel on whatever accelerator JAX finds; a short table last.
#
#   benchmarks/device.sh [FOLDER]     JSON and Markdown go to FOLDER (default: benchmarks/results/<device>/)
#
# PYTHON names an interpreter that has jax, flax, optax, jaxtyping, numpy, tyro, rich and matplotlib, and for the tests pytest,
# mpmath, hypothesis and chex.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

"$python" -c 'import jax; print(*jax.devices())'
"$python" -m pytest -q -p no:cacheprovider tests/conformance/test_truth.py tests/test_logprobs.py \
    tests/test_logprobs_chunked.py tests/test_logprobs_pallas_ways.py tests/test_in_batch.py \
    tests/test_models_attention.py
"$python" benchmarks/device_step.py --write ${1:+--output "$1"}
"$python" benchmarks/objectives.py --sizes 1e4 1e6 1e7 1e8 --write ${1:+--output "$1"}
# Liger, where it is installed, has DPO without a given reference only.
"$python" benchmarks/logprobs.py --methods dpo,dpo_reference_free,mio,infonce_dpo,orpo,simpo,kto --write ${1:+--output "$1"}
