#!/usr/bin/env bash
# Checks correctness and times every kernel on whatever accelerator JAX finds; a short table last.
#
#   benchmarks/device.sh [FOLDER]     JSON and Markdown go to FOLDER (default: benchmarks/results/<device>/)
#
# PYTHON names an interpreter that has jax, flax, optax, jaxtyping, numpy, tyro, rich and matplotlib, and for the tests pytest,
# pytest-xdist, mpmath, hypothesis and chex. torch, trl, liger_kernel and cut_cross_entropy are peers where they are there.
# On an H100: tests 3 minutes, steps 2, log-probabilities 3 a shape. Most of it is compilation, and float64 on the host.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}

"$python" -c 'import jax; print(*jax.devices())'
# Several tests at a time share the device's memory; their float32 formulas want float32 products, not TF32.
XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest -q -n 8 -m "not slow" \
    -p no:cacheprovider -p no:benchmark tests/conformance/test_truth.py tests/test_logprobs.py tests/test_logprobs_chunked.py \
    tests/test_logprobs_pallas_ways.py tests/test_in_batch.py tests/test_models_attention.py
"$python" benchmarks/device_step.py --write ${1:+--output "$1"}
if "$python" -c 'import trl, torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    "$python" benchmarks/device_trl.py --write ${1:+--output "$1"}
fi
"$python" benchmarks/objectives.py --sizes 1e4 1e6 1e7 1e8 --write ${1:+--output "$1"}
# What JAX leaves of the memory is torch's. Liger, where it is installed, has DPO without a given reference only.
XLA_PYTHON_CLIENT_MEM_FRACTION=.6 "$python" benchmarks/logprobs.py --budget 0.5 \
    --methods dpo,dpo_reference_free,mio,infonce_dpo,orpo,simpo,kto --write ${1:+--output "$1"}
