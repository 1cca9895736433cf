#!/usr/bin/env bash
# The paper's claims on the procedural city: FRM against one global average, WBL against the soft-margin triplet, ASAM
# against AdamW at equal numbers of gradient evaluations, mining against none; panoramas turned at random, other numbers of
# regions and other scales of similarities. Three seeds each, equal budgets, in CVUSA's layout and (the claims) in VIGOR's,
# same- and cross-area.
#
#   bash scripts/ablation_city.sh            sizes for 2 cores without a GPU (an hour)
#   bash scripts/ablation_city.sh --full     ConvNeXt-T at the paper's image sizes, for a GPU
#
# JOBS=N runs N trainings at a time (default: 2; 1 with --full). Run an interrupted script again to continue.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/city_grid.sh

make_cvusa
make_vigor

grid --name geometry --data "$cvusa" --variant "$base" \
    --variant "panoramas turned at random=--op adamw --mining --orientation unknown"

# Regions of FRM (the paper: 4), and the scale of similarities in WBL (the paper: 10).
grid --name parts --data "$cvusa" --variant "$base" \
    --variant "2 regions=--op adamw --mining --regions 2" \
    --variant "8 regions=--op adamw --mining --regions 8" \
    --variant "alpha 5=--op adamw --mining --alpha 5" \
    --variant "alpha 20=--op adamw --mining --alpha 20"

# A step of ASAM takes two gradients: half the epochs have equal numbers. The paper's radius, 2.5, is shared by 55.64
# million weights; for the 0.75 million of the small network the same change of a weight is a radius of 0.3 (the radius
# grows with the root of their number).
fitted=()
[ "$name" = ablation_full ] ||
    fitted=(--variant "ASAM of radius 0.3, half the epochs=--op sam --asam --rho 0.3 --mining --epochs $((epochs / 2))")
grid --name claims --data "$cvusa" --data "$same" --data "$cross" \
    --variant "$base" \
    --variant "one global average=--op adamw --mining --pool gap" \
    --variant "soft-margin triplet=--op adamw --mining --loss soft-triplet" \
    --variant "ASAM, half the epochs=--op sam --asam --rho 2.5 --mining --epochs $((epochs / 2))" \
    "${fitted[@]}" \
    --variant "no mining=--op adamw"
