#!/usr/bin/env python
"""Train every variant on every data set with every seed, and compare the results.

    python scripts/run_grid.py --out runs/grid --seeds 0 1 2 --jobs 2 \\
        --common "--arch convnext_atto --pretrained none --epochs 10 ..." \\
        --data "CVUSA=--dataset cvusa --data-root data/cvusa" --data "VIGOR=--dataset vigor --data-root data/vigor" \\
        --variant "FRM=" --variant "one average=--pool gap"

A variant's flags come last, so they override the common ones. A finished run is not run again: start an interrupted
grid again to continue it; grids with the same --out share their runs. Writes to --out, after every run, NAME.csv (a
line per run) and NAME.md (mean and standard deviation over seeds) and, at the end, NAME.png and NAME.pdf.
"""

import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from scripts.common import make_folder, named, save_figure, spread
from utils.logging import on_terminal
from utils.options import Parser, UserError, handle_errors, natural, path, positive
from utils.run_files import write_json

SHOWN = ("R@1", "R@5", "R@10")  # in the table; the first alone if there are several data sets
TRAIN = Path(__file__).resolve().parents[1] / "train.py"


class Run(NamedTuple):
    """One training: names of its data and variant, its seed, all flags but --save_path."""

    data: str
    variant: str
    seed: int
    flags: list

    def __str__(self):
        return f"{self.data}, {self.variant}, seed {self.seed}"

    def folder(self, out):
        return out / _slug(self.data) / _slug(self.variant) / f"seed-{self.seed}"

    def metrics(self, out):
        """The run's last metrics, or None if it has not finished with these flags."""
        try:
            if json.loads((self.folder(out) / "grid.json").read_text(encoding="utf-8")) != self.flags:
                return None
            return json.loads((self.folder(out) / "metrics.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


def _slug(name):
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def flags(text):
    """ "--a 1 --b 'two words'" -> [flag, ...], for argparse."""
    return shlex.split(text)


def named_flags(text):
    """ "name=flags" -> (name, [flag, ...])."""
    name, given = named(text)
    return name, flags(given)


def grid(args):
    """All runs, every variant of the first seed first: an interrupted grid can be compared."""
    return [
        Run(data, variant, seed, [*args.common, *data_flags, *own, "--seed", str(seed)])
        for seed in args.seeds
        for data, data_flags in args.data
        for variant, own in args.variant
    ]


def train(run, out, threads):
    """Run train.py in a process of its own, its output in train.txt. Raises UserError if it fails."""
    folder = run.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.json").unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(TRAIN), *run.flags, "--save_path", str(folder)]
    with open(folder / "train.txt", "w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        lines = (folder / "train.txt").read_text(encoding="utf-8").strip().splitlines()
        reason = [line for line in lines if line.startswith("train.py:")] or lines
        raise UserError(f"{run} ended with code {code}: {''.join(reason[-1:])}")
    for large in folder.glob("*.pth.tar"):
        large.unlink()
    write_json(folder / "grid.json", run.flags)  # whole at once: another thread may be reading


def write_results(runs, out, name):
    """NAME.csv and NAME.md of the finished runs.

    Returns:
        (table, results): the Markdown table, and {(data, variant): {measure: [value of each finished seed]}}.
    """
    results = {(run.data, run.variant): {} for run in runs}
    done = [(run, metrics) for run in runs if (metrics := run.metrics(out))]
    measures = list(dict.fromkeys(key for _, metrics in done for key in metrics if key.startswith(("R@", "Hit"))))
    with open(out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["data", "variant", "seed", *measures, "epochs", "flags"])
        for run, metrics in done:
            values = [metrics.get(key, "") for key in measures]
            table.writerow([run.data, run.variant, run.seed, *values, metrics["epoch"], shlex.join(run.flags)])
            for key in measures:
                results[run.data, run.variant].setdefault(key, []).extend([metrics[key]] if key in metrics else [])
    datasets, variants = (dict.fromkeys(names) for names in zip(*results, strict=True))
    columns = [(data, measure) for data in datasets for measure in (SHOWN if len(datasets) == 1 else SHOWN[:1])]
    lines = ["| | " + " | ".join(f"{data}, {measure}" for data, measure in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for variant in variants:
        cells = [spread(results[data, variant].get(measure, []), digits=1) for data, measure in columns]
        lines.append(f"| {variant.replace('|', '/')} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return text, results


def plot(results, stem):
    """Bars of mean R@1, with every seed's value as a dot."""
    import matplotlib.pyplot as plt

    datasets, variants = (list(dict.fromkeys(names)) for names in zip(*results, strict=True))
    size = (0.09 * max(map(len, variants)) + 3.2 * len(datasets), 0.9 + 0.42 * len(variants))  # names are on the left
    figure, axes = plt.subplots(1, len(datasets), figsize=size, sharey=True, squeeze=False)
    for axis, data in zip(axes[0], datasets, strict=True):
        for row, variant in enumerate(variants):
            if values := results[data, variant].get("R@1"):
                axis.barh(row, statistics.mean(values), color="C0" if row == 0 else "C7", alpha=0.6, height=0.7)
                axis.plot(values, [row] * len(values), "k.", markersize=5)
        axis.set(title=data, xlabel="R@1 (%)", yticks=range(len(variants)), yticklabels=variants)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    figure.tight_layout()
    save_figure(figure, stem, dpi=150)


def run_grid(args):
    from utils.workers import cores

    runs = grid(args)
    folders = [run.folder(args.out) for run in runs]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(
            f"two runs would share {twice[0]}; pass each seed once, and names that differ in letters or digits"
        )
    make_folder(args.out)
    waiting = [run for run in runs if run.metrics(args.out) is None]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} finished before; {args.jobs} at a time")
    pool = ThreadPoolExecutor(args.jobs)
    try:
        futures = {pool.submit(train, run, args.out, max(1, cores() // args.jobs)): run for run in waiting}
        for future in tqdm(as_completed(futures), "grid", len(futures), disable=not on_terminal(), dynamic_ncols=True):
            future.result()
            print(f"{futures[future]}: R@1 {futures[future].metrics(args.out)['R@1']:.1f}", flush=True)
            write_results(runs, args.out, args.name)
    finally:
        pool.shutdown(cancel_futures=True)
    table, results = write_results(runs, args.out, args.name)
    print(f"\nPercent, mean and standard deviation over seeds\n\n{table}")
    plot(results, args.out / args.name)
    print(f"\nSee {args.out / args.name}.csv, .md, .png and .pdf.")


def parse(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, type=path, help="folder of the runs and the results")
    parser.add_argument("--data", required=True, type=named_flags, action="append", metavar="NAME=FLAGS")
    parser.add_argument("--variant", required=True, type=named_flags, action="append", metavar="NAME=FLAGS")
    parser.add_argument("--common", default=[], type=flags, metavar="FLAGS", help="flags of all runs")
    parser.add_argument("--name", default="grid", help="name of the files of results (default: grid)")
    parser.add_argument("--seeds", type=natural, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=positive, default=1, help="runs at a time; they share the cores (default: 1)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    with handle_errors("run_grid.py", "interrupted; run the same command again to continue"):
        run_grid(args)


if __name__ == "__main__":
    main()
