#!/usr/bin/env python
"""Print the metrics of an evaluated run beside chance: python scripts/show_metrics.py SAVE_PATH"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.report import read_result
from utils.arguments import Parser, mistakes_told
from utils.errors import UserError

HIT = ("Hit", "Hit (top-1 covers)")


def chance(name, gallery):
    """Percent that a random ranking of the gallery reaches."""
    cut = {"R@1": 1, "R@5": 5, "R@10": 10, "R@1%": max(1, gallery // 100), "Hit": 1, "Hit (top-1 covers)": 4}[name]
    if name == "Hit":  # the three semi-positives are left out
        gallery = max(1, gallery - 3)
    return 100 * min(cut, gallery) / gallery


def table(record):
    """Markdown table of a metrics.json: measure, percent, chance; and how far off in metres."""
    rows = [(name, record[name], chance(name, record["gallery"])) for name in ("R@1", "R@5", "R@10", "R@1%", *HIT)
            if name in record]  # fmt: skip
    width = max(len(name) for name, *_ in rows)
    lines = [f"| {'':{width}} | this run | chance |", f"|{'-' * (width + 2)}|---------:|-------:|"]
    lines += [f"| {name:{width}} | {value:6.2f} % | {luck:4.2f} % |" for name, value, luck in rows]
    metres = [f"{name}: {value:.1f}{' %' if name.startswith('within') else ''}" for name, value in record.items()
              if name.endswith(" m") or name.endswith("(m)")]  # fmt: skip
    return "\n".join([*lines, *(["", "Most similar tile: " + ", ".join(metres)] if metres else [])])


def main(argv=None):
    parser = Parser("Print the metrics of an evaluated run beside chance.")
    parser.add_argument("save_path", type=Path, help="folder with metrics.json, written by train.py")
    args = parser.parse_args(argv)
    with mistakes_told("show_metrics.py"):
        record = read_result(args.save_path / "metrics.json").metrics
        if not {"queries", "gallery"} <= record.keys():
            raise UserError(f"{args.save_path}: metrics.json tells neither queries nor gallery; evaluate the run again")
    print(f"{record['dataset']} {record['split']}: {record['queries']} queries, gallery of {record['gallery']}\n")
    print(table(record))


if __name__ == "__main__":
    main()
