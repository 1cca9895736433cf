#!/usr/bin/env python
"""Say what a copy of a data set holds, what is missing, and whether VIGOR's labels agree with its coordinates.

python scripts/check_data.py --dataset vigor --data-root DIR [--labels corrected] [--no-images]
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from utils.arguments import Parser, mistakes_told
from utils.errors import UserError

# Ground resolution of the tiles in metres per pixel (VIGOR paper; corrected: SliceMatch).
RESOLUTION = {
    "original": dict.fromkeys(("NewYork", "Seattle", "SanFrancisco", "Chicago"), 0.114),
    "corrected": {"Chicago": 0.111, "NewYork": 0.113, "SanFrancisco": 0.118, "Seattle": 0.101},
}
EARTH_RADIUS = 6_378_137.0  # metres, WGS 84


def label_errors(data):
    """(n,) pixels between the labels' camera positions and those that the coordinates in the file names give."""
    errors = np.full(data.tiles.shape, np.nan)  # stays so for a tile that is not there
    cache, record = {}, data.root / "city.json"  # a procedural city has one resolution, and tells it
    told = _resolution(record) if record.is_file() else None
    for i, (panorama, tiles) in enumerate(zip(data.ground, data.tiles, strict=True)):
        city = _city(panorama)
        _, lat, lng, _ = panorama.rsplit("/", 1)[1].split(",")
        metres = told or RESOLUTION[data.label_version][city]
        for column, tile in enumerate(tiles):
            if tile < 0:
                continue
            if tile not in cache:
                cache[tile] = tuple(map(float, data.aerial[tile].rsplit("/", 1)[1][: -len(".png")].split("_")[1:]))
            south = np.radians(cache[tile][0] - float(lat)) * EARTH_RADIUS / metres
            west = np.radians(cache[tile][1] - float(lng)) * EARTH_RADIUS * np.cos(np.radians(float(lat))) / metres
            errors[i, column] = np.abs(data.deltas[i, column] - (south, west)).max()
    return errors[np.isfinite(errors)]


def _resolution(record):
    """Metres per pixel of a procedural city, from its city.json."""
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["metres_per_pixel"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} cannot be read as the record of a city ({error}); remove it") from error


def _not_there(data, most=3):
    """ ", 4 left out (not there: a, b, c and 2 more)" """
    more = f" and {len(data.lacking) - most} more" if len(data.lacking) > most else ""
    named = f" (not there: {', '.join(data.lacking[:most])}{more})" if data.lacking else ""
    return f", {data.missing} left out{named}"


def _city(path):
    parts = path.split("/")
    return parts[-3] if parts[-2] == "panorama" else parts[-2]


def check_vigor(args):
    from dataset.vigor import VIGOR
    from utils.paper import VIGOR_CITIES

    there = []
    for city in VIGOR_CITIES:
        try:
            for split in VIGOR.splits:
                VIGOR(args.data_root, split, labels=args.labels, area=(city,), check_files=False)
            there.append(city)
        except UserError as error:
            print(f"{city}: {str(error).splitlines()[0]}")
    if not there:
        raise UserError(f"--data-root {args.data_root} holds no city's {args.labels} same-area labels")
    started = time.perf_counter()
    splits = [
        VIGOR(args.data_root, split, labels=args.labels, area=tuple(there), check_files=not args.no_images)
        for split in VIGOR.splits
    ]
    seconds = time.perf_counter() - started
    for data in splits:
        left = "" if args.no_images else _not_there(data)
        print(f"{data.split}: {len(data.ground)} panoramas of {', '.join(there)}, {len(data.aerial)} tiles{left}")
    print(f"read in {seconds:.1f} s")
    for split in VIGOR.splits:
        try:
            data = VIGOR(args.data_root, split, cross=True, labels=args.labels, check_files=not args.no_images)
        except UserError as error:
            print(f"cross-area {split}: {str(error).splitlines()[0]}")
            continue
        left = "" if args.no_images else _not_there(data)
        print(f"cross-area {split}: {len(data.ground)} panoramas, {len(data.aerial)} tiles{left}")
    if any(data.positions is None for data in splits):
        print("file names hold no coordinates: the labels cannot be compared with them")
        return
    errors = np.concatenate([label_errors(data) for data in splits])
    worst, share = errors.max(), 100 * np.mean(errors <= 6)
    print(f"labels against coordinates: median {np.median(errors):.1f} px, worst {worst:.1f} px, ", end="")
    print(f"{share:.2f} % within 6 px")


def check_one_to_one(args):
    from dataset.build import LAYOUTS

    layout = LAYOUTS[args.dataset]
    for split in layout.splits:
        try:
            data = layout(args.data_root, split, check_files=not args.no_images)
        except UserError as error:
            if split == layout.splits[0]:
                raise
            print(f"{split}: {str(error).splitlines()[0]}")
            continue
        left = "" if args.no_images else _not_there(data)
        print(f"{split}: {len(data)} pairs{left}")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=("cvusa", "cvact", "vigor", "pairs"))
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--labels", default="original", choices=("original", "corrected"), help="VIGOR's labels")
    parser.add_argument("--no-images", action="store_true", help="look at the lists only")
    args = parser.parse_args(argv)
    with mistakes_told("check_data.py"):
        check_vigor(args) if args.dataset == "vigor" else check_one_to_one(args)


if __name__ == "__main__":
    main()
