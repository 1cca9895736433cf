#!/usr/bin/env bash
# Table 3: VIGOR, rows same (same-area) and cross (cross-area).
#
#   FRGEO_DATA=DIR bash scripts/table3_vigor.sh          trains and evaluates with the published settings
#   EVAL=1 bash scripts/table3_vigor.sh --data-root DIR  evaluates the weights in ./result_vigor and ./result_vigor_cross
#   SMOKE=1 bash scripts/table3_vigor.sh                 all steps with small networks on a small procedural city
#
# Other variables and arguments: see scripts/table_rows.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

same() { train_and_evaluate vigor --dataset vigor $convnext; }
cross() { train_and_evaluate vigor_cross --dataset vigor --cross $convnext; }

smoke_city vigor
rows same cross
