#!/usr/bin/env bash
# Table 2: CVACT_val and CVACT_test. Rows: frgeo, frgeo_test (ConvNeXt-T), deit, deit_test (FRM and WBL on TransGeo's
# stage 1, DeiT-S/16). The test rows evaluate what frgeo and deit have trained, by exact pair and by any tile within 5 m;
# they need ANU_data_test.
#
#   FRGEO_DATA=DIR bash scripts/table2_cvact.sh                        trains and evaluates, published settings
#   ROWS="frgeo deit" bash scripts/table2_cvact.sh --data-root DIR     without the test split
#   EVAL=1 bash scripts/table2_cvact.sh --data-root DIR                evaluates the weights in ./result_cvact ...
#   SMOKE=1 bash scripts/table2_cvact.sh                               the chain on a small procedural city
#
# scripts/table_rows.sh says what else it listens to.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

frgeo() {
    train cvact $(recipe cvact) --dataset cvact $convnext
    evaluate cvact cvact cvact --dataset cvact $convnext
}

frgeo_test() {
    evaluate cvact_test cvact_test cvact --dataset cvact --eval-split test $convnext
}

deit() {
    train cvact_deit $(recipe cvact) --dataset cvact $deit
    evaluate cvact_deit cvact_deit cvact_deit --dataset cvact $deit
}

deit_test() {
    evaluate cvact_test_deit cvact_test_deit cvact_deit --dataset cvact --eval-split test $deit
}

smoke_city cvact
rows frgeo deit frgeo_test deit_test
