# Sourced before each command of gigapipe, on nodes and where snakemake runs: settings of torch, MPI and the network.

# module load cuda openmpi
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0 # the network to use (docs/clusters.md)
