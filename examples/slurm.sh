#!/bin/bash
# A whole study on several nodes: Ray starts on every node of the allocation, the study runs on the first, Ray stops.
# A job that runs out of time loses its current trials; submitting the same script again goes on with the rest.
#   sbatch examples/slurm.sh +experiment=in_the_wild
#SBATCH --job-name=mergebench
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --tasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
shared="${MERGEBENCH_SHARED:-$SLURM_SUBMIT_DIR}" # a folder that every node sees

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  mergebench sweep "$@" executor=ray executor.address=auto "store=$shared/store" "runs=$shared/runs"
