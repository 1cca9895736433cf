#!/usr/bin/env bash
# The paper's claims on the procedural city: FRM against one global average, WBL against the soft-margin triplet, ASAM
# against AdamW at equal numbers of gradient evaluations, mining against none, and what geometry is worth: panoramas
# turned at random. Three seeds each, equal budgets, in CVUSA's layout and in VIGOR's, same- and cross-area.
#
#   bash scripts/ablation_city.sh            sizes for 2 cores without a GPU (over an hour)
#   bash scripts/ablation_city.sh --full     ConvNeXt-T at the paper's image sizes, for a GPU
#
# JOBS=N runs N trainings at a time (default: 2; 1 with --full). Interrupted and run again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh requirements.txt

if [ "${1:-}" = --full ]; then
    name=ablation_full jobs=${JOBS:-1} epochs=20 train=8000 test=2000 panoramas=2000 tiles=1200
    common="--arch convnext_tiny --layer-scale 0.1 --lr 0.0001 --batch-size 32 --tuple-size 16 --amp bf16"
elif [ $# = 0 ]; then
    name=ablation jobs=${JOBS:-2} epochs=8 train=1000 test=500 panoramas=550 tiles=300
    common="--arch test_resnet --ground-size 64 256 --aerial-size 128 128 --lr 0.002 --batch-size 16 --workers 0"
else
    echo "usage: bash scripts/ablation_city.sh [--full]" >&2
    exit 2
fi
common+=" --epochs $epochs --pretrained none --wd 0.03 --cos --eval-every 1000 --cache runs/$name/cache"
data=data/$name

"$PYTHON" scripts/make_city.py --layout cvusa --out "${data}_cvusa" --train $train --test $test --seed 1
"$PYTHON" scripts/make_city.py --layout vigor --out "${data}_vigor" --cities 4 --panoramas $panoramas --tiles $tiles --seed 1

cvusa="CVUSA=--dataset cvusa --data-root ${data}_cvusa"
same="VIGOR same-area=--dataset vigor --data-root ${data}_vigor"
cross="VIGOR cross-area=--dataset vigor --cross --data-root ${data}_vigor"
base="FRM, WBL, AdamW, mining=--op adamw --mining"
grid() { "$PYTHON" scripts/run_grid.py --out "runs/$name" --jobs "$jobs" --seeds 0 1 2 --common "$common" "$@"; }

grid --name geometry --data "$cvusa" --variant "$base" \
    --variant "panoramas turned at random=--op adamw --mining --orientation unknown"

# A step of ASAM takes two gradients: in half the epochs it evaluates as many.
grid --name claims --data "$cvusa" --data "$same" --data "$cross" \
    --variant "$base" \
    --variant "one global average=--op adamw --mining --pool gap" \
    --variant "soft-margin triplet=--op adamw --mining --loss soft-triplet" \
    --variant "ASAM, half the epochs=--op sam --asam --rho 2.5 --mining --epochs $((epochs / 2))" \
    --variant "no mining=--op adamw"
