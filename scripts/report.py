#!/usr/bin/env python
"""Print a table of evaluated runs beside the published numbers and beside chance.

    python scripts/report.py RESULT [RESULT ...] [--out results.md]
    python scripts/report.py cvusa=result_cvusa cvact_test=result_cvact_test "my run=runs/mine"

RESULT is a metrics.json, or a folder that is searched for them (without its previous-N folders). Runs that differ only
in their seed and in where and how they ran (--workers, --nprocs, --data-root ...) share a row: mean ± standard
deviation (of a sample, n - 1) over seeds. If rows of one data set differ in other options, the row names these.
NAME=RESULT names a row; a NAME of the paper's tables (cvusa, cvact, cvact_test, vigor, vigor_cross, cvusa_deit,
cvact_deit, cvact_test_deit) adds (published, difference) to each value. Compare only rows with equal queries and
gallery.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common import make_folder, named, spread
from utils.options import Parser, UserError, build_parser, handle_errors, options_of, path
from utils.paper import PUBLISHED_METRICS, published_name
from utils.run_files import read_json, write_text

CUTS = {"R@1": 1, "R@5": 5, "R@10": 10, "R@1%": None, "Hit": 1, "Hit (top-1 covers)": 4}  # chance is cut / gallery
METRES = ("median error (m)", "mean error (m)", "within 25 m", "within 50 m", "within 100 m")
MEASURES = (*CUTS, *METRES)
NEAR = " (5 m)"  # ends the names of recalls for which any tile within 5 m counts
DATA_SETS = {
    "cvusa": "CVUSA", "cvact": "CVACT_val", "cvact_test": "CVACT_test", "vigor": "VIGOR same-area",
    "vigor_cross": "VIGOR cross-area",
}  # fmt: skip
TITLES = DATA_SETS | {f"{name}_deit": f"{title}, FRM + WBL on DeiT-S/16" for name, title in DATA_SETS.items()}


class Result(NamedTuple):
    """A metrics.json, the args.json beside it ({} without one), and the row's name if one was given."""

    path: Path
    metrics: dict
    options: dict
    name: str | None

    @property
    def title(self):
        return TITLES.get(self.name, self.name)

    @property
    def data(self):
        """Data set and split."""
        return f"{self.metrics['dataset']} {self.metrics['split']}"

    @property
    def published(self):
        """Key of the published numbers to set beside it, or None."""
        return published_name(self.metrics["dataset"], self.metrics["split"], self.options.get("arch"))

    @property
    def size(self):
        return f"{self.metrics.get('queries', '?')} / {self.metrics.get('gallery', '?')}"

    @property
    def weights(self):
        """The best model, whichever its epoch, or the state after an epoch."""
        best = Path(str(self.metrics.get("weights"))).name == "model_best.pth.tar"
        return "best epoch" if best else f"epoch {self.metrics.get('epoch')}"

    @property
    def view(self):
        """What the evaluation saw of the panoramas, if it was not all of them, aligned."""
        parts = [f"{self.metrics['fov']} degrees"] if self.metrics.get("fov", 360) != 360 else []
        parts += ["unknown north"] if self.metrics.get("orientation") == "unknown" else []
        parts += [f"{self.metrics['search_north']} directions tried"] if self.metrics.get("search_north") else []
        return ", ".join(parts)

    @property
    def settings(self):
        """The options that runs of one row have in common: {name: value} of those that are not off.

        An older run lacks newer options, whose defaults change nothing, and `effective_tuple`, the pairs that one
        loss saw: its --tuple-size says as much.
        """
        if not self.options:
            return {}
        options = vars(build_parser().parse_args([])) | self.options
        if options.get("effective_tuple"):
            options["gather"] = None
        options["effective_tuple"] = options.get("effective_tuple") or options["tuple_size"]
        other = {"seed", "tuple_size", "threads", *options_of("machine")}
        return {name: value for name, value in options.items() if name not in other and value not in (None, False)}

    @property
    def row(self):
        """What runs of one row have in common."""
        labels = self.metrics.get("labels")
        return json.dumps([self.name, self.size, labels, self.weights, self.view, self.settings], sort_keys=True)


def find_results(sources):
    """A `Result` for each metrics.json of [(name or None, file or folder), ...], once.

    Raises:
        UserError: nothing there, or a file that is no evaluation.
    """
    found = {}
    for name, source in sources:
        files = [source] if source.is_file() else sorted(source.rglob("metrics.json"))
        files = [f for f in files if source in (f, f.parent) or not f.parent.name.startswith("previous-")]
        if not files:
            wrong = "holds no metrics.json" if source.is_dir() else "does not exist"
            raise UserError(f"{source} {wrong}; pass the folder of a run")
        found |= dict.fromkeys((name, file.resolve()) for file in files)
    return [read_result(path, name) for name, path in found]


def read_result(path, name=None):
    """The `Result` of a metrics.json. Raises UserError if it is none."""
    metrics, options = read_json(path), read_json(path.with_name("args.json"))
    if "R@1" not in metrics or not all(isinstance(metrics.get(key), str) for key in ("dataset", "split")):
        raise UserError(f"{path} holds no evaluation (R@1, dataset, split); expected a metrics.json of train.py")
    counts = [metrics.get(key, 1) for key in ("queries", "gallery")]
    numbers = [value for key, value in metrics.items() if key.startswith(MEASURES)]
    if not (all(isinstance(v, int | float) for v in numbers) and all(isinstance(v, int) and v > 0 for v in counts)):
        raise UserError(f"{path} holds measures that are not numbers; evaluate the run again")
    return Result(path, metrics, options, name)


def chance(measure, gallery):
    """Percent that a random ranking of the gallery reaches; None for metres."""
    if measure not in CUTS:
        return None
    cut = CUTS[measure] or max(1, gallery // 100)
    gallery = max(1, gallery - 3) if measure == "Hit" else gallery  # the three semi-positives are left out
    return 100 * min(cut, gallery) / gallery


def tabulate(results):
    """The Markdown table, without empty columns."""
    rows = [["data set", "run", "seeds", "queries / gallery", *MEASURES]]
    for data in dict.fromkeys(result.data for result in results):
        mine = [result for result in results if result.data == data]
        for key in dict.fromkeys(result.published for result in mine if result.name is None and result.published):
            who = "published, DeiT-S/16" if key.endswith("_deit") else "published"
            rows.append([data, who, "", "", *(number(PUBLISHED_METRICS[key].get(m)) for m in MEASURES)])
        grouped = {}
        for result in mine:
            grouped.setdefault(result.row, []).append(result)
        for group in grouped.values():
            title = group[0].title or label(group[0], [other[0] for other in grouped.values() if not other[0].name])
            rows += result_rows(data, title, group)
        sizes = dict.fromkeys((r.size, r.metrics["gallery"]) for r in mine if "gallery" in r.metrics)
        for size, gallery in sizes:
            filled = {measure for r in mine if r.size == size for measure in r.metrics}
            cells = [number(chance(measure, gallery) if measure in filled else None) for measure in MEASURES]
            rows.append([data, "chance", "", size, *cells])
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in zip(*columns, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def result_rows(data, title, group):
    """The table row of runs that differ in their seed; CVACT's test split has a second one, any tile within 5 m."""
    known = PUBLISHED_METRICS.get(group[0].name, {})
    rows = []
    for suffix, remark in (("", ""), (NEAR, ", any tile within 5 m")):
        values = {m: [r.metrics[m + suffix] for r in group if m + suffix in r.metrics] for m in MEASURES}
        if any(values.values()):
            cells = [cell(values[m], known.get(m)) for m in MEASURES]
            rows.append([data, f"{title}{remark}".removeprefix(", "), seeds(group), group[0].size, *cells])
    return rows


def number(value):
    return "" if value is None else f"{value:.2f}"


def cell(values, published=None):
    """Mean and spread and, in brackets, the published value and the difference from it."""
    if published is None or not values:
        return spread(values)
    return f"{spread(values)} ({published:.2f}, {sum(values) / len(values) - published:+.2f})"


def seeds(group):
    """The seeds of a row; how many runs if they have none on record or share one."""
    found = [result.options.get("seed") for result in group]
    if None in found or len(set(found)) < len(found):
        return f"{len(group)} run{'s' if len(group) > 1 else ''}"
    return ", ".join(map(str, sorted(found)))


def label(result, others):
    """What distinguishes a row from the others of its data set: network, differing options, weights, and the view."""
    every = [other.settings for other in others]
    names = dict.fromkeys(name for settings in every for name in settings if name != "arch")
    differing = [name for name in names if len({json.dumps(settings.get(name)) for settings in every}) > 1]
    parts = [result.settings.get("arch"), *(flag(name, result.settings.get(name)) for name in differing)]
    if len({other.weights for other in others}) > 1 or not result.settings:
        parts.append(result.weights)
    return " ".join(filter(None, [*parts, result.view]))


def flag(name, value):
    """An option as it is written on the command line; nothing for one that is off."""
    if value in (None, False):
        return ""
    if name == "effective_tuple":
        return f"loss over {value} pairs"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"`--{name.replace('_', '-')}{'' if value is True else ' ' + text}`"


def remarks(results):
    """Sentences on what a reader of the table must know."""
    out = ["Percent (errors in metres); mean ± standard deviation over seeds. Chance: a random order of the gallery."]
    if any(result.name in PUBLISHED_METRICS or (result.name is None and result.published) for result in results):
        out.append("Published: the paper's numbers, on the whole official test split of the real data set.")
    if any(result.name in PUBLISHED_METRICS for result in results):
        out.append("In brackets: published, and the difference.")
    for result in results:
        counts = {"pairs": result.metrics.get("missing_pairs"), "tiles": result.metrics.get("missing_tiles")}
        if missing := " and ".join(f"{count} {what}" for what, count in counts.items() if count):
            out.append(f"{result.title or result.path}: {missing} were missing and are not counted.")
        if trained := result.metrics.get("in_training"):
            out.append(f"{result.title or result.path}: {trained} of its places are among the training's.")
    if without := [str(result.path) for result in results if not result.options]:
        out.append(f"No args.json, so the settings are unknown: {', '.join(without)}.")
    return "\n".join(out)


def source(text):
    """RESULT or NAME=RESULT -> (name or None, path)."""
    if "=" not in text or Path(text).exists():
        return None, Path(text)
    name, path = named(text)
    return name, Path(path)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", type=source, metavar="RESULT", help="[NAME=]metrics.json or folder")
    parser.add_argument("--out", type=path, help="also write the table to this file")
    args = parser.parse_args(argv)
    with handle_errors("report.py"):
        results = find_results(args.results)
        text = f"{tabulate(results)}\n\n{remarks(results)}"
        if args.out:
            make_folder(args.out.parent)
            write_text(args.out, text + "\n")
        print(text)


if __name__ == "__main__":
    main()
