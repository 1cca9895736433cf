#!/usr/bin/env bash
# What later work showed to help, beyond the paper: each flag against the paper's recipe at equal cost (but one), on the
# procedural city in VIGOR's layout, cross-area, three seeds each. Two rows take away what the others have: a loss over the
# whole batch (on several processes: --gather), and semi-positives that are never negatives.
#
#   bash scripts/beyond.sh            sizes for 2 cores without a GPU (over an hour)
#   bash scripts/beyond.sh --full     ConvNeXt-T at the paper's image sizes, for a GPU
#
# JOBS=N runs N trainings at a time (default: 2; 1 with --full). Run an interrupted script again to continue. The data are
# those of ablation_city.sh; trainings are longer than there, so that regularisation can show.
set -euo pipefail
cd "$(dirname "$0")/.."
short_epochs=20
source scripts/city_grid.sh
runs=${runs/ablation/beyond}

# A wider network in fewer epochs. ResNet-10 has 5.4 times the multiply-adds: its row costs 1.3 times the others.
if [ "$name" = ablation_full ]; then
    wider="ConvNeXt-S in half the epochs=--op adamw --mining --arch convnext_small --epochs $((epochs / 2))"
    gathered="negatives of the whole batch=--op adamw --mining --tuple-size 32"
else
    wider="ResNet-10 in a quarter of the epochs=--op adamw --mining --arch resnet10t --epochs $((epochs / 4))"
    gathered="negatives of half the batch only=--op adamw --mining --tuple-size 8"
fi

make_vigor

grid --name beyond --data "$cross" \
    --variant "$base" \
    --variant "$gathered" \
    --variant "semi-positives may be negatives=--op adamw --mining --vigor-guard release" \
    --variant "label smoothing 0.1=--op adamw --mining --label-smoothing 0.1" \
    --variant "learned temperature=--op adamw --mining --learn-temperature" \
    --variant "mirror and quarter turns=--op adamw --mining --augment" \
    --variant "colour jitter 0.3=--op adamw --mining --colour-jitter 0.3" \
    --variant "patch dropout 0.15=--op adamw --mining --patch-dropout 0.15" \
    --variant "mining by coordinates for $((epochs / 4)) epochs=--op adamw --mining --coordinate-mining $((epochs / 4))" \
    --variant "weight average 0.99=--op adamw --mining --ema 0.99" \
    --variant "8 regions=--op adamw --mining --regions 8" \
    --variant "$wider"
