#!/usr/bin/env bash
# The paper's claims on the procedural city: FRM against one global average, WBL against the soft-margin triplet, ASAM
# against AdamW at equal numbers of gradient evaluations, mining against none, and what geometry is worth: panoramas
# turned at random. Three seeds each, equal budgets, in CVUSA's layout and in VIGOR's, same- and cross-area.
#
#   bash scripts/ablation_city.sh            sizes for 2 cores without a GPU (an hour)
#   bash scripts/ablation_city.sh --full     ConvNeXt-T at the paper's image sizes, for a GPU
#
# JOBS=N runs N trainings at a time (default: 2; 1 with --full). Interrupted and run again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/city_grid.sh

make_cvusa
make_vigor

grid --name geometry --data "$cvusa" --variant "$base" \
    --variant "panoramas turned at random=--op adamw --mining --orientation unknown"

# A step of ASAM takes two gradients: in half the epochs it evaluates as many.
grid --name claims --data "$cvusa" --data "$same" --data "$cross" \
    --variant "$base" \
    --variant "one global average=--op adamw --mining --pool gap" \
    --variant "soft-margin triplet=--op adamw --mining --loss soft-triplet" \
    --variant "ASAM, half the epochs=--op sam --asam --rho 2.5 --mining --epochs $((epochs / 2))" \
    --variant "no mining=--op adamw"
