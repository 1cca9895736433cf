#!/usr/bin/env bash
# Limited fields of view on CVUSA (DATASET=cvact: CVACT_val): 70, 90, 180 and 360 degrees, with panoramas centred on north
# (row aligned) or turned by an unknown angle (row unknown). A model is trained for each.
#
#   FRGEO_DATA=DIR bash scripts/fov.sh                  trains and evaluates with the published settings
#   ROWS=unknown FOVS="90 180" bash scripts/fov.sh      some of them
#   EVAL=1 bash scripts/fov.sh --data-root DIR          evaluates the weights in ./result_cvusa_fov90_aligned ...
#   SMOKE=1 bash scripts/fov.sh                         all steps with small networks on a small procedural city
#
# FRM cuts a panorama's feature map into four strips. 70 degrees of 512 pixels leave three columns of ConvNeXt's map, so
# that field of view is cut out of panoramas of 128 x 768. Other variables and arguments: see scripts/table_rows.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/table_rows.sh

: "${DATASET:=cvusa}" "${FOVS:=70 90 180 360}"

fields() { # ORIENTATION
    local fov name flags
    for fov in $FOVS; do
        name=${DATASET}_fov${fov}_$1
        flags="--dataset $DATASET --fov $fov --orientation $1 $convnext"
        [ "$fov" -ge 90 ] || flags+=" --ground-size 128 768"
        train "$name" $(recipe "$DATASET") $flags
        evaluate "$name" "$DATASET, $fov degrees, $1" "$name" $flags
    done
}
aligned() { fields aligned; }
unknown() { fields unknown; }

smoke_city "$DATASET"
rows aligned unknown
