#!/usr/bin/env python
"""Copy pairs of images into CVUSA's layout: the smallest check that a model can learn real imagery.

    python scripts/arrange_pairs.py PAIRS/data.csv OUT
    python train.py --dataset cvusa --data-root OUT ...

Each row of the CSV file holds the paths of an aerial and of a ground image, relative to the file. All pairs are in the
training split and in the validation split.
"""

import csv
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.options import Parser, UserError, handle_errors, path

FOLDERS = ("bingmap/19", "streetview/panos")  # aerial images, ground images


def arrange(table, out):
    """Copy the pairs listed in the CSV file `table` into the folder `out`. Returns their number.

    Raises:
        UserError: the table or an image cannot be read, or `out` cannot be written.
    """
    table, out, lines = Path(table), Path(out), []
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; pass another one, nothing is overwritten")
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        for number, row in enumerate(rows, start=1):
            if len(row) < 2:
                raise UserError(f"{table} row {number} holds {row[0]!r}; expected an aerial path, ground path")
            names = []
            for folder, source in zip(FOLDERS, row, strict=False):
                names.append(f"{folder}/{number:07d}{Path(source).suffix.lower()}")
                (out / folder).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(table.parent / source, out / names[-1])
            lines.append(f"{','.join(names)},\n")
        (out / "splits").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            (out / "splits" / f"{split}-19zl.csv").write_text("".join(lines), encoding="utf-8")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the pairs of {table} cannot be copied to {out}: {error}") from error
    return len(lines)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("table", type=path, help="CSV file, rows: aerial path, ground path")
    parser.add_argument("out", type=path, help="folder to write")
    args = parser.parse_args(argv)
    with handle_errors("arrange_pairs.py"):
        print(f"{arrange(args.table, args.out)} pairs in {args.out}")


if __name__ == "__main__":
    main()
