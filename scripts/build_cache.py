#!/usr/bin/env python
"""Fill a cache of resized images for `train.py --cache DIR`, on all cores; interrupted and run again, it goes on.

python scripts/build_cache.py --dataset cvusa --data-root DATA --cache DIR [--splits train val] [--jobs N]
"""

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from dataset.build import LAYOUTS
from dataset.vigor import VIGOR
from utils.arguments import Parser, mistakes_told, on_terminal, positive
from utils.errors import UserError
from utils.flags import DATASETS
from utils.launch import cores
from utils.paper import VIGOR_CITIES
from utils.workers import follow_parent, starting_workers

CHUNK = 16  # images a worker makes at once


def make(images, rows):
    """Make the images of these rows. Returns what could not be read, as sentences."""
    wrong = []
    for row in rows:
        try:
            images.make(row, must=True)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def caches(args):
    """The image caches of the asked splits, panoramas and tiles, each list once."""
    layout = LAYOUTS[args.dataset]
    kwargs = {}
    if layout is VIGOR:
        kwargs = {"cross": args.cross, "labels": args.vigor_labels, "area": args.vigor_cities}
    kwargs |= {name: getattr(args, name) for name in ("cache", "ground_size", "aerial_size", "fast_decode")}
    seen = set()
    for split in args.splits or layout.splits[:2]:
        data = layout(args.data_root, split, **kwargs)
        for view, images in (("panoramas", data.ground_images), ("tiles", data.aerial_images)):
            if tuple(images.paths) not in seen:  # VIGOR's gallery is that of both splits
                seen.add(tuple(images.paths))
                yield f"{split} {view}", images


def fill(args):
    for name, images in caches(args):
        missing = np.flatnonzero(~images.present())
        print(f"{name}: {len(images) - len(missing)} of {len(images)} are there")
        if not len(missing):
            continue
        wrong, started = [], time.perf_counter()
        chunks = [missing[i : i + CHUNK].tolist() for i in range(0, len(missing), CHUNK)]
        with (
            ProcessPoolExecutor(args.jobs, initializer=follow_parent) as pool,
            tqdm(total=len(missing), desc=name, disable=not on_terminal(), dynamic_ncols=True) as bar,
        ):
            try:
                with starting_workers():
                    results = pool.map(partial(make, images), chunks)
                for chunk, told in zip(chunks, results, strict=True):
                    wrong += told
                    bar.update(len(chunk))
            except BrokenProcessPool as error:
                raise UserError("a process was killed, most likely for memory; with --jobs 1 it goes on") from error
            except OSError as error:
                raise UserError(f"--cache {args.cache}: {error}; free some space and run this again") from error
            finally:
                pool.shutdown(cancel_futures=True)
        seconds = time.perf_counter() - started
        print(f"{name}: {len(missing) - len(wrong)} made in {seconds:.1f} s ({len(missing) / seconds:.0f} images/s)")
        if wrong:
            raise UserError(f"{wrong[0]}; {len(wrong)} such image(s) among the {name}")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--cache", required=True, help="folder of the cache, made where it is not there")
    parser.add_argument("--splits", nargs="+", help="default: those that training and evaluation use")
    parser.add_argument("--cross", action="store_true", help="VIGOR's cross-area lists")
    parser.add_argument("--vigor-labels", default="original", choices=("original", "corrected"))
    parser.add_argument("--vigor-cities", nargs="+", choices=VIGOR_CITIES, metavar="CITY", help="as given to train.py")
    parser.add_argument("--ground-size", nargs=2, type=positive, metavar=("H", "W"), help="as given to train.py")
    parser.add_argument("--aerial-size", nargs=2, type=positive, metavar=("H", "W"), help="as given to train.py")
    parser.add_argument("--fast-decode", action="store_true", help="as given to train.py")
    parser.add_argument("--jobs", type=positive, default=cores(), help="processes (default: one per core)")
    args = parser.parse_args(argv)
    known = LAYOUTS[args.dataset].splits
    with mistakes_told("build_cache.py", "interrupted; the same command goes on"):
        if wrong := [split for split in args.splits or () if split not in known]:
            raise UserError(f"--splits {wrong[0]}: {args.dataset} has {', '.join(known)}")
        fill(args)


if __name__ == "__main__":
    main()
