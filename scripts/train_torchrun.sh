#!/bin/bash
# One run on several nodes without a scheduler: the same command on each of them.
#   NODES=2 HEAD=first-node scripts/train_torchrun.sh --exp capture --data product1m --data.batch_size=4
# HEAD is any one of the nodes; PROCESSES per node is the number of its GPUs, unless given. One node needs neither.
set -euo pipefail

if [[ "${NODES:-1}" -gt 1 && -z "${HEAD:-}" ]]; then
  echo "NODES=$NODES wants HEAD=<name of one of the nodes>, the same on all of them" >&2
  exit 2
fi
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
  --nnodes="${NODES:-1}" --nproc-per-node="${PROCESSES:-gpu}" \
  --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-localhost}:${PORT:-29500}" --rdzv-id="${RUN:-train}" \
  -m experiments fit "$@"
