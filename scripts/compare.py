#!/usr/bin/env python
"""Set evaluations beside the paper's numbers, a row each: value (published, difference), recalls in percent.

    python scripts/compare.py cvusa=result_cvusa cvact_test=result_cvact_test "my run=runs/mine" ...

RESULT is a run's folder or its metrics.json. A NAME of the paper's tables (cvusa, cvact, cvact_test, vigor,
vigor_cross, cvusa_deit, cvact_deit, cvact_test_deit) brings the published numbers; any other name is a title only.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.report import left_out, read_result
from utils.arguments import Parser, mistakes_told
from utils.paper import PUBLISHED_METRICS

MEASURES = ("R@1", "R@5", "R@10", "R@1%", "Hit", "median error (m)")
NEAR = " (5 m)"  # ends the names of recalls for which any tile within 5 m counts
TITLES = {
    "cvusa": "CVUSA",
    "cvact": "CVACT_val",
    "cvact_test": "CVACT_test",
    "vigor": "VIGOR same-area",
    "vigor_cross": "VIGOR cross-area",
    "cvusa_deit": "CVUSA, FRM + WBL on DeiT-S/16",
    "cvact_deit": "CVACT_val, FRM + WBL on DeiT-S/16",
    "cvact_test_deit": "CVACT_test, FRM + WBL on DeiT-S/16",
}


def cell(value, published=None):
    """A measure, and in brackets the published one and the difference."""
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if published is None else f" ({published:.2f}, {value - published:+.2f})")


def rows(name, metrics):
    """The table rows of an evaluation; CVACT's test split has a second one, for any tile within 5 m."""
    published, title = PUBLISHED_METRICS.get(name, {}), TITLES.get(name, name)
    size = f"{metrics.get('queries', '?')} / {metrics.get('gallery', '?')}"
    out = [[title, size, *(cell(metrics.get(m), published.get(m)) for m in MEASURES)]]
    if f"R@1{NEAR}" in metrics:
        near = [cell(metrics.get(m + NEAR), published.get(m)) for m in MEASURES]
        out.append([f"{title}, any tile within 5 m", size, *near])
    return out


def tabulate(results):
    """Markdown table of [(name, metrics), ...]; columns that nothing fills are left out."""
    found = [row for name, metrics in results for row in rows(name, metrics)]
    columns = [c for c in zip(["", "queries / gallery", *MEASURES], *found, strict=True) if any(c[1:])]
    head, *body = zip(*columns, strict=True)
    lines = [f"| {' | '.join(row)} |" for row in body]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


def named(text):
    """ "name=folder" -> (name, path of its metrics.json)."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RESULT")
    return name, Path(path) if path.endswith(".json") else Path(path) / "metrics.json"


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("results", nargs="+", type=named, metavar="NAME=RESULT")
    args = parser.parse_args(argv)
    with mistakes_told("compare.py"):
        results = [(name, read_result(path).metrics) for name, path in args.results]
        print(tabulate(results))
        if any(name in PUBLISHED_METRICS for name, _ in results):
            print("\nIn brackets: published, and the difference; published on the whole test split of the real data.")
        for name, metrics in results:
            if told := left_out(metrics):
                print(f"{TITLES.get(name, name)}: {told}")


if __name__ == "__main__":
    main()
