#!/usr/bin/env python
"""Draw how well the two views' descriptors pair: t-SNE of a drawn subset, each pair joined by a line.

    python scripts/plot_tsne.py SAVE_PATH [SAVE_PATH ...] [--names "one average" FRGeo] [--pairs 100]
    python scripts/plot_tsne.py grd_global_descriptor.npy sat_global_descriptor.npy --out tsne

Reads what `train.py ... -e` left in each SAVE_PATH (a panel each), or two files whose rows are pairs. Writes tsne.png
and tsne.pdf into the first SAVE_PATH, or OUT.png and OUT.pdf. The numbers above a panel are those of all descriptors in
their own space: R@1, and the mean distance of true pairs over the mean distance of a query to the whole gallery.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts.figures import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    load_descriptors,
    load_evaluation,
    refuse_searched,
    run_names,
    run_options,
    save_figure,
    shorten,
    unit,
)
from scripts.tsne import tsne
from utils.arguments import Parser, mistakes_told, natural, positive
from utils.errors import UserError
from utils.run_files import read_rows

QUERIES = 128  # compared with the gallery at once


class Paired(NamedTuple):
    """Normalised descriptors (N, D) and (M, D), and the row of each query's positive (N,)."""

    query: np.ndarray
    reference: np.ndarray
    labels: np.ndarray


def read_sources(sources, data_root, names):
    """{name: Paired} of run folders, or of two descriptor files.

    Raises:
        UserError: neither, or files that are missing or do not belong together.
    """
    files = [path.suffix == ".npy" for path in sources]
    if any(files):
        if files != [True, True]:
            raise UserError(f"{', '.join(map(str, sources))}: give folders of runs, or exactly two .npy files")
        return {run_names(sources[:1], names or [""])[0]: read_files(*sources)}
    names = run_names(sources, names)
    return {name: read_run(folder, data_root) for name, folder in zip(names, sources, strict=True)}


def read_files(ground, aerial):
    """Two .npy files whose rows are pairs."""
    query, reference = read_rows(ground), read_rows(aerial)
    if query.shape != reference.shape:
        raise UserError(
            f"{ground} has shape {query.shape}, {aerial} {reference.shape}; expected two equal ones (pairs, numbers), "
            "or the folder of the run, whose data set says which tile covers which panorama"
        )
    return Paired(unit(query), unit(reference), np.arange(len(query)))


def read_run(folder, data_root):
    """The descriptors of an evaluation; only a layout whose pairs are not one to one needs its data."""
    from dataset.build import LAYOUTS

    query, reference = load_descriptors(folder)
    options = run_options(folder, evaluation=True)
    refuse_searched(folder, options)
    if LAYOUTS[options.dataset].one_to_one:
        return Paired(unit(query), unit(reference), np.arange(len(query)))
    query, reference, listed, _ = load_evaluation(folder, data_root)
    return Paired(query, reference, listed.labels)


def pairing(paired):
    """Ranks of the positives (N,), and the mean distance of true pairs over that of all pairs."""
    from utils.metrics import positive_ranks

    query, reference, labels = paired
    ranks = positive_ranks(query, reference, labels)
    true = np.linalg.norm(query - reference[labels], axis=1).mean()
    total = 0.0
    for part in np.array_split(query, -(-len(query) // QUERIES)):
        total += np.sqrt(np.maximum(2 - 2 * part @ reference.T, 0)).sum(dtype=np.float64)
    return ranks, float(true / (total / (len(query) * len(reference))))


def draw_pairs(paired, count, seed):
    """Rows of queries with different positives, at most `count`."""
    order = np.random.default_rng(seed).permutation(len(paired.labels))
    _, first = np.unique(paired.labels[order], return_index=True)
    return order[np.sort(first)[:count]]


def draw_panel(axis, name, paired, chosen, perplexity, seed):
    """One embedding of both views. Returns the sentence that says how well they pair."""
    ranks, ratio = pairing(paired)
    position, divergence = tsne(
        np.concatenate([paired.query[chosen], paired.reference[paired.labels[chosen]]]), perplexity, seed=seed
    )
    ground, aerial = np.split(position, 2)
    right = ranks[chosen] == 0
    for a, b, found in zip(ground, aerial, right, strict=True):
        axis.plot(*zip(a, b, strict=True), color=GREY if found else RED, linewidth=1 if found else 1.3, zorder=1)
    axis.scatter(*ground.T, s=22, color=BLUE, linewidths=0, zorder=2)
    axis.scatter(*aerial.T, s=26, color=ORANGE, marker="^", linewidths=0, zorder=2)
    axis.set(xticks=[], yticks=[], aspect="equal")
    axis.set_adjustable("datalim")
    numbers = f"R@1 {100 * np.mean(ranks == 0):.1f} %, pair distance {ratio:.3f} of the mean distance"
    axis.set_title(f"{shorten(name, 50)}\n{numbers}" if name else numbers, fontsize=10)
    return (
        f"{name or 'descriptors'}: {numbers} ({len(paired.query)} queries, gallery of {len(paired.reference)}); "
        f"drawn: {len(chosen)} pairs, KL divergence {divergence[-1]:.3f}"
    )


def draw(panels, count, perplexity, seed):
    """A panel per {name: Paired}, and one legend."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 5.7), squeeze=False)
    for axis, (name, paired) in zip(axes[0], panels.items(), strict=True):
        print(draw_panel(axis, name, paired, draw_pairs(paired, count, seed), perplexity, seed))
    marks = {"linestyle": "none", "markersize": 6}
    handles = [
        Line2D([], [], marker="o", color=BLUE, label="ground", **marks),
        Line2D([], [], marker="^", color=ORANGE, label="aerial", **marks),
        Line2D([], [], color=GREY, label="pair, found first"),
        Line2D([], [], color=RED, label="pair, not found first"),
    ]
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SAVE_PATH", help="evaluated runs, or two .npy files")
    parser.add_argument("--names", nargs="+", help="titles of the panels (default: the folders' names)")
    parser.add_argument("--data-root", help="folder of the data, which only VIGOR needs (default: the run's)")
    parser.add_argument("--pairs", type=positive, default=100, help="pairs to draw, at most 1000 (default: 100)")
    parser.add_argument("--perplexity", type=positive, default=15, help="neighbours that count (default: 15)")
    parser.add_argument("--seed", type=natural, default=0, help="of the draw of pairs (default: 0)")
    parser.add_argument("--out", type=Path, help="where to write, without ending (default: tsne in the first folder)")
    args = parser.parse_args(argv)
    with mistakes_told("plot_tsne.py"):
        if args.pairs > 1000:
            raise UserError(f"--pairs {args.pairs} is too many for an exact t-SNE; give at most 1000")
        panels = read_sources(args.sources, args.data_root, args.names)
        for name, paired in panels.items():
            if len(set(paired.labels.tolist())) < 2:
                raise UserError(f"{name or args.sources[0]} holds fewer than 2 pairs; nothing to compare")
        first = args.sources[0]
        out = args.out or (first if first.is_dir() else first.parent) / "tsne"
        save_figure(draw(panels, args.pairs, args.perplexity, args.seed), out)


if __name__ == "__main__":
    main()
