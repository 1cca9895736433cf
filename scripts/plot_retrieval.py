#!/usr/bin/env python
"""Draw retrieval examples and the recall curve of an evaluated run.

    python scripts/plot_retrieval.py SAVE_PATH [--data-root DIR] [--queries ROW ... | --failures]
    python scripts/plot_retrieval.py grd_global_descriptor.npy sat_global_descriptor.npy --dataset vigor --data-root DIR

Reads what `train.py ... -e` left in SAVE_PATH: the descriptors, metrics.json and args.json; or two files of
descriptors, with the flags of train.py that say which data they are of (--cross, --eval-split ... as well). Writes,
into SAVE_PATH, beside the files, or into --out, retrieval.png (each query with its five most similar aerial images, the
true one framed red, VIGOR's semi-positives green) and recall.png (share of queries whose positive is among the first
k), each as PDF too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts.figures import (
    GREEN,
    GREY,
    RED,
    add_query_flags,
    chosen_queries,
    load_evaluation,
    load_files,
    save_figure,
)
from utils.arguments import Parser, mistakes_told
from utils.errors import UserError

TOP = 5


def draw_examples(q, r, query, reference, shown, ranks):
    """A page: one row a query, the panorama and its TOP most similar tiles."""
    import matplotlib.pyplot as plt

    from dataset.transforms import read_image

    figure, axes = plt.subplots(
        len(shown), 1 + TOP, figsize=(13, 1.75 * len(shown)), width_ratios=[3.4] + [1] * TOP, squeeze=False
    )
    for row, i in zip(axes, shown, strict=True):
        similarity = r @ q[i]
        best = np.argsort(-similarity, kind="stable")[:TOP]
        panorama = read_image(query.ground[i])
        row[0].imshow(query.crop_ground(panorama) if query.crop_ground else panorama, aspect="auto")
        row[0].set_ylabel(f"rank {ranks[i] + 1}", fontsize=9)
        for axis, j in zip(row[1:], best, strict=False):
            axis.imshow(read_image(reference.aerial[j]))
            axis.set_xlabel(f"{similarity[j]:.3f}", fontsize=8)
            right = j == query.labels[i]
            semi = query.semi_positives is not None and j in query.semi_positives[i]
            for spine in axis.spines.values():
                spine.set(color=RED if right else GREEN if semi else GREY, linewidth=4 if right or semi else 1)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    semi = ", semi-positives green" if query.semi_positives is not None else ""
    axes[0][0].set_title(
        f"query, and its {TOP} most similar aerial images (the true one framed red{semi})", fontsize=10
    )
    axes[0][0].title.set(x=0.0, ha="left")
    figure.tight_layout(pad=0.6)
    return figure


def draw_recall(ranks, gallery, name):
    """Recall over k, on a logarithmic axis, beside chance."""
    import matplotlib.pyplot as plt

    k = np.unique(np.geomspace(1, gallery, 200).astype(int))
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(k, [100 * np.mean(ranks < n) for n in k], color=RED, label=name)
    axis.plot(k, 100 * k / gallery, color=GREY, linestyle="--", label="chance")
    one_percent = max(1, gallery // 100)
    cuts = {one_percent: "R@1%"} | {1: "R@1", 5: "R@5", 10: "R@10"}
    for line, cut in enumerate(sorted(cut for cut in cuts if cut <= gallery)):
        value = 100 * np.mean(ranks < cut)
        axis.plot(cut, value, "o", color=RED, markersize=4)
        shift = 9 * (line % 2)  # in two lines: 5 and 10 stand close together
        beside = (6, -11 - shift if value > 20 else 5 + shift)  # below the curve, above where it lies on the axis
        axis.annotate(f"{cuts[cut]} {value:.1f}", (cut, value), beside, textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel=f"k, of a gallery of {gallery:,}", ylabel="recall@k (%)", ylim=(0, 103))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.tight_layout()
    return figure


def load(args, of_data):
    """What `load_evaluation` gives, of a run's folder or of two files and the flags of their data."""
    files = [path.suffix == ".npy" for path in args.sources]
    if files == [True, True]:
        return load_files(*args.sources, [*of_data, *(["--data-root", args.data_root] if args.data_root else [])])
    if len(files) > 1 or any(files):
        raise UserError(f"{', '.join(map(str, args.sources))}: give the folder of a run, or exactly two .npy files")
    if of_data:
        raise UserError(f"{' '.join(of_data)}: a run's folder says itself what it evaluated; leave this out")
    return load_evaluation(args.sources[0], args.data_root)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SAVE_PATH",
        help="folder of a run evaluated with -e, or two .npy files",
    )
    parser.add_argument("--data-root", help="folder of the data (default: the one the run was given)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: SAVE_PATH)")
    parser.add_argument("--failures", action="store_true", help="show the --count queries with the worst ranks")
    add_query_flags(parser, 6)
    args, of_data = parser.parse_known_args(argv)
    with mistakes_told("plot_retrieval.py"):
        from utils.metrics import positive_ranks

        q, r, query, reference = load(args, of_data)
        ranks = positive_ranks(q, r, query.labels)
        worst = np.argsort(-ranks, kind="stable")[: args.count]
        shown = worst.tolist() if args.failures else chosen_queries(args, len(ranks))
        first = args.sources[0]
        out = args.out or (first.parent if first.suffix == ".npy" else first)
        save_figure(draw_examples(q, r, query, reference, shown, ranks), out / "retrieval", dpi=100)
        save_figure(draw_recall(ranks, len(r), f"FRGeo, {query.name} {query.split}"), out / "recall")


if __name__ == "__main__":
    main()
