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

import numpy as np

from scripts.common import RED, save_figure
from utils.options import Parser, UserError, handle_errors, natural, path
from utils.paper import WBL_ALPHA

SIZE = (196, 78)  # units of the drawing, 13 to an inch
REGIONS = {"SW": "#e4a23a", "NW": "#4f9bd0", "NE": "#58a866", "SE": "#c76d8f"}  # FRM's order, colours
NAMES, COLOURS = list(REGIONS), list(REGIONS.values())
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))  # where the aerial regions are: (right half, upper half)
WIDTH = 768  # channels of ConvNeXt-T's last feature map
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


class Drawing:
    """A page of SIZE units, and the shapes that the figure is made of."""

    def __init__(self):
        import matplotlib.pyplot as plt
        from matplotlib import patches

        self.figure, self.patches = plt.figure(figsize=(SIZE[0] / 13, SIZE[1] / 13)), patches
        self.axis = self.figure.add_axes((0, 0, 1, 1))

    def text(self, x, y, text, size=9.5, colour=INK, **more):
        self.axis.text(x, y, text, fontsize=size, color=colour, **{"ha": "center", "va": "center", **more})

    def arrow(self, start, end, bend=0.0):
        style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": SOFT, "shrinkA": 0, "shrinkB": 0}
        self.add("FancyArrowPatch", start, end, connectionstyle=f"arc3,rad={bend}", **style)

    def rectangle(self, x, y, width, height, colour, edge="white", line=0.6, **more):
        self.add("Rectangle", (x, y), width, height, facecolor=colour, edgecolor=edge, linewidth=line, **more)

    def add(self, patch, *args, **kwargs):
        self.axis.add_patch(getattr(self.patches, patch)(*args, **kwargs))

    def image(self, picture, x, y, width, height):
        self.axis.imshow(picture, extent=(x, x + width, y, y + height), aspect="auto")

    def region(self, k, x, y, width, height, label):
        """Tint a region of an image, frame it in its colour, and write its name at `label`."""
        self.rectangle(x, y, width, height, COLOURS[k], "none", alpha=0.12)
        self.rectangle(x + 0.18, y + 0.18, width - 0.36, height - 0.36, "none", COLOURS[k], 2)
        self.text(*label, NAMES[k], 9, COLOURS[k], weight="bold")

    def cells(self, x, y, rows, columns, region, side=1.4):
        """A feature map of coloured cells; `region` gives a cell's region from its (row, column)."""
        for row, column in np.ndindex(rows, columns):
            self.rectangle(x + column * side, y + row * side, side, side, COLOURS[region(row, column)])

    def plate(self, k, x, y):
        """A region's name, white on its colour."""
        patch = {"facecolor": COLOURS[k], "edgecolor": "none", "pad": 1}
        self.text(x, y, NAMES[k], 8.5, "white", weight="bold", bbox=patch)


def draw_inputs(page, ground, aerial):
    """The pair, its four regions tinted and named."""
    page.image(ground, 2, GROUND - 5, 36, 10)
    for k in range(4):
        page.region(k, 2 + 9 * k, GROUND - 5, 9, 10, (6.5 + 9 * k, GROUND - 7))
    for k, letter in enumerate("SWNES"):
        page.text(2 + 9 * k, GROUND + 6.6, letter, 8.5, SOFT)
    page.text(20, GROUND + 10.2, "ground panorama, north-aligned", 10)
    page.image(aerial, 11, AERIAL - 9, 18, 18)
    for k, (right, upper) in enumerate(CORNERS):
        y = AERIAL - 9 + 9 * upper
        page.region(k, 11 + 9 * right, y, 9, 9, (31.4 if right else 8.6, y + 4.5))
    page.text(20, AERIAL - 11.5, "aerial image, north up", 10)


def draw_encoder(page, y, name, start):
    """A trapezium that narrows from the image to the feature map."""
    corners = [(43, y - 8), (43, y + 8), (58, y + 5), (58, y - 5)]
    page.add("Polygon", corners, facecolor="#e9edf2", edgecolor=INK)
    page.text(50.5, y + 1.7, "ConvNeXt-T", 10, weight="bold")
    page.text(50.5, y - 1.8, name, 8.5, SOFT, family="monospace")
    page.arrow((start, y), (42.6, y))
    page.arrow((58.4, y), (64.5, y))


def draw_maps(page):
    """Both feature maps as grids of cells coloured by region, for 128 x 512 and 256 x 256 pixels."""
    page.cells(66, GROUND - 2.8, 4, 16, lambda row, column: column // 4)
    page.cells(71.6, AERIAL - 5.6, 8, 8, lambda row, column: CORNERS.index((column // 4, row // 4)))
    for k, (right, upper) in enumerate(CORNERS):
        page.plate(k, 68.8 + 5.6 * k, GROUND)
        page.plate(k, 74.4 + 5.6 * right, AERIAL - 2.8 + 5.6 * upper)
    page.text(77.2, GROUND + 5.4, f"$F^g$: 4 × 16 × {WIDTH}")
    page.text(77.2, AERIAL - 8.2, f"$F^a$: 8 × 8 × {WIDTH}")


def draw_descriptor(page, y, symbol, end_of_map):
    """Four averages, top to bottom in FRM's order, the final LayerNorm, and the descriptor of four segments."""
    page.arrow((end_of_map + 0.6, y), (97.2, y))
    page.text((end_of_map + 98) / 2 - 0.2, y + 1.7, "mean", 8.5, SOFT)
    for k, (name, colour) in enumerate(REGIONS.items()):
        middle = y + (1.5 - k) * 4.4
        page.rectangle(98, middle - 1.5, 3, 3, colour, INK, 0.8)
        page.text(101.8, middle, name, 8.5, colour, weight="bold", ha="left")
        page.rectangle(122 + 6.4 * k, y - 1.7, 6.4, 3.4, colour, INK, 0.8)
        page.text(125.2 + 6.4 * k, y, name, 8.5, "white", weight="bold")
    rounded = {"boxstyle": "round,pad=0,rounding_size=0.8", "facecolor": "white", "edgecolor": INK}
    page.add("FancyBboxPatch", (112, y - 8), 4.6, 16, **rounded)
    page.text(114.3, y, "LayerNorm", rotation=90)
    page.arrow((107.2, y), (111.6, y))
    page.arrow((117, y), (121.4, y))
    page.text(134.8, y + 4.2, f"descriptor ${symbol}$, concatenated")
    page.text(134.8, y - 4, f"4 × {WIDTH} = {4 * WIDTH}")


def draw_loss(page, count=5, cell=3.6, x=163, middle=37.5):
    """The batch's similarities, true pairs on the diagonal, and the loss in words and letters."""
    shades = np.random.default_rng(3).uniform(0.05, 0.3, (count, count))
    low, centre = middle - count * cell / 2, x + count * cell / 2
    for i, j in np.ndindex(count, count):
        colour = RED if i == j else str(1 - shades[i, j])
        page.rectangle(x + j * cell, low + (count - 1 - i) * cell, cell, cell, colour, line=1)
    page.text(x - 1.6, middle, "$q_i$", 11, ha="right")
    page.text(centre, low + count * cell + 2, "$k_j$", 11)
    page.text(centre, low + count * cell + 6, "cosine similarities $s_{ij}$ of a batch of B pairs")
    page.text(centre, low - 2.4, "red: true pairs $s_{ii}$", 9, RED)
    loss = r"$L(q,k)=\frac{1}{B}\sum_i\,\log\left(1+\sum_{j\neq i}e^{\,\alpha(s_{ij}-s_{ii})}\right)$"
    page.text(centre, low - 8.6, loss, 11)
    whole = rf"$\mathrm{{WBL}}=\frac{{1}}{{2}}\,\left(L(q,k)+L(k,q)\right),\quad\alpha={WBL_ALPHA:g}$"
    page.text(centre, low - 15, whole, 11)
    for y, bend in ((GROUND, -0.25), (AERIAL, 0.25)):
        page.arrow((148.4, y), (x - 5.5, middle + (y - middle) * 0.14), bend)


def draw(ground, aerial):
    """The whole figure, from left to right."""
    page = Drawing()
    dashed = {"boxstyle": "round,pad=0,rounding_size=0.8", "facecolor": "#fafafa", "edgecolor": SOFT, "linewidth": 1.2}
    page.add("FancyBboxPatch", (63, 6), 43.6, 65, linestyle="--", **dashed)
    for x, title in ((20, "a pair"), (50.5, "encoders"), (85, "Feature Recombination Module"), (130, "descriptors")):
        page.text(x, 73.4, title, 11, weight="bold")
    page.text(172, 73.4, "weighted (B+1)-tuple loss", 11, weight="bold")
    page.text(85, 68.4, "no parameters", 9.5, SOFT)
    page.text(85, 37.5, "the same four compass regions of the\nplace, in the same order in both views", 9.5, SOFT)
    page.text(50.5, 37.5, "separate\nweights", 9.5, SOFT)
    page.text(114.6, 37.5, "the encoder's\nfinal norm, one\nfor four regions", 9, SOFT)
    draw_inputs(page, ground, aerial)
    draw_maps(page)
    draw_encoder(page, GROUND, "query_net", 38.6)
    draw_encoder(page, AERIAL, "reference_net", 33.5)
    draw_descriptor(page, GROUND, "q", 88.4)
    draw_descriptor(page, AERIAL, "k", 82.8)
    draw_loss(page)
    page.axis.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]), aspect="auto")
    page.axis.axis("off")
    return page.figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", type=path, default=Path("images/overview"), help="path without ending (%(default)s)")
    parser.add_argument("--ground", type=path, help="panorama to show, with --aerial (default: from a procedural city)")
    parser.add_argument("--aerial", type=path, help="aerial image to show, with --ground")
    parser.add_argument("--seed", type=natural, default=2, help="seed of the procedural city (default: 2)")
    args = parser.parse_args(argv)
    with handle_errors("plot_overview.py"):
        from dataset.transforms import read_image

        if (args.ground is None) != (args.aerial is None):
            raise UserError("--ground and --aerial belong to one pair; pass both or neither")
        pair = (read_image(args.ground), read_image(args.aerial)) if args.ground else city_pair(args.seed)
        save_figure(draw(*pair), args.out, dpi=150)


if __name__ == "__main__":
    main()
