#!/usr/bin/env python
"""Gather results into one Markdown table beside the published numbers.

    python scripts/report.py RESULT [RESULT ...] [--out results.md]

RESULT is a metrics.json, or a folder below which to look for them (previous-N folders are left out). Runs that differ
only in their seed, by their args.json, share a row: mean ± standard deviation (of a sample, n - 1) over seeds. Where
rows of one data set differ in flags, the row names them. Queries and gallery stand beside each row, for only numbers of
the same gallery compare.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.arguments import Parser, mistakes_told
from utils.errors import UserError
from utils.paper import PUBLISHED_METRICS, published_name

MEASURES = ("R@1", "R@5", "R@10", "R@1%", "Hit", "Hit (top-1 covers)", "R@1 (5 m)")
# Options that say how or where a run was made, not what was trained.
MACHINERY = {
    "seed", "save_path", "resume", "weights", "evaluate", "start_epoch", "workers", "cache", "print_freq",
    "eval_batch_size", "device", "gpu", "rank", "dist_url", "dist_backend", "deterministic", "compile",
}  # fmt: skip


class Result(NamedTuple):
    """One metrics.json and, where there is one beside it, its args.json."""

    path: Path
    metrics: dict
    options: dict

    @property
    def protocol(self):
        return self.metrics["dataset"], self.metrics["split"]

    @property
    def published(self):
        """The key of the published numbers to set beside it, or None."""
        return published_name(*self.protocol, self.options.get("arch"))

    @property
    def key(self):
        """What runs of one row have in common."""
        record = [self.metrics.get(k) for k in ("dataset", "split", "queries", "gallery", "labels")]
        return json.dumps([record, self.weights, self.seen, self.settings], sort_keys=True)

    @property
    def seen(self):
        """How an evaluation saw the panoramas, where that is not as in the paper."""
        parts = [f"{self.metrics['fov']} degrees"] if self.metrics.get("fov", 360) != 360 else []
        parts += ["unknown north"] if self.metrics.get("orientation") == "unknown" else []
        parts += [f"{self.metrics['search_north']} directions tried"] if self.metrics.get("search_north") else []
        return ", ".join(parts)

    @property
    def weights(self):
        """The best model, whichever its epoch, or the state after an epoch."""
        best = Path(str(self.metrics.get("weights"))).name == "model_best.pth.tar"
        return "best epoch" if best else f"epoch {self.metrics.get('epoch')}"

    @property
    def settings(self):
        """Options that were given or have a value: a flag that an older run did not know is one left out."""
        return {k: v for k, v in self.options.items() if k not in MACHINERY and v not in (None, False)}

    @property
    def seed(self):
        return self.options.get("seed")


def find_results(paths):
    """`Result`s of metrics.json files, or of all that lie in and below folders, each once.

    Raises:
        UserError: nothing there, or a file that is no evaluation.
    """
    files = []
    for path in paths:
        if path.is_file():
            files.append(path)
            continue
        found = sorted(f for f in path.rglob("metrics.json") if not f.parent.name.startswith("previous-"))
        if not found:
            raise UserError(
                f"{path} {'holds no metrics.json' if path.is_dir() else 'is not there'}; give a run's folder"
            )
        files += found
    return [read_result(path) for path in dict.fromkeys(path.resolve() for path in files)]


def read_result(path):
    """The `Result` of a metrics.json. Raises UserError where it is none."""
    args = path.with_name("args.json")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        options = json.loads(args.read_text(encoding="utf-8")) if args.is_file() else {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} or its args.json cannot be read ({error}); evaluate the run again") from error
    if not (isinstance(options, dict) and isinstance(metrics, dict) and {"R@1", "dataset", "split"} <= metrics.keys()):
        raise UserError(f"{path} holds no evaluation (R@1, dataset, split); expected a metrics.json of train.py")
    counts = [metrics.get(name, 1) for name in ("queries", "gallery")]
    numbers = [v for k, v in metrics.items() if k.startswith(("R@", "Hit"))]
    if not (all(isinstance(v, int | float) for v in numbers) and all(isinstance(v, int) and v > 0 for v in counts)):
        raise UserError(f"{path} holds measures that are no numbers; evaluate the run again")
    return Result(path, metrics, options)


def group(results):
    """{protocol: [[Result of a seed, ...] of each row]}, in the order they were given."""
    protocols = {}
    for result in results:
        protocols.setdefault(result.protocol, {}).setdefault(result.key, []).append(result)
    return {protocol: list(rows.values()) for protocol, rows in protocols.items()}


def spread(values, digits=2):
    """Mean and, of several, the sample's standard deviation, as text."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def label(row, rows):
    """What sets a row apart from the others of its data set: weights or epoch, and the flags that differ."""
    settings = [other[0].settings for other in rows]
    mine = row[0].settings
    names = dict.fromkeys(name for s in settings for name in s)
    differing = [name for name in names if len({json.dumps(s.get(name)) for s in settings}) > 1]
    parts = [mine.get("arch", ""), *(flag(name, mine.get(name)) for name in differing if name != "arch")]
    if len({other[0].weights for other in rows}) > 1 or not mine:
        parts.append(row[0].weights)
    parts.append(row[0].seen)
    return " ".join(filter(None, parts))


def flag(name, value):
    """An option as it is written on the command line; nothing for a switch that is off."""
    if value in (None, False):
        return ""
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"`--{name.replace('_', '-')}{'' if value is True else ' ' + text}`"


def tabulate(results):
    """The Markdown table: for each data set the published row, where there is one, and a row per setting."""
    groups = group(results)
    measures = [name for name in MEASURES if any(name in result.metrics for result in results)]
    lines = ["| data set | run | seeds | queries / gallery | " + " | ".join(measures) + " |"]
    lines.append("|---|---|---|---|" + "---|" * len(measures))
    for (dataset, split), rows in groups.items():
        name = f"{dataset} {split}"
        for published in filter(None, dict.fromkeys(row[0].published for row in rows)):
            known = PUBLISHED_METRICS[published]
            cells = [f"{known[m]:.2f}" if m in known else "" for m in measures]
            who = "published, DeiT-S/16" if published.endswith("_deit") else "published"
            lines.append(f"| {name} | {who} | | | " + " | ".join(cells) + " |")
        for row in rows:
            cells = [spread([r.metrics[m] for r in row if m in r.metrics]) for m in measures]
            size = f"{row[0].metrics.get('queries', '?')} / {row[0].metrics.get('gallery', '?')}"
            lines.append(f"| {name} | {label(row, rows)} | {seeds(row)} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds(row):
    """The seeds of a row; how many runs where they have none on record or share one."""
    found = [result.seed for result in row]
    if None in found or len(set(found)) < len(found):
        return f"{len(row)} run{'s' if len(row) > 1 else ''}"
    return ", ".join(map(str, sorted(found)))


def left_out(metrics):
    """A sentence on what an evaluation left out for want of its files; None where it had them all."""
    found = {"pairs": metrics.get("missing_pairs"), "tiles of the gallery": metrics.get("missing_tiles")}
    told = " and ".join(f"{count} {what}" for what, count in found.items() if count)
    return f"{told} were missing and are not counted." if told else None


def remarks(results):
    """Sentences on what a reader of the table must know."""
    out = ["Percent; mean ± standard deviation over seeds where there are several."]
    if any(result.published for result in results):
        out.append("Published: the paper's numbers, on the whole official test split of the real data set.")
    out += [f"{result.path}: {told}" for result in results if (told := left_out(result.metrics))]
    without = [str(result.path) for result in results if not result.options]
    if without:
        out.append(f"No args.json, so the settings are unknown: {', '.join(without)}.")
    return "\n".join(out)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT", help="metrics.json files, or folders")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args(argv)
    with mistakes_told("report.py"):
        results = find_results(args.results)
        text = f"{tabulate(results)}\n\n{remarks(results)}"
        if args.out:
            try:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(f"--out {args.out} cannot be written ({error}); give another file") from error
        print(text)


if __name__ == "__main__":
    main()
