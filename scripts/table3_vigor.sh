#!/usr/bin/env bash
# Table 3: VIGOR, rows same (same-area) and cross (cross-area).
#
#   FRGEO_DATA=DIR bash scripts/table3_vigor.sh          trains and evaluates, published settings
#   EVAL=1 bash scripts/table3_vigor.sh --data-root DIR  evaluates the weights in ./result_vigor and ./result_vigor_cross
#   SMOKE=1 bash scripts/table3_vigor.sh                 the chain on a small procedural city
#
# scripts/table_rows.sh says what else it listens to.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

same() {
    train vigor $(recipe vigor) --dataset vigor $convnext
    evaluate vigor vigor vigor --dataset vigor $convnext
}

cross() {
    train vigor_cross $(recipe vigor) --dataset vigor --cross $convnext
    evaluate vigor_cross vigor_cross vigor_cross --dataset vigor --cross $convnext
}

smoke_city vigor
rows same cross
