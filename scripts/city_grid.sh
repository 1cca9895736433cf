# Sourced by ablation_city.sh and beyond.sh: the city, the sizes, and the grid of trainings on it. They may set
# short_epochs (epochs without --full; default: 8) before, and runs (folder of the grid's runs) afterwards.
#
#   --full      ConvNeXt-T at the paper's image sizes, for a GPU; without it sizes for 2 cores
#   JOBS=N      trainings at a time (default: 2; 1 with --full)

source scripts/setup.sh requirements.txt

if [ "${1:-}" = --full ]; then
    name=ablation_full jobs=${JOBS:-1} epochs=20 train=8000 test=2000 panoramas=2000 tiles=1200
    common="--arch convnext_tiny --layer-scale 0.1 --lr 0.0001 --batch-size 32 --tuple-size 16 --amp bf16"
elif [ $# = 0 ]; then
    name=ablation jobs=${JOBS:-2} epochs=${short_epochs:-8} train=1000 test=500 panoramas=550 tiles=300
    common="--arch test_resnet --ground-size 64 256 --aerial-size 128 128 --lr 0.002 --batch-size 16 --workers 0"
else
    echo "usage: bash $0 [--full]" >&2
    exit 2
fi
common+=" --epochs $epochs --pretrained none --wd 0.03 --cos --eval-every 1000 --cache runs/$name/cache"
data=data/$name runs=runs/$name

cvusa="CVUSA=--dataset cvusa --data-root ${data}_cvusa"
same="VIGOR same-area=--dataset vigor --data-root ${data}_vigor"
cross="VIGOR cross-area=--dataset vigor --cross --data-root ${data}_vigor"
base="FRM, WBL, AdamW, mining=--op adamw --mining"

make_cvusa() { "$PYTHON" scripts/make_city.py --layout cvusa --out "${data}_cvusa" --train $train --test $test --seed 1; }
make_vigor() {
    "$PYTHON" scripts/make_city.py --layout vigor --out "${data}_vigor" --cities 4 --panoramas $panoramas --tiles $tiles \
        --seed 1
}
grid() { "$PYTHON" scripts/run_grid.py --out "$runs" --jobs "$jobs" --seeds 0 1 2 --common "$common" "$@"; }
