#!/usr/bin/env bash
# From nothing to retrieval: install what is missing, make a procedural city, train FRGeo on it from random weights, find
# held-out places among 500 aerial images, and draw the results. Arguments are passed to the training command.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements.txt

data=data/quickstart
out=runs/quickstart
for ((i = 1; i <= $#; i++)); do # --save_path and --data-root, if they are among the arguments
    next=$((i + 1))
    case ${!i} in
        --save_path | --save-path) out=${!next:-$out} ;;
        --save_path=* | --save-path=*) out=${!i#*=} ;;
        --data-root) data=${!next:-$data} ;;
        --data-root=*) data=${!i#*=} ;;
    esac
done
say() { printf '\n== %s\n' "$*"; }
run() { echo "+ ${*/#"$PYTHON"/python}"; "$@"; }

say "A city: 3,000 places to train on, 500 others to find (skipped if it exists)"
run "$PYTHON" scripts/make_city.py --layout cvusa --out "$data" --train 3000 --test 500 --seed 0

say "Training"
run "$PYTHON" -u train.py --dataset cvusa --data-root "$data" --save_path "$out" \
    --arch test_resnet --pretrained none --ground-size 64 256 --aerial-size 128 128 --cache data/cache \
    --op adamw --lr 0.002 --wd 0.03 --cos --mining --batch-size 16 --augment \
    --epochs 12 --eval-every 2 --print-freq 50 --seed 0 "$@"

say "Evaluation"
run "$PYTHON" train.py --dataset cvusa --data-root "$data" --save_path "$out" -e
run "$PYTHON" scripts/plot_retrieval.py "$out"

say "Places never seen in training"
"$PYTHON" scripts/report.py "this run=$out"
echo
echo "Look at $out/retrieval.png and $out/recall.png."
