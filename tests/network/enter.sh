#!/bin/bash
# What mpiexec calls in place of ssh: enter.sh [-x] HOST COMMAND…, on a host that link.py made.
while [[ $1 == -* ]]; do shift; done
host=$1
shift
exec ip netns exec "$TEST_HOSTS-$host" unshare --uts bash -c "hostname host-${host##*.}; $*"
