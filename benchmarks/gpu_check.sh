#!/bin/bash
# What one GPU can say of gigapipe (see gpu_check.py), in four parts of less than 10 minutes each:
#
#     benchmarks/gpu_check.sh exact|speed|stream|train [options of gpu_check.py]
#
# From a checkout, without network. It needs a torch from 2.11 on, built for the GPU, and nothing else; `train` needs the
# rest of gigapipe's dependencies, too. PYTHON is the interpreter, python by default; results are also kept in
# gpu_check/PART.log. The exit status is not zero if anything failed.
#
# Ranks that share the card send through the host's memory, by gloo, for NCCL refuses two of them on one GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?exact, speed, stream or train}
shift
python=${PYTHON:-python}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
mkdir -p gpu_check
failed=0

run() { # SECONDS COMMAND…
    timeout "$1" "$python" "${@:2}" 2>&1 | tee -a "gpu_check/$part.log"
    ((failed += ${PIPESTATUS[0]} != 0))
}

check() { # SECONDS PART OPTIONS…
    run "$1" benchmarks/gpu_check.py "${@:2}"
}

: > "gpu_check/$part.log"
run 60 -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "HIP", torch.version.hip, "cuDNN",
    torch.backends.cudnn.version(), "TF32 in convolutions", torch.backends.cudnn.allow_tf32, *(
    torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))'
case $part in
exact)
    for ranks in 1 2 4; do
        run 190 -m torch.distributed.run --nproc-per-node $ranks benchmarks/gpu_check.py exact "$@"
    done ;;
speed)
    for network in resnet18 resnet50; do
        check 120 speed --network $network "$@"
        check 150 rank --network $network "$@"
    done ;;
stream)
    check 280 stream --memory 40e9 "$@"
    check 280 stream --memory 40e9 --host-memory 64000000000 "$@"
    check 280 stream --memory 70e9 --network resnet50 --norm frozen "$@" ;;
train) check 570 train "$@" ;;
*) echo "no part $part: exact, speed, stream or train" >&2; exit 2 ;;
esac
echo "$failed of its runs failed" | tee -a "gpu_check/$part.log"
exit $((failed > 0))
