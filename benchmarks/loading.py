#!/usr/bin/env python
"""Images per second and core at native sizes: torchvision's transforms, ours, the cache, scaled JPEG decoding.

    python -m benchmarks.loading [--pairs 24]

The images are the procedural city's, in the native sizes and formats. Each way gives batches of 16 pairs of normalised
float32 tensors on the CPU, in one process with one thread. "plain" decodes, resizes and normalises image by image as
the published code does; the others must give the same numbers (scaled decoding: how far it is off).
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image
from torchvision import transforms

from benchmarks.measure import in_turns
from dataset import CVACT, CVUSA, VIGOR
from dataset.city import write_city
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, collate, to_device
from utils.options import Parser, handle_errors, positive
from utils.paper import INPUT_SIZES
from utils.ranking import slices
from utils.seeding import set_kernels

BATCH = 16
PASSES = 4  # over the pairs, in one measurement
HEADER = "| images/s per core | plain | here | `--fast-decode` | `--cache` | cache, times plain | same result |\n" + (
    "|---|---|---|---|---|---|---|"
)


def write(layout, folder, pairs):
    """The layout at native size with about that many training pairs."""
    if layout is VIGOR:
        return write_city("vigor", folder, panoramas=-(-pairs // 2), tiles=max(16, pairs // 2), native=True)
    counts = {"train": pairs, "test": 1} | ({"val": 1} if layout is CVACT else {})
    return write_city(layout.name, folder, native=True, **counts)


def plain_pair(data, index, sizes):
    """A pair as float tensors, step by step."""
    images = []
    for path, size, crop in (
        (data.ground[index], sizes.ground, data.crop_ground),
        (data.aerial[data.labels[index]], sizes.aerial, None),
    ):
        image = Image.open(path).convert("RGB")
        image = crop(image) if crop else image
        steps = [transforms.Resize(size), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        images.append(transforms.Compose(steps)(image))
    return images


def plain_batches(data):
    """Batches of normalised float tensors, image by image."""
    sizes = INPUT_SIZES[data.name]
    for rows in slices(len(data), BATCH):
        pairs = [plain_pair(data, i, sizes) for i in range(rows.start, rows.stop)]
        yield [torch.stack(images) for images in zip(*pairs, strict=True)]


def our_batches(data):
    """The same through `PairDataset`, `collate` and `to_device`."""
    for rows in slices(len(data), BATCH):
        batch = collate([data[i] for i in range(rows.start, rows.stop)])
        yield [to_device(images, torch.device("cpu")) for images in batch[:2]]


def exhaust(batches, data):
    """Go through the batches of a data set PASSES times, as a training does: no batch is kept."""
    for _ in range(PASSES):
        for _ in batches(data):
            pass


def compare(layout, folder, pairs, rounds):
    """A line of the table."""
    root = write(layout, Path(folder) / layout.name, pairs)
    kinds = {"here": {}, "fast": {"fast_decode": True}, "cache": {"cache": Path(folder) / "cache"}}
    data = {name: layout(root, "train", pixels=True, **more) for name, more in kinds.items()}
    exhaust(our_batches, data["cache"])  # makes the cache
    ways = {"plain": lambda: exhaust(plain_batches, data["here"])} | {
        name: (lambda name=name: exhaust(our_batches, data[name])) for name in kinds
    }
    best = in_turns(ways, rounds)
    speed = {name: PASSES * 2 * len(data["here"]) / measure.seconds for name, measure in best.items()}
    plain, ours, cached, fast = (
        torch.cat([torch.cat([view.flatten() for view in batch]) for batch in batches])
        for batches in (plain_batches(data["here"]), *(our_batches(data[name]) for name in ("here", "cache", "fast")))
    )
    same, off = torch.equal(plain, ours) and torch.equal(plain, cached), (plain - fast).abs()
    levels = 255 * sum(IMAGENET_STD) / 3
    speeds = " | ".join(f"{speed[name]:.0f}" for name in ways)
    return (
        f"| {layout.__name__} | {speeds} | {speed['cache'] / speed['plain']:.0f} x | "
        f"{'equal' if same else 'DIFFERENT'}; scaled decoding off by {levels * off.mean():.2f} grey levels on average |"
    )


def run(pairs=24, rounds=3):
    """Lines of the table."""
    set_kernels(deterministic=False)  # for all, as train.py does
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return [compare(layout, folder, pairs, rounds) for layout in (CVUSA, CVACT, VIGOR)]
    finally:
        torch.set_num_threads(before)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--pairs", type=positive, default=24, help="pairs of each layout (default: 24)")
    args = parser.parse_args(argv)
    with handle_errors("python -m benchmarks.loading"):
        print(HEADER)
        for line in run(args.pairs):
            print(line)


if __name__ == "__main__":
    main()
