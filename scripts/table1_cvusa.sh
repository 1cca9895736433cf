#!/usr/bin/env bash
# Table 1: CVUSA. Rows: frgeo (ConvNeXt-T), deit (FRM and WBL on TransGeo's stage 1, DeiT-S/16).
#
#   FRGEO_DATA=DIR bash scripts/table1_cvusa.sh          trains and evaluates, published settings
#   EVAL=1 bash scripts/table1_cvusa.sh --data-root DIR  evaluates the weights in ./result_cvusa and ./result_cvusa_deit
#   SMOKE=1 bash scripts/table1_cvusa.sh                 the chain on a small procedural city
#
# scripts/table_rows.sh says what else it listens to.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

frgeo() {
    train cvusa $(recipe cvusa) --dataset cvusa $convnext
    evaluate cvusa cvusa cvusa --dataset cvusa $convnext
}

deit() {
    train cvusa_deit $(recipe cvusa) --dataset cvusa $deit
    evaluate cvusa_deit cvusa_deit cvusa_deit --dataset cvusa $deit
}

smoke_city cvusa
rows frgeo deit
