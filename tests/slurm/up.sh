#!/bin/bash
# Start a real Slurm of two nodes on this one machine, as root: tests/slurm/up.sh FOLDER; down.sh FOLDER stops it.
#
# Without systemd, cgroups and accounting: what it shows is how jobs are submitted, spread over nodes, signalled, and
# killed at their limits, not that they are confined. Jobs look for their configuration in /etc/slurm and nowhere else,
# so it has a mount namespace of its own, in which that is FOLDER/etc: enter.sh FOLDER COMMAND… runs a command there.
# Any number may run side by side, also beside a Slurm that the machine has.
set -euo pipefail
folder=$(realpath "$1")
here=$(dirname "$(realpath "$0")")

[ "$(id -u)" = 0 ] || { echo "Slurm for tests must be started by root" >&2; exit 1; }
install() {
    command -v slurmctld slurmd munged > /dev/null && return
    command -v apt-get > /dev/null || { echo "no Slurm here, and no apt-get to install it" >&2; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurmd slurmctld slurm-client munge; } > /dev/null ||
        { echo "Slurm cannot be installed (apt-get install slurmd slurmctld slurm-client munge)" >&2; return 1; }
}
(flock 9 && install) 9> /var/lock/gigapipe-tests-packages # one at a time, as conftest.py does
mkdir -p "$folder"/{etc,state,log,spool-node1,spool-node2} /etc/slurm

unshare --mount --propagation private bash -c "mount --bind '$folder/etc' /etc/slurm && exec sleep infinity" > /dev/null 2>&1 &
echo $! > "$folder/namespace.pid"
host=$(hostname -s)
read -r controller node1 node2 < <(python3 -c '
import socket
ends = [socket.socket() for _ in range(3)]
for end in ends:
    end.bind(("127.0.0.1", 0))
print(*(end.getsockname()[1] for end in ends))')
cat > "$folder/etc/slurm.conf" << CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.sock
SlurmctldPort=$controller
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/log/slurmctld.log
StateSaveLocation=$folder/state
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmdLogFile=$folder/log/slurmd-%n.log
SlurmdSpoolDir=$folder/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
MinJobAge=3600
KillWait=${KILL_WAIT:-30}
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$node1 CPUs=${CPUS:-2} RealMemory=${MEMORY:-8000} State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$node2 CPUs=${CPUS:-2} RealMemory=${MEMORY:-8000} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=02:00:00 State=UP OverSubscribe=NO
CONF
dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
chmod 400 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
"$here/enter.sh" "$folder" slurmctld -c
for node in node1 node2; do "$here/enter.sh" "$folder" slurmd -N "$node"; done
for _ in $(seq 120); do
    if [ "$("$here/enter.sh" "$folder" sinfo --noheader --format %T | sort -u)" = idle ]; then
        exit
    fi
    sleep 0.25
done
echo "the nodes do not come up: see $folder/log" >&2
exit 1
