#!/usr/bin/env bash
# Train on several nodes under Slurm: sbatch --nodes 2 --gpus-per-node 4 scripts/slurm.sh FLAGS OF train.py
# Example flags: --dataset cvusa --data-root /shared/CVUSA --save_path /shared/result_cvusa --op sam --asam --rho 2.5 ...
# Data and --save_path lie where all nodes see them. Two minutes before its time is over the job writes a checkpoint and
# goes back into the queue; it continues from there, also after a node has failed.
#SBATCH --job-name=frgeo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ -f train.py ] || { echo "slurm.sh: $PWD holds no train.py; submit the job from the folder of FRGeo" >&2 && exit 2; }
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
python=$(command -v "${PYTHON:-python}") || { echo "slurm.sh: no python; activate its environment first" >&2 && exit 2; }

began=$(mktemp)
trap 'rm -f "$began"' EXIT
srun --kill-on-bad-exit=1 "$python" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \
    train.py --resume auto --checkpoint-minutes 15 "$@"
code=$?
[ $code = 0 ] && exit 0

# Again, if this attempt has written a checkpoint: a mistake in the call would fail for ever.
out=.
for ((i = 1; i <= $#; i++)); do
    next=$((i + 1))
    case ${!i} in
        --save_path | --save-path) out=${!next:-.} ;;
        --save_path=* | --save-path=*) out=${!i#*=} ;;
    esac
done
if [ -n "$(find "$out" -maxdepth 2 -name checkpoint.pth.tar -newer "$began" 2> /dev/null)" ]; then
    echo "slurm.sh: the training was stopped; job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
