#!/usr/bin/env python
"""Report what a copy of a data set holds, and what is wrong with it.

    python scripts/check_data.py --dataset vigor --data-root DIR [--labels corrected] [--no-images | --deep]

Files that are missing, lines that are listed twice, places that are both trained on and tested, views that are
exchanged, and VIGOR labels that do not agree with the coordinates in its file names. --deep also reads every image to
its end, on all cores. Ends with code 2 if images are damaged or no split can be used.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts.common import on_all_cores
from utils.options import DATASETS, Parser, UserError, handle_errors, path
from utils.paper import VIGOR_CITIES

# Ground resolution of the tiles in metres per pixel (VIGOR's paper; corrected: SliceMatch).
RESOLUTION = {
    "original": dict.fromkeys(VIGOR_CITIES, 0.114),
    "corrected": {"Chicago": 0.111, "NewYork": 0.113, "SanFrancisco": 0.118, "Seattle": 0.101},
}
EARTH_RADIUS = 6_378_137.0  # metres, WGS 84


def label_errors(data):
    """(n,) pixels between the labels' camera positions and those of the coordinates in the file names."""
    metres = resolution(data)[:, None]
    query, tiles = data.positions.query[:, None], data.positions.gallery[data.tiles]  # (N, 1, 2), (N, 4, 2)
    south, west = np.moveaxis(np.radians(tiles - query), -1, 0) * EARTH_RADIUS / metres
    west = west * np.cos(np.radians(query[..., 0]))
    errors = np.abs(data.deltas - np.stack([south, west], axis=-1)).max(axis=-1)
    return errors[data.tiles >= 0]  # -1: the tile is not there


def resolution(data):
    """(N,) metres per pixel around each panorama: its city's, or the one that a procedural city records."""
    record = data.root / "city.json"
    if not record.is_file():
        folders = [path.split("/")[-3:] for path in data.ground]  # <City>/panorama/<name> or ground/<City>/<name>
        cities = [first if second == "panorama" else second for first, second, _ in folders]
        return np.array([RESOLUTION[data.label_version][city] for city in cities])
    try:
        return np.full(len(data.ground), float(json.loads(record.read_text(encoding="utf-8"))["metres_per_pixel"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{record} cannot be read as the record of a city ({error}); remove it") from error


def describe(name, what, data, args, most=3):
    """Print how many pairs or panoramas (`what`) and tiles a split holds, and which files are missing."""
    tiles = "" if data.one_to_one else f", {len(data.aerial)} tiles"
    missing = "" if args.no_images else f", {data.missing} left out"
    if data.lacking:
        more = f" and {len(data.lacking) - most} more" if len(data.lacking) > most else ""
        missing += f" (not there: {', '.join(data.lacking[:most])}{more})"
    print(f"{name}: {len(data.ground)} {what}{tiles}{missing}")


def compare(train, test):
    """Print how many places of one split are also in the other."""
    if count := test.shared_with(train):
        print(f"{count} of the {len(test.ground)} places of {test.split} are also in {train.split}")


def look_at_shapes(data, most=40):
    """Print a warning where panoramas look like aerial images and aerial images like panoramas."""
    from dataset.transforms import image_size

    wide = []
    for paths in (data.ground, data.aerial):
        chosen = np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)
        sizes = [size for size in (image_size(paths[i]) for i in chosen) if size]
        wide.append(np.mean([width > 1.5 * height for width, height in sizes]) if sizes else np.nan)
    if wide[0] < 0.5 and wide[1] > 0.5:
        print(f"{data.split}: the panoramas are not wide and the aerial images are: the views seem to be exchanged")


def read_all(datasets):
    """Read every image of the splits to its end. Raises UserError if some cannot be read."""
    paths = list(dict.fromkeys(path for data in datasets for path in (*data.ground, *data.aerial)))
    wrong = [sentence for part in on_all_cores(unreadable, paths, "images") for sentence in part]
    print(f"{len(paths) - len(wrong)} of {len(paths)} images can be read", *wrong[:20], sep="\n  ")
    if wrong:
        raise UserError(f"{len(wrong)} images cannot be read, first: {wrong[0]}")


def unreadable(paths):
    """A sentence for each image that cannot be read to its end."""
    from dataset.transforms import read_image

    wrong = []
    for image in paths:
        try:
            read_image(image)
        except UserError as error:
            wrong.append(str(error))
    return wrong


def check_vigor(layout, args):
    """Describe the same-area splits of the cities that are there and the cross-area splits, and compare the labels."""
    options = {"labels": args.labels, "check_files": not args.no_images}
    cities = []
    for city in VIGOR_CITIES:
        try:
            for split in layout.splits:
                layout(args.data_root, split, labels=args.labels, area=(city,), check_files=False)
            cities.append(city)
        except UserError as error:
            print(f"{city}: {str(error).splitlines()[0]}")
    if not cities:
        raise UserError(f"--data-root {args.data_root} holds no city's {args.labels} same-area labels")
    same = [layout(args.data_root, split, area=tuple(cities), **options) for split in layout.splits]
    for data in same:
        describe(data.split, f"panoramas of {', '.join(cities)}", data, args)
    compare(*same)
    for split in layout.splits:
        try:
            data = layout(args.data_root, split, cross=True, **options)
            describe(f"cross-area {split}", "panoramas", data, args)
        except UserError as error:
            print(f"cross-area {split}: {str(error).splitlines()[0]}")
    compare_labels(same)
    return same


def compare_labels(same):
    """Print how far the labels are from the coordinates in the file names."""
    if any(data.positions is None for data in same):
        print("the file names hold no coordinates to compare the labels with")
        return
    errors = np.concatenate([label_errors(data) for data in same])
    within = f"worst {errors.max():.1f} px, {100 * np.mean(errors <= 6):.2f} % within 6 px"
    print(f"labels against coordinates: median {np.median(errors):.1f} px, {within}")


def check_one_to_one(layout, args):
    """Describe every split of a layout whose pairs are one to one; its first split must be there."""
    found = []
    for split in layout.splits:
        try:
            found.append(layout(args.data_root, split, check_files=not args.no_images))
            describe(split, "pairs", found[-1], args)
        except UserError as error:
            if split == layout.splits[0]:
                raise
            print(f"{split}: {str(error).splitlines()[0]}")
    for test in found[1:]:
        compare(found[0], test)
    return found


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--data-root", required=True, type=path)
    parser.add_argument("--labels", default="original", choices=("original", "corrected"), help="VIGOR's labels")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--no-images", action="store_true", help="look at the lists only")
    images.add_argument("--deep", action="store_true", help="read every image to its end, on all cores")
    args = parser.parse_args(argv)
    if args.dataset != "vigor" and args.labels != "original":
        parser.error(f"--labels {args.labels} requires --dataset vigor, not {args.dataset}; omit it")
    with handle_errors("check_data.py"):
        from dataset.build import LAYOUTS

        layout = LAYOUTS[args.dataset]
        found = (check_one_to_one if layout.one_to_one else check_vigor)(layout, args)
        for data in found if not args.no_images else ():
            look_at_shapes(data)
        if args.deep:
            read_all(found)


if __name__ == "__main__":
    main()
