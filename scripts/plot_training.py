#!/usr/bin/env python
"""Draw training curves: loss, positive and negative similarities, and recall over epochs.

    python scripts/plot_training.py SAVE_PATH [SAVE_PATH ...] [--names FRM "one average"] [--out images/training]

Reads metrics.jsonl of each run, also of one that is still going on; several runs are drawn over each other. Writes
training.png and training.pdf into the first SAVE_PATH, or OUT.png and OUT.pdf.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.figures import require, run_names, save_figure
from utils.arguments import Parser, mistakes_told
from utils.errors import UserError

RECALLS = (("R@1", "-", "o"), ("R@5", "--", "s"), ("R@10", ":", "^"))
SIMILARITIES = (("positive_similarity", "-", "true pairs"), ("negative_similarity", "--", "others"))


def read_history(folder):
    """The lines of metrics.jsonl, a dict per epoch.

    Raises:
        UserError: the file is missing, empty or damaged.
    """
    require(folder, ("metrics.jsonl",), "give the folder of a training of train.py")
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a line of JSON per epoch") from error
    if not lines or not all(isinstance(line, dict) and "epoch" in line for line in lines):
        raise UserError(f"{path} holds {len(lines)} lines; expected at least one, each with its epoch")
    return lines


def curve(history, key):
    """Epochs and values of a measure, where it was taken."""
    taken = [(line["epoch"], line[key]) for line in history if line.get(key) is not None]
    return tuple(map(list, zip(*taken, strict=True))) if taken else ([], [])


def draw(histories):
    """Three panels; a colour per run of {name: history}, a line style per measure."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, (loss, similarity, recall) = plt.subplots(1, 3, figsize=(12.5, 3.9), sharex=True)
    colours = [f"C{n}" for n in range(10)] if len(histories) <= 10 else plt.get_cmap("turbo", len(histories)).colors
    for number, history in enumerate(histories.values()):
        colour = colours[number]
        loss.plot(*curve(history, "loss"), color=colour, **marked(history, "loss"))
        for key, style, _ in SIMILARITIES:
            similarity.plot(*curve(history, key), color=colour, linestyle=style, **marked(history, key))
        for key, style, marker in RECALLS:
            recall.plot(*curve(history, key), color=colour, linestyle=style, **marked(history, key, marker))
    loss.set(ylabel="training loss", ylim=(0, None))
    similarity.set(ylabel="mean cosine similarity in the batch")
    recall.set(ylabel="recall (%)", ylim=(0, 101))
    for axis in (loss, similarity, recall):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)

    def styled(style, label, marker=None):
        return Line2D([], [], color="#444444", linestyle=style, label=label, marker=marker, markersize=3.5)

    similarity.legend(handles=[styled(style, label) for _, style, label in SIMILARITIES], fontsize=9, frameon=False)
    recall.legend(handles=[styled(style, key, marker) for key, style, marker in RECALLS], fontsize=9, frameon=False)
    handles = [Line2D([], [], color=colours[n], linewidth=2.5, label=name) for n, name in enumerate(histories)]
    longest = max(len(name) for name in histories)
    columns = max(1, min(len(handles), 150 // (longest + 6)))  # that the page is wide
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 1))
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.2 * lines) / figure.get_figheight()))
    figure.legend(handles=handles, loc="upper center", ncols=columns, frameon=False, fontsize=10)
    return figure


def marked(history, key, marker="o"):
    """Markers where points are few."""
    return {"marker": marker, "markersize": 3.5} if len(curve(history, key)[0]) <= 20 else {}


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="SAVE_PATH", help="folders with metrics.jsonl")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: the folders')")
    parser.add_argument("--out", type=Path, help="where to write, without ending (default: training in the first run)")
    args = parser.parse_args(argv)
    with mistakes_told("plot_training.py"):
        names = run_names(args.runs, args.names)
        histories = {name: read_history(folder) for name, folder in zip(names, args.runs, strict=True)}
        save_figure(draw(histories), args.out or args.runs[0] / "training")


if __name__ == "__main__":
    main()
