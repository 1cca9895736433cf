#!/usr/bin/env python
"""Draw the method: two encoders, the Feature Recombination Module (FRM) and the weighted (B+1)-tuple loss (WBL).

    python scripts/plot_overview.py [--out images/overview] [--ground PANORAMA --aerial IMAGE]

Writes OUT.png and OUT.pdf. The pair shown is one of the procedural city, or the two image files given: a north-aligned
panorama (left edge south, centre north) and a north-up aerial image of the same place.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from scripts.figures import save_figure
from utils.arguments import Parser, mistakes_told, natural
from utils.errors import UserError
from utils.paper import WBL_ALPHA

SIZE = (196, 78)  # units of the drawing, 13 to an inch
REGIONS = ("SW", "NW", "NE", "SE")  # FRM's order
COLOURS = ("#e4a23a", "#4f9bd0", "#58a866", "#c76d8f")
WIDTH = 768  # channels of ConvNeXt-T's last feature map
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # of the aerial regions: (right half, upper half)
INK, SOFT = "#222222", "#666666"
GROUND, AERIAL = 55, 20  # heights of the two branches


def city_pair(seed):
    """A panorama and an aerial image of a city of one test place."""
    from dataset.city import write_city
    from dataset.transforms import read_image

    with tempfile.TemporaryDirectory() as folder:
        root = write_city("cvusa", folder, train=1, test=1, seed=seed, native=True, jobs=1)
        aerial, ground = (root / "splits" / "val-19zl.csv").read_text().split(",")[:2]
        return read_image(root / ground), read_image(root / aerial)


def write(axis, x, y, text, size=9.5, colour=INK, **more):
    axis.text(x, y, text, fontsize=size, color=colour, **{"ha": "center", "va": "center", **more})


def arrow(axis, start, end):
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=SOFT, shrinkA=0, shrinkB=0))


def box(axis, x, y, width, height, **style):
    style = {"facecolor": "white", "edgecolor": INK, "linewidth": 1, **style}
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", **style))


def name_region(axis, x, y, region, size=8.5):
    """A region's name, white on its own colour."""
    patch = {"facecolor": COLOURS[region], "edgecolor": "none", "pad": 1}
    write(axis, x, y, REGIONS[region], size, "white", weight="bold", bbox=patch)


def frame_region(axis, at, width, height, region):
    """Mark a region of an image: a light tint and a border in its colour."""
    colour, inset = COLOURS[region], 0.18
    axis.add_patch(Rectangle(at, width, height, facecolor=colour, alpha=0.12, edgecolor="none"))
    at = (at[0] + inset, at[1] + inset)
    size = (width - 2 * inset, height - 2 * inset)
    axis.add_patch(Rectangle(at, *size, fill=False, edgecolor=colour, linewidth=2))


def draw_inputs(axis, ground, aerial):
    """The pair, its four regions tinted and named."""
    x, width, height = 2, 36, 10
    axis.imshow(ground, extent=(x, x + width, GROUND - height / 2, GROUND + height / 2), aspect="auto")
    for k, (name, colour) in enumerate(zip(REGIONS, COLOURS, strict=True)):
        left = x + k * width / 4
        frame_region(axis, (left, GROUND - height / 2), width / 4, height, k)
        write(axis, left + width / 8, GROUND - 7, name, 9, colour, weight="bold")
    for k, letter in enumerate("SWNES"):
        write(axis, x + k * width / 4, GROUND + 6.6, letter, 8.5, SOFT)
    write(axis, x + width / 2, GROUND + 10.2, "ground panorama, north-aligned", 10)
    x, side = 11, 18
    axis.imshow(aerial, extent=(x, x + side, AERIAL - side / 2, AERIAL + side / 2), aspect="auto")
    for k, (name, colour, (right, upper)) in enumerate(zip(REGIONS, COLOURS, CORNERS, strict=True)):
        at = (x + right * side / 2, AERIAL - side / 2 + upper * side / 2)
        frame_region(axis, at, side / 2, side / 2, k)
        write(axis, x - 2.4 if not right else x + side + 2.4, at[1] + side / 4, name, 9, colour, weight="bold")
    write(axis, x + side / 2, AERIAL - 11.5, "aerial image, north up", 10)


def draw_encoder(axis, y, name):
    """A trapezium that narrows from the image to the feature map."""
    x, width = 43, 15
    axis.add_patch(
        Polygon([(x, y - 8), (x, y + 8), (x + width, y + 5), (x + width, y - 5)], facecolor="#e9edf2", edgecolor=INK)
    )
    write(axis, x + width / 2, y + 1.7, "ConvNeXt-T", 10, weight="bold")
    write(axis, x + width / 2, y - 1.8, name, 8.5, SOFT, family="monospace")
    arrow(axis, (38.6 if y == GROUND else 33.5, y), (x - 0.4, y))
    arrow(axis, (x + width + 0.4, y), (64.5, y))


def draw_maps(axis):
    """Both feature maps as grids of cells coloured by region, for 128 x 512 and 256 x 256 pixels."""
    cell, x = 1.4, 66
    for row in range(4):
        for column in range(16):
            at = (x + column * cell, GROUND - 2 * cell + row * cell)
            axis.add_patch(Rectangle(at, cell, cell, facecolor=COLOURS[column // 4], edgecolor="white", linewidth=0.6))
    for k in range(4):
        name_region(axis, x + (4 * k + 2) * cell, GROUND, k)
    write(axis, x + 8 * cell, GROUND + 5.4, f"$F^g$: 4 × 16 × {WIDTH}", 9.5)
    x += 4 * cell
    for row in range(8):
        for column in range(8):
            region = CORNERS.index((column // 4, row // 4))
            at = (x + column * cell, AERIAL - 4 * cell + row * cell)
            axis.add_patch(Rectangle(at, cell, cell, facecolor=COLOURS[region], edgecolor="white", linewidth=0.6))
    for k, (right, upper) in enumerate(CORNERS):
        name_region(axis, x + (2 + 4 * right) * cell, AERIAL + (4 * upper - 2) * cell, k)
    write(axis, x + 4 * cell, AERIAL - 8.2, f"$F^a$: 8 × 8 × {WIDTH}", 9.5)


def draw_regions(axis, y, end_of_map):
    """Four averages, top to bottom in FRM's order, the final LayerNorm, and the descriptor they make together."""
    x, side, step = 98, 3, 4.4
    for k, (name, colour) in enumerate(zip(REGIONS, COLOURS, strict=True)):
        middle = y + (1.5 - k) * step
        axis.add_patch(Rectangle((x, middle - side / 2), side, side, facecolor=colour, edgecolor=INK, linewidth=0.8))
        write(axis, x + side + 0.8, middle, name, 8.5, colour, weight="bold", ha="left")
    arrow(axis, (end_of_map + 0.6, y), (x - 0.8, y))
    write(axis, (end_of_map + x) / 2 - 0.2, y + 1.7, "mean", 8.5, SOFT)
    box(axis, 112, y - 8, 4.6, 16)
    write(axis, 114.3, y, "LayerNorm", 9.5, rotation=90)
    arrow(axis, (107.2, y), (111.6, y))
    arrow(axis, (117, y), (121.4, y))


def draw_descriptor(axis, y, symbol):
    """Four segments of 768 numbers."""
    x, segment = 122, 6.4
    for k, (name, colour) in enumerate(zip(REGIONS, COLOURS, strict=True)):
        axis.add_patch(
            Rectangle((x + k * segment, y - 1.7), segment, 3.4, facecolor=colour, edgecolor=INK, linewidth=0.8)
        )
        write(axis, x + (k + 0.5) * segment, y, name, 8.5, "white", weight="bold")
    write(axis, x + 2 * segment, y + 4.2, f"descriptor ${symbol}$, concatenated", 9.5)
    write(axis, x + 2 * segment, y - 4, f"4 × {WIDTH} = {4 * WIDTH}", 9.5)


def draw_loss(axis):
    """The batch's similarities, true pairs on the diagonal, and the loss in words and letters."""
    count, cell, x, middle = 5, 3.6, 163, 37.5
    shades = np.random.default_rng(3).uniform(0.05, 0.3, (count, count))
    low = middle - count * cell / 2
    for i in range(count):
        for j in range(count):
            colour = "#d62728" if i == j else str(1 - shades[i, j])
            at = (x + j * cell, low + (count - 1 - i) * cell)
            axis.add_patch(Rectangle(at, cell, cell, facecolor=colour, edgecolor="white", linewidth=1))
    centre = x + count * cell / 2
    write(axis, x - 1.6, middle, "$q_i$", 11, ha="right")
    write(axis, centre, low + count * cell + 2, "$k_j$", 11)
    write(axis, centre, low + count * cell + 6, "cosine similarities $s_{ij}$ of a batch of B pairs", 9.5)
    write(axis, centre, low - 2.4, "red: true pairs $s_{ii}$", 9, "#d62728")
    loss = r"$L(q,k)=\frac{1}{B}\sum_i\,\log\left(1+\sum_{j\neq i}e^{\,\alpha(s_{ij}-s_{ii})}\right)$"
    write(axis, centre, low - 8.6, loss, 11)
    whole = rf"$\mathrm{{WBL}}=\frac{{1}}{{2}}\,\left(L(q,k)+L(k,q)\right),\quad\alpha={WBL_ALPHA:g}$"
    write(axis, centre, low - 15, whole, 11)
    for y, bend in ((GROUND, -0.25), (AERIAL, 0.25)):
        axis.add_patch(
            FancyArrowPatch(
                (148.4, y), (x - 5.5, middle + (y - middle) * 0.14), arrowstyle="-|>", mutation_scale=11, color=SOFT,
                connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip


def draw(ground, aerial):
    """The whole figure, from left to right."""
    figure = plt.figure(figsize=(SIZE[0] / 13, SIZE[1] / 13))
    axis = figure.add_axes((0, 0, 1, 1))
    box(axis, 63, 6, 43.6, 65, facecolor="#fafafa", edgecolor=SOFT, linestyle="--", linewidth=1.2)
    write(axis, 85, 73.4, "Feature Recombination Module", 11, weight="bold")
    write(axis, 85, 68.4, "no parameters", 9.5, SOFT)
    write(axis, 50.5, 73.4, "encoders", 11, weight="bold")
    write(axis, 20, 73.4, "a pair", 11, weight="bold")
    write(axis, 130, 73.4, "descriptors", 11, weight="bold")
    write(axis, 172, 73.4, "weighted (B+1)-tuple loss", 11, weight="bold")
    write(axis, 85, 37.5, "the same four compass regions of the\nplace, in the same order in both views", 9.5, SOFT)
    write(axis, 50.5, 37.5, "separate\nweights", 9.5, SOFT)
    write(axis, 114.6, 37.5, "the encoder's\nfinal norm, one\nfor four regions", 9, SOFT)
    draw_inputs(axis, ground, aerial)
    draw_maps(axis)
    for y, net, end, symbol in ((GROUND, "query_net", 88.4, "q"), (AERIAL, "reference_net", 82.8, "k")):
        draw_encoder(axis, y, net)
        draw_regions(axis, y, end)
        draw_descriptor(axis, y, symbol)
    draw_loss(axis)
    axis.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]), aspect="auto")
    axis.axis("off")
    return figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("images/overview"), help="where to write, without ending")
    parser.add_argument("--ground", type=Path, help="panorama to show, with --aerial (default: of a procedural city)")
    parser.add_argument("--aerial", type=Path, help="aerial image to show, with --ground")
    parser.add_argument("--seed", type=natural, default=2, help="of the procedural city (default: 2)")
    args = parser.parse_args(argv)
    with mistakes_told("plot_overview.py"):
        from dataset.transforms import read_image

        if (args.ground is None) != (args.aerial is None):
            raise UserError("--ground and --aerial show one pair; give both or neither")
        pair = (read_image(args.ground), read_image(args.aerial)) if args.ground else city_pair(args.seed)
        save_figure(draw(*pair), args.out, dpi=150)


if __name__ == "__main__":
    main()
