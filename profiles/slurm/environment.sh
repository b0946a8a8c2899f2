# Sourced before each command of gigapipe, on a node and where snakemake runs: what torch, MPI and the network need.

# module load cuda openmpi
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0 # through which network (docs/clusters.md)
