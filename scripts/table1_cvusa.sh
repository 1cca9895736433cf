#!/usr/bin/env bash
# Table 1: CVUSA. Rows: frgeo (ConvNeXt-T), deit (FRM and WBL on TransGeo's stage 1, DeiT-S/16).
#
#   FRGEO_DATA=DIR bash scripts/table1_cvusa.sh          trains and evaluates with the published settings
#   EVAL=1 bash scripts/table1_cvusa.sh --data-root DIR  evaluates the weights in ./result_cvusa and ./result_cvusa_deit
#   SMOKE=1 bash scripts/table1_cvusa.sh                 all steps with small networks on a small procedural city
#
# Other variables and arguments: see scripts/table_rows.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

frgeo() { train_and_evaluate cvusa --dataset cvusa $convnext; }
deit() { train_and_evaluate cvusa_deit --dataset cvusa $deit; }

smoke_city cvusa
rows frgeo deit
