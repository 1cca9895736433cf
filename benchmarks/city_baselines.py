#!/usr/bin/env python
"""Two baselines without learning on a city in the CVUSA layout: mean colours, and colour histograms per quadrant.

A city worth training on cannot be solved by either. Run: python benchmarks/city_baselines.py data/quickstart
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.options import Parser, UserError, handle_errors, positive

BINS = 6  # per channel
AERIAL_QUADRANTS = ((1, 0), (0, 0), (0, 1), (1, 1))  # SW, NW, NE, SE: (row half, column half), the order of the strips


def read_pairs(root, split):
    path = Path(root) / "splits" / f"{split}-19zl.csv"
    pairs = [tuple(Path(root) / part for part in line.split(",")[:2]) for line in path.read_text().split()]
    if not pairs or any(len(pair) < 2 for pair in pairs):
        raise UserError(f"{path} holds {len(pairs)} lines; expected one or more, each with two paths and a comma")
    return pairs


def quadrants(image, view):
    """Four regions of an image (H, W, 3), in the order SW, NW, NE, SE."""
    height, width = image.shape[:2]
    if view == "ground":
        return [image[:, k * width // 4 : (k + 1) * width // 4] for k in range(4)]
    half_h, half_w = height // 2, width // 2
    return [image[r * half_h : (r + 1) * half_h, c * half_w : (c + 1) * half_w] for r, c in AERIAL_QUADRANTS]


def below_horizon(image, view):
    """The panorama without its sky, which no aerial image shows."""
    return image[image.shape[0] * 55 // 100 :] if view == "ground" else image


def mean_colour(image, view):
    return below_horizon(image, view).reshape(-1, 3).mean(0)


def quadrant_means(image, view):
    return np.concatenate([q.reshape(-1, 3).mean(0) for q in quadrants(below_horizon(image, view), view)])


def quadrant_histograms(image, view):
    parts = []
    for region in quadrants(below_horizon(image, view), view):
        index = np.minimum((region.reshape(-1, 3) * BINS).astype(int), BINS - 1) @ (1, BINS, BINS * BINS)
        histogram = np.bincount(index, minlength=BINS**3).astype(float)
        parts.append(np.sqrt(histogram / histogram.sum()))
    return np.concatenate(parts)


def balance(image):
    """Undo exposure and white balance: every channel to mean 0.5 (the grey-world rule)."""
    return np.clip(image * (0.5 / np.maximum(image.mean((0, 1)), 1e-3)), 0, 1)


def standardise(features):
    """Zero mean and unit spread over the gallery, so that the two views' levels do not matter."""
    return (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)


def recall_at_one(query, reference):
    """R@1 in percent, by cosine similarity; pair i is right for query i."""
    query, reference = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-9) for f in (query, reference))
    similarity = query @ reference.T
    return 100 * float(np.mean((similarity > np.diag(similarity)[:, None]).sum(1) < 1))


def run(root, split="val", limit=500):
    """R@1 of the baselines on the first `limit` pairs: {name: percent}, the best of their variants for each."""
    pairs = read_pairs(root, split)[:limit]
    images = {view: [] for view in ("ground", "aerial")}
    for aerial, ground in pairs:
        images["aerial"].append(np.asarray(Image.open(aerial).convert("RGB").resize((128, 128)), np.float32) / 255)
        images["ground"].append(np.asarray(Image.open(ground).convert("RGB").resize((256, 64)), np.float32) / 255)
    results = {}
    for name, describe in (
        ("mean colour", mean_colour),
        ("mean colour per quadrant", quadrant_means),
        ("colour histograms per quadrant", quadrant_histograms),
    ):
        for how, prepare in (("", lambda i: i), (", grey world", balance)):
            features = [np.array([describe(prepare(i), view) for i in images[view]]) for view in images]
            results[name + how] = recall_at_one(*features)
            results[name + how + ", standardised"] = recall_at_one(*map(standardise, features))
    return results, len(pairs)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("root", help="folder of a city in the CVUSA layout")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--limit", type=positive, default=500, help="size of the gallery (default: %(default)s)")
    args = parser.parse_args(argv)
    with handle_errors("city_baselines.py"):
        results, count = run(args.root, args.split, args.limit)
    print(f"R@1 in a gallery of {count} (chance {100 / count:.1f} %):")
    for name, value in results.items():
        print(f"  {name:<48s} {value:5.1f} %")
    return results


if __name__ == "__main__":
    main()
