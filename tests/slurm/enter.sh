#!/bin/bash
# Run a command where the Slurm is that up.sh started: enter.sh FOLDER COMMAND…
folder=$1
shift
exec nsenter --mount --target "$(cat "$folder/namespace.pid")" bash -c 'cd "$0" && exec "$@"' "$PWD" "$@"
