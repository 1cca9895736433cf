#!/usr/bin/env python
"""Fill a cache of resized images for `train.py --cache DIR`, on all cores. If interrupted, run it again to continue.

python scripts/build_cache.py --dataset cvusa --data-root DATA --cache DIR [--splits train val] [--jobs N]
"""

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts.common import on_all_cores
from utils.options import DATASETS, Parser, UserError, handle_errors, path, pixels, positive
from utils.paper import VIGOR_CITIES


def make(images, rows):
    """Make the images of these rows. Returns a sentence for each that cannot be read."""
    wrong = []
    for row in rows:
        try:
            images.make(row, must=True)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def caches(args):
    """(name, image cache) of the panoramas and of the tiles of each split, each list once."""
    from dataset.build import LAYOUTS

    layout, seen = LAYOUTS[args.dataset], set()
    options = {name: getattr(args, name) for name in ("cache", "ground_size", "aerial_size", "fast_decode")}
    if args.dataset == "vigor":
        options |= {"cross": args.cross, "labels": args.vigor_labels, "area": args.vigor_cities}
    for split in args.splits or layout.splits[:2]:
        data = layout(args.data_root, split, **options)
        for view, images in (("panoramas", data.ground_images), ("tiles", data.aerial_images)):
            if tuple(images.paths) not in seen:  # VIGOR's gallery is that of both splits
                seen.add(tuple(images.paths))
                yield f"{data.split} {view}", images


def fill(name, images, args):
    """Make the images that one cache lacks.

    Raises:
        UserError: images that cannot be read (after the others are made), a full disk, a killed process.
    """
    missing = np.flatnonzero(~images.present())
    print(f"{name}: {len(images) - len(missing)} of {len(images)} are there")
    if not len(missing):
        return
    wrong, started = [], time.perf_counter()
    try:
        for sentences in on_all_cores(partial(make, images), missing.tolist(), name, args.jobs):
            wrong += sentences
    except OSError as error:
        raise UserError(f"--cache {args.cache}: {error}; free some space and run the command again") from error
    seconds = time.perf_counter() - started
    print(f"{name}: {len(missing) - len(wrong)} made in {seconds:.1f} s ({len(missing) / seconds:.0f} images/s)")
    if wrong:
        raise UserError(f"{wrong[0]}; {len(wrong)} of the {name} cannot be read")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--data-root", required=True, type=path)
    parser.add_argument("--cache", required=True, type=path, help="folder of the cache, made if it does not exist")
    parser.add_argument("--splits", nargs="+", choices=("train", "val", "test"), metavar="SPLIT",
                        help="default: those that training and evaluation use")  # fmt: skip
    parser.add_argument("--cross", action="store_true", help="VIGOR's cross-area lists")
    parser.add_argument("--vigor-labels", default="original", choices=("original", "corrected"))
    parser.add_argument("--vigor-cities", nargs="+", choices=VIGOR_CITIES, metavar="CITY", help="as passed to train.py")
    parser.add_argument("--ground-size", nargs=2, type=pixels, metavar=("H", "W"), help="as passed to train.py")
    parser.add_argument("--aerial-size", nargs=2, type=pixels, metavar=("H", "W"), help="as passed to train.py")
    parser.add_argument("--fast-decode", action="store_true", help="as passed to train.py")
    parser.add_argument("--jobs", type=positive, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    if args.dataset != "vigor" and (args.cross or args.vigor_cities or args.vigor_labels != "original"):
        parser.error(
            f"--cross, --vigor-labels and --vigor-cities require --dataset vigor, not {args.dataset}; omit them"
        )
    with handle_errors("build_cache.py", "interrupted; run the same command again to continue"):
        for name, images in caches(args):
            fill(name, images, args)


if __name__ == "__main__":
    main()
