#!/usr/bin/env python
"""Draw how well the two views' descriptors pair: t-SNE of some pairs, each joined by a line (needs scikit-learn).

    python scripts/plot_tsne.py SAVE_PATH [SAVE_PATH ...] [--names "one average" FRGeo] [--pairs 100]
    python scripts/plot_tsne.py grd_global_descriptor.npy sat_global_descriptor.npy --out tsne

Reads what `train.py -e` wrote to each SAVE_PATH (a panel each), or two files whose rows are pairs. Writes tsne.png and
tsne.pdf to the first SAVE_PATH, or OUT.png and OUT.pdf. The numbers above a panel are those of all descriptors in their
own space: R@1, and the mean distance of true pairs over the mean distance of a query to the whole gallery.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts import common
from utils.options import Parser, UserError, handle_errors, natural, path, positive

BLOCK = 128  # queries compared with the gallery at once


class Paired(NamedTuple):
    """Normalised descriptors (N, D) and (M, D), and the row of each query's positive (N,)."""

    query: np.ndarray
    reference: np.ndarray
    labels: np.ndarray


def read_sources(sources, data_root, names):
    """{name: Paired} of run folders, or of two descriptor files, whose name may be empty."""
    if common.are_files(sources):
        return {common.run_names(sources[:1], names or [""])[0]: read_files(*sources)}
    names = common.run_names(sources, names)
    return {name: read_run(folder, data_root) for name, folder in zip(names, sources, strict=True)}


def read_files(ground, aerial):
    """Two .npy files whose rows are pairs. Raises UserError if they differ in shape."""
    query, reference = common.read_rows(ground), common.read_rows(aerial)
    if query.shape != reference.shape:
        raise UserError(
            f"{ground} has shape {query.shape}, {aerial} {reference.shape}; expected equal shapes (pairs, numbers), or "
            "pass the folder of the run, whose data set says which tile covers which panorama"
        )
    return Paired(common.unit(query), common.unit(reference), np.arange(len(query)))


def read_run(folder, data_root):
    """The descriptors of an evaluation; only a layout whose pairs are not one to one needs its data."""
    from dataset.build import LAYOUTS

    options, (query, reference) = common.load_descriptors(folder)
    if LAYOUTS[options.dataset].one_to_one:
        return Paired(common.unit(query), common.unit(reference), np.arange(len(query)))
    query, reference, listed, _ = common.load_evaluation(folder, data_root)
    return Paired(query, reference, listed.labels)


def pairing(paired):
    """Ranks of the positives (N,), and the mean distance of true pairs over that of all pairs."""
    from utils.metrics import positive_ranks

    query, reference, labels = paired
    true = np.linalg.norm(query - reference[labels], axis=1).mean()
    blocks = (query[i : i + BLOCK] @ reference.T for i in range(0, len(query), BLOCK))
    total = sum(np.sqrt(np.maximum(2 - 2 * block, 0)).sum(dtype=np.float64) for block in blocks)
    return positive_ranks(query, reference, labels), float(true / (total / (len(query) * len(reference))))


def draw_pairs(paired, count, seed):
    """Rows of at most `count` queries with different positives."""
    order = np.random.default_rng(seed).permutation(len(paired.labels))
    _, first = np.unique(paired.labels[order], return_index=True)
    return order[np.sort(first)[:count]]


def embed(points, perplexity, seed):
    """(N, 2) positions by t-SNE, and their Kullback-Leibler divergence. Raises UserError without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("t-SNE requires scikit-learn: pip install scikit-learn") from None
    perplexity = min(perplexity, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(points.astype(np.float64)), tsne.kl_divergence_


def draw_panel(axis, name, paired, args):
    """One embedding of both views. Returns the sentence that says how well they pair."""
    ranks, ratio = pairing(paired)
    chosen = draw_pairs(paired, args.pairs, args.seed)
    points = np.concatenate([paired.query[chosen], paired.reference[paired.labels[chosen]]])
    positions, divergence = embed(points, args.perplexity, args.seed)
    ground, aerial = np.split(positions, 2)
    for a, b, rank in zip(ground, aerial, ranks[chosen], strict=True):
        colour, width = (common.GREY, 1) if rank == 0 else (common.RED, 1.3)
        axis.plot(*zip(a, b, strict=True), color=colour, linewidth=width, zorder=1)
    axis.scatter(*ground.T, s=22, color=common.BLUE, linewidths=0, zorder=2)
    axis.scatter(*aerial.T, s=26, color=common.ORANGE, marker="^", linewidths=0, zorder=2)
    axis.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    numbers = f"R@1 {100 * np.mean(ranks == 0):.1f} %, pair distance {ratio:.3f} of the mean distance"
    axis.set_title(f"{common.shorten(name, 50)}\n{numbers}" if name else numbers, fontsize=10)
    return (
        f"{name or 'descriptors'}: {numbers} ({len(paired.query)} queries, gallery of {len(paired.reference)}); "
        f"drawn: {len(chosen)} pairs, KL divergence {divergence:.3f}"
    )


def draw(panels, args):
    """A panel per {name: Paired}, and one legend."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 5.7), squeeze=False)
    for axis, (name, paired) in zip(axes[0], panels.items(), strict=True):
        print(draw_panel(axis, name, paired, args))
    marks = {"linestyle": "none", "markersize": 6}
    handles = [
        Line2D([], [], marker="o", color=common.BLUE, label="ground", **marks),
        Line2D([], [], marker="^", color=common.ORANGE, label="aerial", **marks),
        Line2D([], [], color=common.GREY, label="pair, found first"),
        Line2D([], [], color=common.RED, label="pair, not found first"),
    ]
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("sources", nargs="+", type=path, metavar="SAVE_PATH", help="evaluated runs, or two .npy files")
    parser.add_argument("--names", nargs="+", help="titles of the panels (default: the folders' names)")
    parser.add_argument("--data-root", type=path, help="folder of the data, for VIGOR only (default: the run's)")
    parser.add_argument("--pairs", type=positive, default=100, help="pairs to draw (default: 100)")
    parser.add_argument("--perplexity", type=positive, default=15, help="neighbours that count (default: 15)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of the pairs drawn and of t-SNE (default: 0)")
    parser.add_argument("--out", type=path, help="path without ending (default: tsne in the first folder)")
    args = parser.parse_args(argv)
    with handle_errors("plot_tsne.py"):
        panels = read_sources(args.sources, args.data_root, args.names)
        for name, paired in panels.items():
            if len(set(paired.labels.tolist())) < 2:
                raise UserError(f"{name or args.sources[0]} holds fewer than 2 pairs; nothing to compare")
        first = args.sources[0]
        common.save_figure(draw(panels, args), args.out or (first if first.is_dir() else first.parent) / "tsne")


if __name__ == "__main__":
    main()
