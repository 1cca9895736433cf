#!/usr/bin/env python
"""Draw the figures of the procedural city: pairs of the three layouts, and the map of a city with cameras and tiles.

Run: python scripts/city_figures.py --out images   (writes city_pairs.jpg and city_map.jpg)
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.city import City, region_raster, render_aerial, write_city
from dataset.city.layouts import METRES_PER_PIXEL, PIXELS, STEP, Grid, choose_panoramas, same_area_split
from dataset.city.style import VIGOR_STYLES
from scripts.common import make_folder
from utils.options import Parser, handle_errors, natural, path

HEIGHT, GAP, TITLE = 164, 6, 30  # pixels, on the page of pairs
GROUND_WIDTH = HEIGHT * 1232 // 224
ROWS = {"cvusa": 4, "cvact": 3, "vigor": 4}
TITLES = {
    "cvusa": "CVUSA layout: panorama cut in elevation, camera at the tile's centre",
    "cvact": "CVACT layout: full sphere (its middle half shown), camera at the tile's centre",
    "vigor": "VIGOR layout: full sphere (middle half shown), camera anywhere in the tile (cross); one row per city",
}


def write_examples(layout, folder, seed):
    """[(panorama, aerial image, camera as (column, row) shares of it)] of a small city written to a folder."""
    sizes = {"train": 12, "val": 0, "test": 0, "cities": ROWS[layout], "panoramas": 4, "tiles": 25}
    root = write_city(layout, folder, seed=seed, native=True, **sizes)
    cameras = json.loads((root / "city.json").read_text())["cameras"]
    examples = []
    for camera in cameras[:: 4 if layout == "vigor" else 12 // ROWS[layout]][: ROWS[layout]]:
        at = (0.5, 0.5)
        if layout == "vigor":
            labels = (root / "splits" / camera["city"] / "pano_label_balanced.txt").read_text().splitlines()
            label = next(row for row in (line.split() for line in labels) if camera["ground"].endswith(row[0]))
            camera["aerial"] = f"{camera['city']}/satellite/{label[1]}"
            at = 0.5 - float(label[3]) / PIXELS, 0.5 + float(label[2]) / PIXELS
        examples.append([Image.open(root / camera[view]).convert("RGB") for view in ("ground", "aerial")] + [at])
    return examples


def draw_pair(ground, aerial, at):
    """One row of the page: panorama, aerial image with the camera's place."""
    row = Image.new("RGB", (GROUND_WIDTH + HEIGHT + GAP, HEIGHT + GAP), "white")
    if ground.width == 2 * ground.height:
        ground = ground.crop((0, ground.height // 4, ground.width, ground.height // 4 * 3))
    row.paste(ground.resize((GROUND_WIDTH, HEIGHT), Image.Resampling.BICUBIC), (0, 0))
    row.paste(aerial.resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC), (GROUND_WIDTH + GAP, 0))
    draw = ImageDraw.Draw(row)
    x, y = GROUND_WIDTH + GAP + at[0] * HEIGHT, at[1] * HEIGHT
    for colour, width in (("black", 4), ("white", 2)):
        draw.line((x - 6, y, x + 6, y), colour, width)
        draw.line((x, y - 6, x, y + 6), colour, width)
    for k, letter in enumerate("SWNE"):
        corner, font = (k * GROUND_WIDTH / 4 + 3, 2), ImageFont.load_default(14)
        draw.text(corner, letter, "white", font, stroke_width=1, stroke_fill="black")
    return row


def draw_pairs(seed):
    """The page of pairs of the three layouts."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in ROWS:
            title = Image.new("RGB", (GROUND_WIDTH + HEIGHT + GAP, TITLE), "white")
            ImageDraw.Draw(title).text((2, 7), TITLES[layout], "black", ImageFont.load_default(15))
            rows += [title] + [draw_pair(*pair) for pair in write_examples(layout, Path(folder) / layout, seed)]
    page = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for k, row in enumerate(rows):
        page.paste(row, (0, sum(above.height for above in rows[:k])))
    return page


def draw_map(seed, index, tiles=196, panoramas=200, size=1400):
    """A VIGOR city from above: its panoramas (train blue, test orange), the tiles' grid, one label drawn out."""
    city, grid = City(seed, index + 1, VIGOR_STYLES[index]), Grid(VIGOR_STYLES[index], tiles)
    chosen = choose_panoramas(city, grid, panoramas)
    middle, side = (grid.columns - 1) * STEP / 2, (grid.columns - 1) * STEP + PIXELS * METRES_PER_PIXEL
    low, high = middle - side / 2, middle + side / 2
    raster = region_raster(city, (low, low, high, high), 0.25)
    image = Image.fromarray(render_aerial(raster, middle, middle, side, size, np.random.default_rng(seed + 5)))
    draw = ImageDraw.Draw(image, "RGBA")

    def place(x, y):
        return (x - low) * size / side, (high - y) * size / side

    def frame(k, colour, width):
        half = PIXELS / 2 * METRES_PER_PIXEL
        x, y = grid.centre(k)
        draw.rectangle((*place(x - half, y + half), *place(x + half, y - half)), outline=colour, width=width)

    for k in range(grid.count):
        frame(k, (255, 255, 255, 60), 1)
    shown = min(chosen, key=lambda p: np.hypot(p.x - middle, p.y - middle))
    for k in shown.tiles[1:]:
        frame(k, (60, 220, 90, 255), 3)
    frame(shown.tiles[0], (235, 30, 40, 255), 4)
    for panorama, split in zip(chosen, same_area_split(city, len(chosen)), strict=True):
        x, y = place(panorama.x, panorama.y)
        radius = 9 if panorama is shown else 5
        colour = (40, 120, 255, 255) if split == "train" else (255, 150, 20, 255)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, "white", 2)
    return image


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", type=path, default="images", help="folder for the figures (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(argv)
    out = Path(args.out)
    with handle_errors("city_figures.py"):
        make_folder(out)
        draw_pairs(args.seed).save(out / "city_pairs.jpg", quality=88)
        draw_map(args.seed, index=1).save(out / "city_map.jpg", quality=85)
        print(f"Wrote {out / 'city_pairs.jpg'} and {out / 'city_map.jpg'}.")


if __name__ == "__main__":
    main()
