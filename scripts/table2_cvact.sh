#!/usr/bin/env bash
# Table 2: CVACT_val and CVACT_test. Rows: frgeo, frgeo_test (ConvNeXt-T), deit, deit_test (FRM and WBL on TransGeo's
# stage 1, DeiT-S/16). The test rows evaluate the weights of frgeo and deit, by exact pair and by any tile within 5 m;
# they need ANU_data_test.
#
#   FRGEO_DATA=DIR bash scripts/table2_cvact.sh                        trains and evaluates with the published settings
#   ROWS="frgeo deit" bash scripts/table2_cvact.sh --data-root DIR     without the test split
#   EVAL=1 bash scripts/table2_cvact.sh --data-root DIR                evaluates the weights in ./result_cvact ...
#   SMOKE=1 bash scripts/table2_cvact.sh                               all steps, small, on a small procedural city
#
# Other variables and arguments: see scripts/table_rows.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

frgeo() { train_and_evaluate cvact --dataset cvact $convnext; }
frgeo_test() { evaluate cvact_test cvact_test cvact --dataset cvact --eval-split test $convnext; }
deit() { train_and_evaluate cvact_deit --dataset cvact $deit; }
deit_test() { evaluate cvact_test_deit cvact_test_deit cvact_deit --dataset cvact --eval-split test $deit; }

smoke_city cvact
rows frgeo deit frgeo_test deit_test
