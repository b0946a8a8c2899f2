# Sourced before each command of gigapipe, on nodes and where snakemake runs: settings of torch, MPI and the network.
# From OLCF's guide to PyTorch on Frontier, not tested there.

# The modules with which torch and mpi4py were installed (MPICC="cc -shared" pip install --no-binary=mpi4py mpi4py):
# module load PrgEnv-gnu rocm craype-accel-amd-gfx90a libfabric

export GIGAPIPE_MPI_FIRST=1 # MPI starts before torch is imported

# RCCL uses libfabric only with AMD's plugin, otherwise TCP sockets. Build aws-ofi-rccl, and give its path.
# export AWS_OFI_RCCL=/ccs/proj/abc123/aws-ofi-rccl
if [ -n "${AWS_OFI_RCCL:-}" ]; then
    export LD_LIBRARY_PATH="$AWS_OFI_RCCL/lib:${LD_LIBRARY_PATH:-}"
elif [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "environment.sh: AWS_OFI_RCCL is not set: between nodes RCCL takes TCP sockets" >&2
fi
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3 GLOO_SOCKET_IFNAME=hsn0
export NCCL_NET_GDR_LEVEL=3 NCCL_CROSS_NIC=1

# Slingshot's libfabric.
export FI_MR_CACHE_MONITOR=kdreg2 FI_CXI_DEFAULT_CQ_SIZE=131072 FI_CXI_DEFAULT_TX_SIZE=2048
export FI_CXI_RX_MATCH_MODE=hybrid FI_CXI_RDZV_PROTO=alt_read

# MIOpen's caches on the node: their locks fail on home and Lustre ("Disk I/O Errors").
export MIOPEN_USER_DB_PATH="/tmp/${USER:-gigapipe}-miopen-${SLURM_JOB_ID:-0}"
export MIOPEN_CUSTOM_CACHE_DIR="$MIOPEN_USER_DB_PATH"
