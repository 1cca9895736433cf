#!/usr/bin/env python
"""Draw training curves: loss, positive and negative similarities, and recall over epochs.

    python scripts/plot_training.py SAVE_PATH [SAVE_PATH ...] [--names FRM "one average"] [--out images/training]

Reads metrics.jsonl of each run, even while it trains; several runs are drawn in the same panels. Writes training.png
and training.pdf to the first SAVE_PATH, or OUT.png and OUT.pdf.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common import require, run_names, save_figure
from utils.options import Parser, UserError, handle_errors, path

# Measure: label, line style, marker.
SIMILARITIES = {"positive_similarity": ("true pairs", "-", "o"), "negative_similarity": ("others", "--", "o")}
RECALLS = {"R@1": ("R@1", "-", "o"), "R@5": ("R@5", "--", "s"), "R@10": ("R@10", ":", "^")}
PANELS = {
    "training loss": {"loss": ("loss", "-", "o")},
    "mean cosine similarity in the batch": SIMILARITIES,
    "recall (%)": RECALLS,
}
FEW = 20  # points of a curve that are marked


def read_history(folder):
    """The lines of metrics.jsonl, a dict per epoch. Raises UserError if the file is missing, empty or damaged."""
    require(folder, ("metrics.jsonl",), "pass the folder of a training of train.py")
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a line of JSON per epoch") from error
    numbers = int | float | None
    if not lines or not all(isinstance(line, dict) and "epoch" in line for line in lines):
        raise UserError(f"{path} holds {len(lines)} lines; expected at least one, each with its epoch")
    if not all(isinstance(value, numbers) for line in lines for value in line.values()):
        raise UserError(f"{path} holds values that are not numbers; expected what train.py wrote")
    return lines


def curve(history, key):
    """Epochs and values of a measure, where it was taken."""
    taken = [(line["epoch"], line[key]) for line in history if line.get(key) is not None]
    return tuple(map(list, zip(*taken, strict=True))) if taken else ([], [])


def draw(histories):
    """Three panels, with a colour per run of {name: history} and a line style per measure."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), sharex=True)
    colours = [f"C{n}" for n in range(10)] if len(histories) <= 10 else plt.get_cmap("turbo", len(histories)).colors
    for axis, (title, measures) in zip(axes, PANELS.items(), strict=True):
        for history, colour in zip(histories.values(), colours, strict=False):
            for key, (_, style, marker) in measures.items():
                epochs, values = curve(history, key)
                marker = marker if len(epochs) <= FEW else ""
                axis.plot(epochs, values, color=colour, linestyle=style, marker=marker, markersize=3.5)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(measures) > 1:
            lines = [
                Line2D([], [], color="#444444", linestyle=style, marker=marker, markersize=3.5, label=label)
                for label, style, marker in measures.values()
            ]
            axis.legend(handles=lines, fontsize=9, frameon=False)
    axes[0].set_ylim(0, None)
    axes[2].set_ylim(0, 101)
    handles = [Line2D([], [], color=c, linewidth=2.5, label=name) for name, c in zip(histories, colours, strict=False)]
    columns = max(1, min(len(handles), 150 // (max(map(len, histories)) + 6)))  # about 150 characters fit
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * (lines - 1))
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.2 * lines) / figure.get_figheight()))
    figure.legend(handles=handles, loc="upper center", ncols=columns, frameon=False, fontsize=10)
    return figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=path, metavar="SAVE_PATH", help="folders with metrics.jsonl")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: the folders')")
    parser.add_argument("--out", type=path, help="path without ending (default: training in the first run)")
    args = parser.parse_args(argv)
    with handle_errors("plot_training.py"):
        names = run_names(args.runs, args.names)
        histories = {name: read_history(folder) for name, folder in zip(names, args.runs, strict=True)}
        save_figure(draw(histories), args.out or args.runs[0] / "training")


if __name__ == "__main__":
    main()
