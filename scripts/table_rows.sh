# Sourced by table1_cvusa.sh, table2_cvact.sh, table3_vigor.sh, transfer.sh and fov.sh: the functions of their rows.
#
#   EVAL=1      evaluate weights in ./result_<row>, such as released ones, without training
#   SMOKE=1     all steps with small networks on a small procedural city, in runs/smoke_<table>
#   ROWS="a b"  only these rows, by the names of their functions
#
# Arguments are passed to every call of train.py, after the rows' own: --data-root DIR, --workers 8, --cache DIR ...
# Run an interrupted script again to continue its training; finished trainings are not run again.

source scripts/setup.sh requirements.txt

arguments=(--multiprocessing-distributed --world-size 1 --rank 0 "$@")
folder=.
evaluated=()
say() { printf '\n== %s\n' "$*"; }
run() { echo "+ ${*/#"$PYTHON"/python}"; "$@"; }

if [ -n "${SMOKE:-}" ]; then
    folder=runs/smoke_$(basename "$0" .sh)
    [ -n "${EVAL:-}" ] || rm -rf "$folder"
    arguments=(--nprocs 1 "${arguments[@]}") # its batches are too small for many GPUs
else
    arguments=(--dist-url tcp://localhost:8080 "${arguments[@]}")
fi

# The published settings of a data set, with the published tuple on any number of GPUs: 16 pairs of 32, VIGOR 8 of 16.
recipe() {
    local common="--epochs 50 --op sam --wd 0.03 --mining --cos --asam --rho 2.5"
    case $1 in
        vigor*) echo "--lr 0.00005 --batch-size 16 --tuple-size 8 $common" ;;
        *) echo "--lr 0.0001 --batch-size 32 --tuple-size 16 $common" ;;
    esac
}
convnext="--dim 3072"
deit="--arch deit_small_distilled_patch16_224 --dim 1536" # TransGeo's stage 1

# With SMOKE=1: flags that make a call of train.py with these flags small. At width 512, 90 degrees have four columns.
smoke() {
    [ -n "${SMOKE:-}" ] || return 0
    local flags=" $* " arch=test_convnext width=512 dataset
    dataset=${flags#* --dataset } dataset=${dataset%% *}
    [[ $flags != *deit* ]] || arch=test_vit
    [[ $flags != *"--ground-size 128 768 "* ]] || width=768
    echo "--arch $arch --dim 256 --ground-size 32 $width --aerial-size 64 64 --workers 0 --data-root data/smoke_$dataset"
    [[ $flags == *" -e "* ]] || echo "--pretrained none --epochs 1 --batch-size 4 --tuple-size 4 --seed 0"
}

# With SMOKE=1: a small city in each of the layouts given.
smoke_city() {
    [ -n "${SMOKE:-}" ] || return 0
    local layout size
    for layout; do
        size="--train 48 --test 24"
        [ "$layout" != cvact ] || size+=" --val 24"
        [ "$layout" != vigor ] || size="--cities 4 --panoramas 24 --tiles 64"
        run "$PYTHON" scripts/make_city.py --layout "$layout" --out "data/smoke_$layout" $size
    done
}

# train ROW FLAGS...: train into ./result_ROW, or resume an interrupted training.
train() {
    local out=$folder/result_$1 more=()
    shift
    [ -z "${EVAL:-}" ] || return 0
    more=("$@" $(smoke "$@") "${arguments[@]}")
    [ ! -f "$out/checkpoint.pth.tar" ] || more+=(--resume "$out/checkpoint.pth.tar")
    run "$PYTHON" -u train.py --save_path "$out" --checkpoint-minutes 15 "${more[@]}"
}

# The weights of a row: the best epoch's, else the last one's.
weights() {
    local file
    for file in "$folder/result_$1"/{model_best,checkpoint}.pth.tar; do
        [ ! -f "$file" ] || { echo "$file" && return; }
    done
}

# evaluate ROW NAME FROM FLAGS...: evaluate the weights of row FROM into ./result_ROW; the table calls it NAME.
evaluate() {
    local row=$1 name=$2 from=$3
    shift 3
    if [ -z "$(weights "$from")" ]; then
        echo "$folder/result_$from holds no weights; $row is omitted"
        return
    fi
    run "$PYTHON" -u train.py --save_path "$folder/result_$row" --weights "$(weights "$from")" \
        -e "$@" $(smoke -e "$@") "${arguments[@]}"
    evaluated+=("$name=$folder/result_$row")
}

# train_and_evaluate ROW FLAGS...: a row of a published table, ROW being its name in scripts/report.py.
train_and_evaluate() {
    local row=$1
    shift
    train "$row" $(recipe "$row") "$@"
    evaluate "$row" "$row" "$row" "$@"
}

# rows NAME...: call these functions, or those in ROWS; then print the table of all evaluations.
rows() {
    local row
    for row in ${ROWS:-}; do
        [[ " $* " == *" $row "* ]] || stop "ROWS: there is no row $row; expected some of: $*"
    done
    trap table EXIT
    for row in ${ROWS:-"$@"}; do
        say "$row"
        "$row"
    done
    [ ${#evaluated[@]} -gt 0 ] || stop "nothing was evaluated; put weights into $folder/result_<row>, or omit EVAL"
}

stop() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# The table of all evaluations, even if a later row has failed.
table() {
    [ ${#evaluated[@]} -gt 0 ] || return 0
    [ -z "${SMOKE:-}" ] || say "SMOKE=1: small networks on a small city; the published numbers are for the real data"
    echo
    "$PYTHON" scripts/report.py "${evaluated[@]}"
}
