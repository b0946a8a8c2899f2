#!/bin/bash
# Stop what up.sh started, and remove it: tests/slurm/down.sh FOLDER
folder=$1
for file in "$folder"/{slurmd-node1,slurmd-node2,slurmctld,munged,namespace}.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid"
    for _ in $(seq 100); do # slurmctld writes its state before it ends
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.1
    done
done
rm -rf "$folder"
