# Sourced before each command of gigapipe, on a node and where snakemake runs: what torch, MPI and the network need.
# Not tried there.

# The modules that torch and mpi4py were installed with:
# module load python cray-mpich cudatoolkit

# Slingshot's interfaces, where ranks meet and NCCL finds its peers.
export NCCL_SOCKET_IFNAME=hsn
