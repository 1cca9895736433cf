"""Small copies of the layouts, written with nothing but NumPy, Pillow and SciPy, and runs on them."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import train

TRAIN, TEST = 40, 7
CITIES = ("NewYork", "Seattle", "SanFrancisco", "Chicago")
GRID = 12  # tiles along each side of a test city
SMALL = [
    *("--arch", "test_convnext", "--dim", "256", "--pretrained", "none"),
    *("--ground-size", "32", "128", "--aerial-size", "64", "64", "--workers", "0", "--seed", "3"),
    *("--device", "cpu"),  # test_cuda.py is for the GPU
]

ADAMW = ["--op", "adamw", "--lr", "0.001", "--wd", "0.03", "--batch-size", "8"]
ASAM = [
    *("--op", "sam", "--asam", "--rho", "0.5", "--lr", "0.001", "--wd", "0.03", "--batch-size", "8"),
    *("--mining", "--cos"),
]


def stopped_after(epochs, arguments):
    """Run train.main with the arguments until so many epochs are complete, as if killed then."""

    class StopError(Exception):
        pass

    def stop(self, line):
        add(self, line)
        if line["epoch"] == epochs:
            raise StopError

    add = train.RunFiles.add_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.RunFiles, "add_epoch", stop)
        with pytest.raises(StopError):
            train.main(arguments)


def history(folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder):
    """A run's metrics.json."""
    return json.loads((folder / "metrics.json").read_text())


def heed_ctrl_c():
    """For `subprocess`' preexec_fn: a shell starts background jobs, tests among them, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def flags(root, out, *more, dataset="cvusa"):
    """A small run's arguments."""
    return ["--dataset", dataset, "--data-root", str(root), "--save_path", str(out), *SMALL, *more]


def write_image(path, size, seed):
    """A coloured picture of (width, height) that depends on the seed: four quadrants and noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = rng.integers(0, 256, (2, 4, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.NEAREST)).astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image + rng.integers(-8, 8, image.shape)).clip(0, 255).astype(np.uint8)).save(path)


def write_cvusa(root, train=TRAIN, val=TEST, first=0):
    for split, count in (("train", train), ("val", val)):
        lines = []
        for i in range(first, first + count):
            names = (f"bingmap/19/{i:07d}.jpg", f"streetview/panos/{i:07d}.jpg", f"streetview/annotations/{i:07d}.png")
            write_image(root / names[0], (64, 64), (0, i))
            write_image(root / names[1], (128, 32), (1, i))
            lines.append(",".join(names) + "\n")
        (root / "splits").mkdir(exist_ok=True)
        (root / "splits" / f"{split}-19zl.csv").write_text("".join(lines))
        first += count
    return root


def write_cvact(root, train=TRAIN, val=TEST, cell=False, mat_inside=False):
    """With `cell`, panoIds is a cell array; else a character matrix, as in the original."""
    count = train + val
    images = root / "ANU_data_small"
    names = [f"{'x' * 20}{i:02d}" for i in range(count)]
    for i, name in enumerate(names):
        write_image(images / "streetview" / f"{name}_grdView.jpg", (128, 64), (1, i))
        write_image(images / "satview_polish" / f"{name}_satView_polish.jpg", (64, 64), (0, i))
    ids = np.array(names, dtype=object)[:, None] if cell else np.array(names)
    index = np.arange(1, count + 1)
    data = {
        "panoIds": ids,
        "utm": np.stack([index * 10.0, index * 20.0], axis=1),
        "trainSet": {"trainInd": index[:train, None]},
        "valSet": {"valInd": index[train:, None]},
        "valSetAll": {"valInd": index[train:, None]},
    }
    savemat((images if mat_inside else root) / "ACT_data.mat", data)
    return root


def vigor_city(city, seed):
    """Tile names on a half-overlapping grid, and label rows of panoramas around each inner tile's centre."""
    rng = np.random.default_rng((seed, 7))
    half = 320 * 0.114 / 111_320  # degrees of latitude of half a tile
    tiles = {
        (r, c): f"satellite_{40 - r * half:.10f}_{-70 + c * half:.10f}.png" for r in range(GRID) for c in range(GRID)
    }
    rows = []
    for r in range(0, GRID - 1):
        for c in range(0, GRID - 1):
            south, east = int(rng.integers(0, 160)), int(rng.integers(0, 160))
            covering = [((r, c), south, -east), ((r + 1, c), south - 320, -east)]
            covering += [((r, c + 1), south, 320 - east), ((r + 1, c + 1), south - 320, 320 - east)]
            name = f"{city[:2]}{r:02d}{c:02d},{40 - r * half:.6f},{-70 + c * half:.6f},.jpg"
            rows.append((name, [(tiles[key], float(dr), float(dc)) for key, dr, dc in covering]))
    return list(tiles.values()), [rows[i] for i in rng.permutation(len(rows))]


def write_vigor(root, train=30, test=TEST, layout="cities", suffix="", splits="splits"):
    """layout "cities": <City>/panorama, <City>/satellite; "views": ground/<City>, satellite/<City>."""
    for seed, city in enumerate(CITIES):
        tiles, rows = vigor_city(city, seed)
        rows = rows[: train + test]
        ground = root / city / "panorama" if layout == "cities" else root / "ground" / city
        aerial = root / city / "satellite" if layout == "cities" else root / "satellite" / city
        for i, name in enumerate(tiles):
            write_image(aerial / name, (64, 64), (seed, 0, i))
        for i, (name, _) in enumerate(rows):
            write_image(ground / name, (128, 64), (seed, 1, i))
        folder = root / splits / city
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "satellite_list.txt").write_text("\n".join(tiles))  # no newline at the end, as in real lists
        lines = [" ".join([name, *(f"{t} {a} {b}" for t, a, b in covering)]) for name, covering in rows]
        for stem, part in (
            ("same_area_balanced_train", lines[:train]),
            ("same_area_balanced_test", lines[train:]),
            ("pano_label_balanced", lines),
        ):
            (folder / f"{stem}{suffix}.txt").write_text("".join(line + "\n" for line in part))
    return root


def write_pairs(root, train=TRAIN, val=TEST):
    for i in range(train + val):
        write_image(root / "ground" / f"p{i}.jpg", (128, 32), (1, i))
        write_image(root / "aerial" / f"p{i}.png", (64, 64), (0, i))
    (root / "train.txt").write_text("".join(f"p{i}\n" for i in range(train)))
    (root / "val.txt").write_text("".join(f"p{i}\n" for i in range(train, train + val)))
    return root


WRITERS = {"cvusa": write_cvusa, "cvact": write_cvact, "vigor": write_vigor, "pairs": write_pairs}
