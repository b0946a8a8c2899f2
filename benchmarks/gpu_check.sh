#!/bin/bash
# The checks that need a GPU: exactness on CUDA tensors with 1 rank and with 2 ranks that share the card (gloo, through
# the host's memory), and the step time and memory of float32 and bf16 at 4096 x 4096 against plain torch.
#
#     benchmarks/gpu_check.sh [PYTHON]
#
# PYTHON is an interpreter with a CUDA build of torch; nothing but torch is needed beside this repository.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}
"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "no GPU, or a torch without CUDA")'
export PYTHONPATH=$PWD
"$python" benchmarks/gpu_check.py
"$python" -m torch.distributed.run --nproc-per-node 2 benchmarks/gpu_check.py
