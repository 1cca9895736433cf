#!/usr/bin/env python
"""Train every variant on every data set with every seed, and set the results side by side.

    python scripts/run_grid.py --out runs/grid --seeds 0 1 2 --jobs 2 \\
        --common "--arch convnext_atto --pretrained none --epochs 10 ..." \\
        --data "CVUSA=--dataset cvusa --data-root data/cvusa" --data "VIGOR=--dataset vigor --data-root data/vigor" \\
        --variant "FRM=" --variant "one average=--pool gap"

A variant's flags come last, so they override the common ones. A run that is finished is not run again: interrupted and
started once more, the grid goes on, and grids in one --out share their runs. Writes there, after every run, NAME.csv (a
line per run) and NAME.md (mean and standard deviation over seeds) and, at the end, NAME.png and NAME.pdf.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.figures import save_figure
from scripts.report import spread
from utils.arguments import Parser, mistakes_told, natural, positive
from utils.errors import UserError
from utils.launch import cores
from utils.logging import progress_bar
from utils.writing import write_json

SHOWN = ("R@1", "R@5", "R@10")  # in the table; the first alone where there are several data sets
TRAIN = Path(__file__).resolve().parents[1] / "train.py"


class Run(NamedTuple):
    """One training: names of its data and variant, its seed, all flags but --save_path."""

    data: str
    variant: str
    seed: int
    flags: list

    def folder(self, out):
        return out / _slug(self.data) / _slug(self.variant) / f"seed-{self.seed}"

    def metrics(self, out):
        """The run's last metrics, or None where it has not ended with these flags."""
        try:
            if json.loads((self.folder(out) / "grid.json").read_text(encoding="utf-8")) != self.flags:
                return None
            return json.loads((self.folder(out) / "metrics.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def named(text):
    """ "name=flags" -> (name, [flag, ...])."""
    name, sign, given = text.partition("=")
    if not sign or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FLAGS")
    return name.strip(), flags(given)


def flags(text):
    """ "--a 1 --b 'two words'" -> [flag, ...]."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read as flags ({error})") from error


def grid(args):
    """All runs, every variant of the first seed first: an interrupted grid can be compared."""
    return [
        Run(data, variant, seed, [*args.common, *data_flags, *own, "--seed", str(seed)])
        for seed in args.seeds
        for data, data_flags in args.data
        for variant, own in args.variant
    ]


def train(run, out, threads):
    """Run train.py in a process of its own; its words go to train.txt. Raises UserError where it fails."""
    folder = run.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(TRAIN), *run.flags, "--save_path", str(folder)]
    with open(folder / "train.txt", "w", encoding="utf-8") as words:
        code = subprocess.run(command, stdout=words, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        lines = (folder / "train.txt").read_text(encoding="utf-8").strip().splitlines()
        told = [line for line in lines if line.startswith("train.py:")] or lines
        raise UserError(f"{run.data}, {run.variant}, seed {run.seed} ended with code {code}: {''.join(told[-1:])}")
    for large in ("checkpoint.pth.tar", "model_best.pth.tar"):
        (folder / large).unlink(missing_ok=True)
    write_json(folder / "grid.json", run.flags)  # whole at once: another thread may be reading


def collect(runs, out):
    """{(data, variant): {measure: [value of each finished seed]}} in the grid's order."""
    results = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for name, value in (run.metrics(out) or {}).items():
            if name.startswith(("R@", "Hit")):
                results[run.data, run.variant][name].append(value)
    return results


def write_results(runs, out, name):
    """NAME.csv and NAME.md of the runs that are finished. Returns the table."""
    done = [(run, run.metrics(out)) for run in runs]
    done = [(run, metrics) for run, metrics in done if metrics]
    measures = list(dict.fromkeys(key for _, m in done for key in m if key.startswith(("R@", "Hit"))))
    with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["data", "variant", "seed", *measures, "epochs", "flags"])
        for run, m in done:
            values = [m.get(key, "") for key in measures]
            table.writerow([run.data, run.variant, run.seed, *values, m["epoch"], shlex.join(run.flags)])
    results = collect(runs, out)
    datasets, variants = _order(runs)
    columns = [(data, measure) for data in datasets for measure in (SHOWN if len(datasets) == 1 else SHOWN[:1])]
    heads = [f"{data}, {measure}" for data, measure in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for variant in variants:
        cells = [spread(results[data, variant][measure], digits=1) for data, measure in columns]
        lines.append(f"| {variant.replace('|', '/')} | " + " | ".join(cells) + " |")
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(lines)


def plot(runs, out, name):
    """Bars of mean R@1 with every seed's value as a dot."""
    import matplotlib.pyplot as plt

    results = collect(runs, out)
    datasets, variants = _order(runs)
    width = 0.09 * max(map(len, variants)) + 3.2 * len(datasets)  # inches; names stand on the left
    figure, axes = plt.subplots(
        1, len(datasets), figsize=(width, 0.9 + 0.42 * len(variants)), sharey=True, squeeze=False
    )
    for axis, data in zip(axes[0], datasets, strict=True):
        for row, variant in enumerate(variants):
            values = results[data, variant]["R@1"]
            if values:
                axis.barh(row, statistics.mean(values), color="C0" if row == 0 else "C7", alpha=0.6, height=0.7)
                axis.plot(values, [row] * len(values), "k.", markersize=5)
        axis.set(title=data, xlabel="R@1 (%)", yticks=range(len(variants)), yticklabels=variants)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    save_figure(figure, out / name, dpi=150)


def _order(runs):
    return list(dict.fromkeys(run.data for run in runs)), list(dict.fromkeys(run.variant for run in runs))


def _slug(name):
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def run_grid(args):
    runs = grid(args)
    twice = [folder for folder, count in Counter(run.folder(args.out) for run in runs).items() if count > 1]
    if twice:
        raise UserError(
            f"two runs would share {twice[0]}; give data and variants names that differ in letters or digits, and "
            "each seed once"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    waiting = [run for run in runs if run.metrics(args.out) is None]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} finished before; {args.jobs} at a time")
    pool = ThreadPoolExecutor(args.jobs)
    try:
        futures = {pool.submit(train, run, args.out, max(1, cores() // args.jobs)): run for run in waiting}
        for future in progress_bar(as_completed(futures), "grid", total=len(futures)):
            future.result()
            run = futures[future]
            print(f"{run.data}, {run.variant}, seed {run.seed}: R@1 {run.metrics(args.out)['R@1']:.1f}", flush=True)
            write_results(runs, args.out, args.name)
    finally:
        pool.shutdown(cancel_futures=True)
    print("\nPercent, mean and standard deviation over seeds\n\n" + write_results(runs, args.out, args.name))
    plot(runs, args.out, args.name)
    print(f"\nSee {args.out / args.name}.csv, .md, .png and .pdf.")


def parse(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs and the results")
    parser.add_argument("--data", required=True, type=named, action="append", metavar="NAME=FLAGS")
    parser.add_argument("--variant", required=True, type=named, action="append", metavar="NAME=FLAGS")
    parser.add_argument("--common", default=[], type=flags, metavar="FLAGS", help="flags of all runs")
    parser.add_argument("--name", default="grid", help="of the files of results (default: grid)")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores (default: 1)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    with mistakes_told("run_grid.py", "interrupted; the same command goes on"):
        run_grid(args)


if __name__ == "__main__":
    main()
