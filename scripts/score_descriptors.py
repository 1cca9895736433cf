#!/usr/bin/env python
"""Score descriptors that `train.py -e` has saved, without a model.

    python scripts/score_descriptors.py SAVE_PATH [--data-root DIR] [--search-north 4] [--out DIR]

SAVE_PATH holds grd_global_descriptor.npy and sat_global_descriptor.npy, and a metrics.json that says which data they
describe and how the panoramas were turned. Flags of train.py (--dataset, --eval-split, --cross, --fov, ...) describe
the data if that file is missing, and must agree with it otherwise. With --out, a metrics.json is written there.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.build import build_datasets
from scripts.common import read_rows, require
from utils.distributed import choose_device
from utils.evaluation import record, score, search_angles
from utils.logging import describe_metrics
from utils.options import Parser, UserError, complete, handle_errors, parse_args, path, run_name
from utils.run_files import DESCRIPTOR_FILES, RunFiles, read_json


def score_folder(folder, flags, out=None):
    """Metrics of the descriptors in a folder; `flags` of train.py say what metrics.json does not."""
    started = time.perf_counter()
    require(folder, DESCRIPTOR_FILES, f"run train.py -e with --save_path {folder} first")
    made_by = read_json(folder / "metrics.json")
    stored = made_by.get("data", {}) | {
        k: made_by[k] for k in ("pool", "regions", "fov", "orientation") if k in made_by
    }
    stored |= {"eval_split": made_by["split"]} if "split" in made_by else {}
    stored.pop("search_north", None)  # free to differ
    data_root = ["--data-root", stored["data_root"]] if stored.get("data_root") else []
    args = parse_args([*data_root, *flags, "-e"], "score_descriptors.py")
    complete(args, stored, folder / "metrics.json", ("model", "data"))
    args.seed = made_by.get("seed", args.seed)  # which the angles depend on
    angles, regions = search_angles(args)
    if args.search_north and "regions" not in stored and "regions" not in args.given:
        raise UserError(f"--search-north requires the number of regions, which {folder} does not name; pass --regions")
    if len(angles) > 1:
        raise UserError(
            f"--search-north {args.search_north} needs images of turned panoramas and a model; pass --search-north "
            f"{regions}, or use train.py -e"
        )
    _, query, reference = datasets = build_datasets(args)
    descriptors = []
    for name, images in zip(DESCRIPTOR_FILES, (query, reference), strict=True):
        descriptors.append(read_rows(folder / name))
        if len(descriptors[-1]) != len(images):
            raise UserError(
                f"{folder / name} has shape {descriptors[-1].shape}, the data have {len(images)} images; pass the "
                "--data-root and the --eval-split that were evaluated"
            )
    metrics = score(descriptors[:1], descriptors[1], query, choose_device(args.device), regions)
    if out is not None:
        files = RunFiles(out)
        for sentence in files.open(training=False):
            print(sentence)
        record(metrics, datasets, args, files, made_by.get("weights", folder), made_by.get("epoch"), started)
    sizes = f"{len(query)} queries, gallery of {len(reference)}"
    print(f"{run_name(args)} {query.split}: {describe_metrics(metrics)} ({sizes})")
    return metrics


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("folder", type=path, metavar="SAVE_PATH", help="folder with the two .npy files")
    parser.add_argument("--out", type=path, metavar="DIR", help="folder for a metrics.json (default: none is written)")
    args, flags = parser.parse_known_args(argv)
    with handle_errors("score_descriptors.py"):
        if args.out is not None and (args.out / "metrics.json").exists():
            raise UserError(f"--out {args.out} holds a metrics.json already; choose another folder")
        return score_folder(args.folder, flags, args.out)


if __name__ == "__main__":
    main()
