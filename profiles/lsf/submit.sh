#!/bin/bash
# bsub says "Job <123> is submitted to queue <batch>."; Snakemake wants "123".
set -euo pipefail
mkdir -p .snakemake/lsf
said=$(bsub "$@")
[[ $said =~ Job\ \<([0-9]+)\> ]] || { echo "no job's number in what bsub says: $said" >&2; exit 1; }
echo "${BASH_REMATCH[1]}"
