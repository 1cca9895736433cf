#!/usr/bin/env python
"""Make a procedural city and write it in the layout of CVUSA, CVACT or VIGOR.

If interrupted, run the same command again to continue.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.city import write_city
from utils.options import Parser, handle_errors, natural, number, path, positive
from utils.paper import VIGOR_CITIES


def parse(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--layout", choices=("cvusa", "cvact", "vigor"), required=True, help="whose files and splits to write")
    add("--out", required=True, type=path, help="folder to write: new, empty, or holding the same city unfinished")
    add("--seed", type=natural, default=0, help="another seed is another city (default: %(default)s)")
    add("--jobs", type=positive, help="processes (default: one per core); the bytes written do not depend on it")
    add("--native", action="store_true", help="the real set's image sizes instead of small ones")
    add = parser.add_argument_group("cvusa and cvact").add_argument
    add("--train", type=positive, default=2000, help="training pairs (default: %(default)s)")
    add("--val", type=natural, default=500, help="validation pairs, cvact only (default: %(default)s)")
    add("--test", type=natural, default=500, help="test pairs (default: %(default)s)")
    add("--jitter-metres", type=number, default=0.0, help="move the camera up to this far from the tile's centre")
    add("--jitter-degrees", type=number, default=0.0, help="turn the panorama's north by up to this")
    add = parser.add_argument_group("vigor").add_argument
    add("--cities", type=positive, default=4, help=f"how many of {', '.join(VIGOR_CITIES)} (default: all)")
    add("--panoramas", type=positive, default=600, help="panoramas per city (default: %(default)s)")
    add("--tiles", type=positive, default=400, help="aerial tiles per city (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args, started = parse(argv), time.time()
    with handle_errors("make_city.py", "interrupted; run the same command again to continue"):
        out = write_city(**vars(args))
        print(f"Wrote {out} in {time.time() - started:.0f} s.")
        if args.layout == "vigor" and args.cities < len(VIGOR_CITIES):
            print(
                f"Not all of VIGOR's cities: pass --vigor-cities {' '.join(VIGOR_CITIES[: args.cities])} to train.py."
            )


if __name__ == "__main__":
    main()
