#!/usr/bin/env bash
# From one data set or city to another. Rows: pairs (CVUSA's weights on CVACT_val, and back), cities (VIGOR: trained in
# one city, evaluated in each; same-area lists, that city's gallery).
#
#   FRGEO_DATA=DIR bash scripts/transfer.sh                          DIR holds all data sets; trains what is missing
#   ROWS=cities CITIES="NewYork Chicago" bash scripts/transfer.sh    two cities instead of four
#   EVAL=1 bash scripts/transfer.sh --data-root DIR                  the weights in ./result_cvusa, ./result_cvact ...
#   SMOKE=1 bash scripts/transfer.sh                                 all steps, small, on small procedural cities
#
# Other variables and arguments: see scripts/table_rows.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

: "${CITIES:=NewYork Seattle SanFrancisco Chicago}"
[ -z "${SMOKE:-}" ] || CITIES="NewYork Seattle"

pairs() {
    train cvusa $(recipe cvusa) --dataset cvusa $convnext
    train cvact $(recipe cvact) --dataset cvact $convnext
    evaluate cvusa_on_cvact "CVUSA to CVACT_val" cvusa --dataset cvact $convnext
    evaluate cvact_on_cvusa "CVACT to CVUSA" cvact --dataset cvusa $convnext
}

cities() {
    local from to
    for from in $CITIES; do
        train "vigor_$from" $(recipe vigor) --dataset vigor --vigor-cities "$from" $convnext
        for to in $CITIES; do
            evaluate "vigor_${from}_on_$to" "$from to $to" "vigor_$from" --dataset vigor --vigor-cities "$to" $convnext
        done
    done
}

smoke_city cvusa cvact vigor
rows pairs cities
