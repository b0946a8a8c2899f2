#!/bin/bash
# Stop what up.sh started, and remove it: tests/slurm/down.sh [FOLDER]
folder=${1:-/tmp/gigapipe-slurm}
for pid in "$folder"/{slurmd-node1,slurmd-node2,slurmctld,munged}.pid; do
    [ -f "$pid" ] && kill "$(cat "$pid")"
done
rm -rf "$folder" /etc/slurm/slurm.conf
