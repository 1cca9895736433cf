#!/usr/bin/env python
"""Draw what each view attends to when a query meets its true aerial image, one run beside another.

    python scripts/plot_heatmap.py RUN_GAP RUN_FRM --names "one average" FRGeo [--count 4 --seed 0 | --queries 3 17 20]

Each run is a folder with args.json and weights (model_best.pth.tar, else checkpoint.pth.tar), or one that evaluated
weights from elsewhere. Writes heatmap.png and heatmap.pdf to the last folder, or OUT.png and OUT.pdf.

The heat is class activation mapping (CAM, Zhou et al., CVPR 2016) with the other view's descriptor in place of a class:
what each cell of an encoder's last feature map adds to the pair's cosine similarity. Averages are linear and the final
LayerNorm's deviation is held fixed, so the cells add up to the similarity, less the share of the norm's bias. Negative
values are cut, and each image is scaled to its largest. The number beside a row is the pair's similarity; dotted lines
are the borders of FRM's regions in the last run.
"""

import sys
from copy import copy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts import common
from utils.options import Parser, UserError, handle_errors, path

SHOWN_HEIGHT = 256  # pixels of a panorama on the page
BLOCKS = 2  # queries side by side
BLOCK_WIDTH, LABEL, LETTERS, GAP = 6.6, 0.5, 0.26, 0.06  # inches; LABEL left of a block, LETTERS above it
SAME = ("dataset", "data_root", "cross", "vigor_cities", "eval_split", "fov", "orientation")  # in all runs on a page


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
    scale = (q.flatten(1).norm(dim=1) * k.flatten(1).norm(dim=1))[:, None, None]
    heat = [contributions(e, m, other / scale) for e, m, other in zip(encoders, maps, (k, q), strict=True)]
    return *heat, F.cosine_similarity(q.flatten(1), k.flatten(1))


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


def attend_queries(folder, args):
    """A run's options, the rows to show, and [(ground heat, aerial heat, similarity)] of these rows."""
    import torch

    from dataset.build import build_datasets

    model, options = common.load_model(folder)
    options.data_root = args.data_root or options.data_root
    if options.data_root:
        options.data_root = str(Path(options.data_root).resolve())
    _, query, reference = build_datasets(options)
    rows = common.chosen_queries(args, len(query))
    ground = torch.stack([query[i].image for i in rows])
    aerial = torch.stack([reference[int(query.labels[i])].image for i in rows])
    return options, rows, list(zip(*attend(model, ground, aerial), strict=True))


def refuse_other_images(options, others):
    """Raises UserError if one of {folder: options} looks at other images than `options`."""
    names = SAME if options.orientation != "unknown" else (*SAME, "seed")
    for folder, other in others.items():
        for name in names:
            if (its := getattr(other, name)) != (last := getattr(options, name)):
                raise UserError(f"{folder} looks at other images than the last run: {name} is {its}, not {last}")


def images_to_show(options, rows):
    """[(panorama, aerial image)] of the rows, (H, W, 3) uint8, sharper than the network sees them."""
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
    lines = 1 + len(panels)
    aspects = [picture.shape[1] / picture.shape[0] for picture in pictures[0]]
    side = (BLOCK_WIDTH - LABEL) / (sum(aspects) + 0.1)  # inches of a picture's height
    block_height = lines * (side + GAP) + LETTERS
    width, height = columns * BLOCK_WIDTH, -(-len(rows) // columns) * block_height
    figure = plt.figure(figsize=(width, height))
    for number, (row, pair) in enumerate(zip(rows, pictures, strict=True)):
        x = number % columns * BLOCK_WIDTH + LABEL
        top = height - number // columns * block_height - LETTERS
        contents = [(f"query {row}", (None, None))]
        contents += [(f"{name}\n{heats[number][2]:.2f}", heats[number][:2]) for name, heats in panels.items()]
        for line, (label, heats) in enumerate(contents):
            left, bottom = x, top - (line + 1) * side - line * GAP
            for view, picture, heat, aspect in zip(("ground", "aerial"), pair, heats, aspects, strict=True):
                axis = figure.add_axes((left / width, bottom / height, aspect * side / width, side / height))
                draw_view(axis, view, picture, heat, regions)
                if view == "ground":
                    label = "\n".join(common.shorten(part, 24) for part in label.split("\n"))
                    axis.set_ylabel(label, fontsize=8.5)
                if view == "ground" and heat is None and not turned:
                    axis.set_xticks(np.arange(5) / 4 * picture.shape[1] - 0.5, list("SWNES"), fontsize=8)
                    axis.tick_params(length=0, pad=1, top=False, labeltop=True, labelbottom=False)
                left += aspect * side + GAP
    return figure


def borders(view, regions):
    """Lines ((x, x), (y, y)) between FRM's regions (`model.recombination`), in shares of the image's size."""
    if view == "ground":
        return [((k / regions, k / regions), (0, 1)) for k in range(1, regions)]
    upright, level = ((0.5, 0.5), (0, 1)), ((0, 1), (0.5, 0.5))
    return {1: [], 2: [upright], 4: [upright, level]}.get(regions, [upright, level, ((0, 1), (0, 1)), ((0, 1), (1, 0))])


def draw_view(axis, view, picture, heat, regions):
    """An image with FRM's borders; grey under its heat if that is given."""
    height, width = picture.shape[:2]
    axis.imshow(picture if heat is None else picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, aspect="auto")
    if heat is not None:
        heat = enlarge(heat, (height, width))
        axis.imshow(heat, cmap="inferno", alpha=np.clip(1.3 * heat, 0, 0.85), vmin=0, vmax=1, aspect="auto")
    for x, y in borders(view, regions):
        axis.plot(np.array(x) * width - 0.5, np.array(y) * height - 0.5, color="white", linestyle=":", linewidth=1)
    axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=path, metavar="RUN", help="folders of trained runs, on the same data")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: the folders')")
    parser.add_argument("--data-root", type=path, help="folder of the data (default: each run's own)")
    common.add_query_flags(parser, 4)
    parser.add_argument("--out", type=path, help="path without ending (default: heatmap in the last folder)")
    args = parser.parse_args(argv)
    with handle_errors("plot_heatmap.py"):
        names = common.run_names(args.runs, args.names)
        found = {folder: attend_queries(folder, args) for folder in args.runs}
        options, rows, _ = found[args.runs[-1]]
        refuse_other_images(options, {folder: other for folder, (other, *_) in found.items()})
        panels = {name: found[folder][2] for name, folder in zip(names, args.runs, strict=True)}
        turned = bool(options.fov % 360) or options.orientation == "unknown"
        figure = draw(images_to_show(options, rows), rows, panels, options.regions, turned)
        common.save_figure(figure, args.out or args.runs[-1] / "heatmap")


if __name__ == "__main__":
    main()
