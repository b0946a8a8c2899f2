# Sourced before each command of gigapipe, on nodes and where snakemake runs: settings of torch, MPI and the network.
# Not tested there.

# The modules with which torch and mpi4py were installed:
# module load python cray-mpich cudatoolkit

# Slingshot's interfaces, for the connection of ranks and for NCCL.
export NCCL_SOCKET_IFNAME=hsn
