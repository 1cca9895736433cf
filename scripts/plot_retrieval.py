#!/usr/bin/env python
"""Draw retrieval examples and the recall curve of an evaluated run.

    python scripts/plot_retrieval.py SAVE_PATH [--data-root DIR] [--queries ROW ... | --failures]
    python scripts/plot_retrieval.py grd_global_descriptor.npy sat_global_descriptor.npy --dataset vigor --data-root DIR

Reads what `train.py -e` wrote to SAVE_PATH (the descriptors, metrics.json and args.json), or two files of descriptors
and the flags of train.py that say which data they belong to (also --cross, --eval-split ...). Writes to SAVE_PATH,
beside the files or to --out, each as PNG and PDF: retrieval (each query with its five most similar aerial images, the
true one framed red, VIGOR's semi-positives green) and recall (share of queries whose positive is among the first k).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from scripts import common
from utils.options import Parser, UserError, handle_errors, path

TOP = 5


def draw_examples(q, r, query, reference, shown, ranks):
    """A page with a row per query: the panorama and its TOP most similar tiles."""
    import matplotlib.pyplot as plt

    from dataset.transforms import read_image

    layout = {"width_ratios": [3.4] + [1] * TOP, "squeeze": False, "subplot_kw": {"xticks": [], "yticks": []}}
    figure, axes = plt.subplots(len(shown), 1 + TOP, figsize=(13, 1.75 * len(shown)), **layout)
    for (left, *right), i in zip(axes, shown, strict=True):
        panorama = read_image(query.ground[i])
        left.imshow(query.crop_ground(panorama) if query.crop_ground else panorama, aspect="auto")
        left.set_ylabel(f"rank {ranks[i] + 1}", fontsize=9)
        similarity = r @ q[i]
        semi_positives = [] if query.semi_positives is None else query.semi_positives[i]
        for axis, j in zip(right, np.argsort(-similarity, kind="stable"), strict=False):
            axis.imshow(read_image(reference.aerial[j]))
            axis.set_xlabel(f"{similarity[j]:.3f}", fontsize=8)
            colour = common.RED if j == query.labels[i] else common.GREEN if j in semi_positives else common.GREY
            axis.spines[:].set(color=colour, linewidth=1 if colour == common.GREY else 4)
    semi = ", semi-positives green" if query.semi_positives is not None else ""
    title = f"query, and its {TOP} most similar aerial images (the true one framed red{semi})"
    axes[0][0].set_title(title, fontsize=10, x=0, ha="left")
    figure.tight_layout(pad=0.6)
    return figure


def draw_recall(ranks, gallery, name):
    """Recall over k, on a logarithmic axis, beside chance."""
    import matplotlib.pyplot as plt

    k = np.unique(np.geomspace(1, gallery, 200).astype(int))
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(k, [100 * np.mean(ranks < n) for n in k], color=common.RED, label=name)
    axis.plot(k, 100 * k / gallery, color=common.GREY, linestyle="--", label="chance")
    cuts = {max(1, gallery // 100): "R@1%"} | {1: "R@1", 5: "R@5", 10: "R@10"}
    for line, cut in enumerate(sorted(cut for cut in cuts if cut <= gallery)):
        value = 100 * np.mean(ranks < cut)
        axis.plot(cut, value, "o", color=common.RED, markersize=4)
        shift = 9 * (line % 2)  # in two lines: 5 and 10 are close together
        beside = (6, -11 - shift if value > 20 else 5 + shift)  # below the curve; above it near the axis
        axis.annotate(f"{cuts[cut]} {value:.1f}", (cut, value), beside, textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel=f"k, of a gallery of {gallery:,}", ylabel="recall@k (%)", ylim=(0, 103))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    figure.tight_layout()
    return figure


def load(args, data_flags):
    """`load_evaluation` of a run's folder, or `load_files` of two files and the flags of their data."""
    if common.are_files(args.sources):
        root = ["--data-root", str(args.data_root)] if args.data_root else []
        return common.load_files(*args.sources, [*data_flags, *root])
    if len(args.sources) > 1:
        raise UserError(f"{', '.join(map(str, args.sources))}: pass the folder of one run")
    if data_flags:
        raise UserError(f"{' '.join(data_flags)}: the folder of a run says what it evaluated; omit this")
    return common.load_evaluation(args.sources[0], args.data_root)


def main(argv=None):
    parser = Parser(__doc__)
    sources = "folder of a run evaluated with -e, or two .npy files"
    parser.add_argument("sources", nargs="+", type=path, metavar="SAVE_PATH", help=sources)
    parser.add_argument("--data-root", type=path, help="folder of the data (default: the run's)")
    parser.add_argument("--out", type=path, help="folder to write to (default: SAVE_PATH)")
    parser.add_argument("--failures", action="store_true", help="show the --count queries with the worst ranks")
    common.add_query_flags(parser, 6)
    args, data_flags = parser.parse_known_args(argv)
    with handle_errors("plot_retrieval.py"):
        from utils.metrics import positive_ranks

        q, r, query, reference = load(args, data_flags)
        ranks = positive_ranks(q, r, query.labels)
        worst = np.argsort(-ranks, kind="stable")[: args.count]
        shown = worst.tolist() if args.failures else common.chosen_queries(args, len(ranks))
        first = args.sources[0]
        out = args.out or (first.parent if first.suffix == ".npy" else first)
        common.save_figure(draw_examples(q, r, query, reference, shown, ranks), out / "retrieval", dpi=100)
        common.save_figure(draw_recall(ranks, len(r), f"FRGeo, {query.name} {query.split}"), out / "recall")


if __name__ == "__main__":
    main()
