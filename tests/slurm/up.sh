#!/bin/bash
# Start a real Slurm of two nodes on this one machine, as root: tests/slurm/up.sh [FOLDER]; down.sh stops it.
#
# Without systemd, cgroups and accounting: what it shows is how jobs are submitted, spread over nodes, signalled, and
# killed at their limits, not that they are confined. It takes /etc/slurm, for jobs forget where else a
# configuration is, and refuses to where another Slurm has it.
set -euo pipefail
folder=${1:-/tmp/gigapipe-slurm}
mark="# of gigapipe's tests"

[ "$(id -u)" = 0 ] || { echo "Slurm for tests must be started by root" >&2; exit 1; }
if [ -e /etc/slurm/slurm.conf ] && ! grep -q "^$mark" /etc/slurm/slurm.conf; then
    echo "this machine has a Slurm of its own: /etc/slurm/slurm.conf" >&2
    exit 1
fi
if ! command -v slurmctld slurmd munged > /dev/null; then
    command -v apt-get > /dev/null || { echo "no Slurm here, and no apt-get to install it" >&2; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurmd slurmctld slurm-client munge; } > /dev/null ||
        { echo "Slurm cannot be installed (apt-get install slurmd slurmctld slurm-client munge)" >&2; exit 1; }
fi

mkdir -p "$folder"/{state,log,spool-node1,spool-node2} /etc/slurm
host=$(hostname -s)
cat > /etc/slurm/slurm.conf << CONF
$mark
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.sock
SlurmctldPort=16817
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
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=${CPUS:-2} RealMemory=${MEMORY:-8000} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=02:00:00 State=UP OverSubscribe=NO
CONF
if [ ! -f "$folder/munge.key" ]; then
    dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge.key"
fi
[ -S "$folder/munge.sock" ] || munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
slurmctld -c
for node in node1 node2; do slurmd -N "$node"; done
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format %T | sort -u)" = idle ]; then
        sinfo -N
        exit
    fi
    sleep 0.5
done
echo "the nodes do not come up: see $folder/log" >&2
exit 1
