#!/usr/bin/env python
"""Draw what each view attends to when a query meets its true aerial image, one run beside another.

    python scripts/plot_heatmap.py RUN_GAP RUN_FRM --names "one average" FRGeo [--count 4 --seed 0 | --queries 3 17 20]

Each run's folder holds args.json and weights (model_best.pth.tar, else checkpoint.pth.tar), or an evaluation of weights
that lie elsewhere. Writes heatmap.png and
heatmap.pdf into the last folder, or OUT.png and OUT.pdf.

The heat is class activation mapping (CAM, Zhou et al., CVPR 2016) with the other view's descriptor in the place of a
class: what each cell of an encoder's last feature map adds to the pair's cosine similarity. Averaging is linear and
the final LayerNorm's deviation is held, so the cells add up to the similarity, less the share of the norm's bias.
Negative values are cut, and each image is scaled to its largest. The number beside a row is the pair's similarity;
dotted lines are the borders of FRM's regions, in the last run.
"""

import sys
from copy import copy
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts.figures import add_query_flags, chosen_queries, load_model, run_names, save_figure, shorten
from utils.arguments import Parser, mistakes_told
from utils.errors import UserError

SHOWN_HEIGHT = 256  # pixels of a panorama on the page
BLOCKS = 2  # queries side by side
BLOCK_WIDTH, LABEL, LETTERS = 6.6, 0.5, 0.26  # inches; LABEL left of a block, LETTERS above it
VIEWS = ("ground", "aerial")
SAME = ("dataset", "data_root", "cross", "vigor_cities", "eval_split", "fov", "orientation")  # of all runs on a page


def attend(model, ground, aerial):
    """What the cells of both views' feature maps add to the similarity of pairs.

    Args:
        model: `model.FRGeo`, or any two encoders query_net and reference_net built like `model.frgeo.Encoder`.
        ground: (B, 3, Hg, Wg), aerial: (B, 3, Ha, Wa) float, as the network takes them.

    Returns:
        (ground heat (B, hg, wg), aerial heat (B, ha, wa), cosine similarities (B,)), as tensors.
    """
    import torch
    import torch.nn.functional as F

    encoders = (model.query_net, model.reference_net)
    with torch.no_grad():
        maps = [encoder.backbone(images) for encoder, images in zip(encoders, (ground, aerial), strict=True)]
        q, k = (e.backbone.norm(e.pooling(m)) for e, m in zip(encoders, maps, strict=True))  # (B, R, C)
    similarity = F.cosine_similarity(q.flatten(1), k.flatten(1))
    scale = q.flatten(1).norm(dim=1) * k.flatten(1).norm(dim=1)
    heat = [
        contributions(encoder, feature_map, other / scale[:, None, None])
        for encoder, feature_map, other in zip(encoders, maps, (k, q), strict=True)
    ]
    return *heat, similarity


def contributions(encoder, feature_map, direction):
    """(B, h, w) shares of a (B, C, h, w) map's cells in the product of its descriptor with a (B, R, C) direction."""
    import torch

    norm = encoder.backbone.norm
    feature_map = feature_map.detach().requires_grad_()
    regions = encoder.pooling(feature_map)  # (B, R, C)
    deviation = (regions.detach().var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    weights = direction * norm.weight / deviation
    weights = (weights - weights.mean(dim=-1, keepdim=True)).detach()  # the norm takes the channels' mean away
    (gradient,) = torch.autograd.grad((regions * weights).sum(), feature_map)
    return (feature_map * gradient).sum(dim=1).detach()


def enlarge(heat, size):
    """The positive part of (h, w) heat, 0 .. 1, over an image of `size` (H, W), bilinear."""
    import torch.nn.functional as F

    heat = heat.clamp_min(0) / heat.max().clamp_min(1e-12)
    return F.interpolate(heat[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def attend_queries(folder, data_root, rows):
    """Of a run: its options, query dataset, chosen rows, and (ground heat, aerial heat, similarity) of each row.

    Args:
        rows: function that takes the number of queries and gives the rows to show.
    """
    import torch

    from dataset.build import build_datasets

    model, options = load_model(folder)
    options.data_root = data_root or options.data_root
    if options.data_root:
        options.data_root = str(Path(options.data_root).resolve())
    _, query, reference = build_datasets(options)
    chosen = rows(len(query))
    images = [torch.stack([query[i].image for i in chosen])]
    images += [torch.stack([reference[int(query.labels[i])].image for i in chosen])]
    return options, chosen, list(zip(*attend(model, *images), strict=True))


def images_to_show(options, rows):
    """(H, W, 3) uint8 panoramas and aerial images of the rows, sharper than the network sees them."""
    from dataset.build import build_datasets

    larger = copy(options)
    scale = max(1, round(SHOWN_HEIGHT / options.ground_size[0]))
    larger.ground_size, larger.aerial_size = (
        [scale * n for n in s] for s in (options.ground_size, options.aerial_size)
    )
    _, query, reference = build_datasets(larger, pixels=True)
    pairs = [(query[i].image, reference[int(query.labels[i])].image) for i in rows]
    return [[image.movedim(0, -1).numpy() for image in pair] for pair in pairs]


def draw(pictures, rows, panels, regions, turned):
    """A block per query: its pair as it is, and a row per {run: [(ground heat, aerial heat, similarity)]}."""
    import matplotlib.pyplot as plt

    columns = min(BLOCKS, len(rows))
    lines, rows_of_blocks = 1 + len(panels), -(-len(rows) // columns)
    aspects = [picture.shape[1] / picture.shape[0] for picture in pictures[0]]
    unit = (BLOCK_WIDTH - LABEL) / (sum(aspects) + 0.1)  # inches of a picture's height
    width, height = columns * BLOCK_WIDTH, rows_of_blocks * (lines * (unit + 0.06) + LETTERS)
    figure = plt.figure(figsize=(width, height))
    for number, (row, pictured) in enumerate(zip(rows, pictures, strict=True)):
        x = number % columns * BLOCK_WIDTH + LABEL
        y = height - number // columns * (height / rows_of_blocks) - LETTERS
        contents = [(f"query {row}", None)] + [
            (f"{name}\n{heats[number][2]:.2f}", heats[number][:2]) for name, heats in panels.items()
        ]
        for line, (label, heats) in enumerate(contents):
            bottom = y - (line + 1) * unit - line * 0.06
            axes = [
                figure.add_axes((left / width, bottom / height, aspect * unit / width, unit / height))
                for left, aspect in zip((x, x + aspects[0] * unit + 0.06), aspects, strict=True)
            ]
            draw_row(axes, pictured, label, regions, turned, heats)
    return figure


def borders(view, regions):
    """Lines ((x, x), (y, y)) between FRM's regions (`model.recombination`), in shares of the image's size."""
    if view == "ground":
        return [((k / regions, k / regions), (0, 1)) for k in range(1, regions)]
    upright, level = ((0.5, 0.5), (0, 1)), ((0, 1), (0.5, 0.5))
    return {1: [], 2: [upright], 4: [upright, level]}.get(regions, [upright, level, ((0, 1), (0, 1)), ((0, 1), (1, 0))])


def draw_row(axes, pictured, label, regions, turned, heats=None):
    """One pair, with heat where it is given, with borders and compass letters where it is not."""
    for axis, view, picture, heat in zip(axes, VIEWS, pictured, heats or (None, None), strict=True):
        height, width = picture.shape[:2]
        axis.imshow(picture if heat is None else picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, aspect="auto")
        if heat is not None:
            heat = enlarge(heat, (height, width))
            axis.imshow(heat, cmap="inferno", alpha=np.clip(1.3 * heat, 0, 0.85), vmin=0, vmax=1, aspect="auto")
        for x, y in borders(view, regions):
            axis.plot(np.array(x) * width - 0.5, np.array(y) * height - 0.5, color="white", linestyle=":", linewidth=1)
        axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        if heat is None and view == "ground" and not turned:
            axis.set_xticks(np.arange(5) / 4 * width - 0.5, list("SWNES"), fontsize=8)
            axis.tick_params(length=0, pad=1, top=False, labeltop=True, labelbottom=False)
    axes[0].set_ylabel("\n".join(shorten(line, 24) for line in label.split("\n")), fontsize=8.5)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of trained runs, on the same data")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: the folders')")
    parser.add_argument("--data-root", help="folder of the data (default: the one each run was given)")
    add_query_flags(parser, 4)
    parser.add_argument("--out", type=Path, help="where to write, without ending (default: heatmap in the last folder)")
    args = parser.parse_args(argv)
    with mistakes_told("plot_heatmap.py"):
        names = run_names(args.runs, args.names)
        found = [attend_queries(folder, args.data_root, partial(chosen_queries, args)) for folder in args.runs]
        options, rows, _ = found[-1]
        for (other, _, _), folder in zip(found, args.runs, strict=True):
            for name in SAME if options.orientation != "unknown" else (*SAME, "seed"):
                if (given := getattr(other, name)) != (last := getattr(options, name)):
                    raise UserError(
                        f"{folder} and {args.runs[-1]} look at different images: {name} is {given} and {last}; give "
                        "runs that look at the same"
                    )
        panels = {name: heats for name, (_, _, heats) in zip(names, found, strict=True)}
        turned = bool(options.fov % 360) or options.orientation == "unknown"
        figure = draw(images_to_show(options, rows), rows, panels, options.regions, turned)
        save_figure(figure, args.out or args.runs[-1] / "heatmap")


if __name__ == "__main__":
    main()
