#!/usr/bin/env python
"""Arrange loose pairs (a CSV of aerial,ground paths beside the images) as a CVUSA root.

Every pair is used for training and for validation: the smallest check that a model can learn real imagery.

    python scripts/arrange_pairs.py PAIRS/data.csv OUT
    python train.py --dataset cvusa --data-root OUT ...
"""

import csv
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.arguments import Parser

FOLDERS = {"aerial": "bingmap/19", "ground": "streetview/panos"}


def arrange(table, out):
    """Copy the pairs of `table` (rows: aerial path, ground path, ...) into `out`. Returns their number."""
    table, out = Path(table), Path(out)
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    lines = []
    for number, row in enumerate(rows, start=1):
        names = {}
        for view, source in zip(("aerial", "ground"), row, strict=False):
            source = table.parent / source
            names[view] = f"{FOLDERS[view]}/{number:07d}{source.suffix.lower()}"
            (out / names[view]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / names[view])
        lines.append(f"{names['aerial']},{names['ground']},")
    (out / "splits").mkdir(exist_ok=True)
    for split in ("train", "val"):
        (out / "splits" / f"{split}-19zl.csv").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(rows)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("table", help="CSV file, rows: aerial path, ground path (relative to it)")
    parser.add_argument("out", help="folder to write")
    args = parser.parse_args(argv)
    try:
        count = arrange(args.table, args.out)
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        sys.exit(parser.error(f"the pairs cannot be arranged: {error}"))
    print(f"{count} pairs in {args.out}")


if __name__ == "__main__":
    main()
