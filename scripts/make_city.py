#!/usr/bin/env python
"""Make a procedural city and write it in the layout of CVUSA, CVACT or VIGOR."""

import errno
import logging
import os
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.city import CityError, write_city
from utils.arguments import Parser
from utils.paper import VIGOR_CITIES


def parse(argv=None):
    parser = Parser(__doc__)
    parser.add_argument(
        "--layout", choices=("cvusa", "cvact", "vigor"), required=True, help="files and splits of which set"
    )
    parser.add_argument(
        "--out", required=True, help="folder to write, new or empty (or holding the same city unfinished)"
    )
    parser.add_argument("--seed", type=int, default=0, help="makes another city (default: %(default)s)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="processes (default: one per core); the bytes do not depend on it",
    )
    parser.add_argument("--native", action="store_true", help="the real set's image sizes instead of small ones")
    pairs = parser.add_argument_group("cvusa and cvact")
    pairs.add_argument("--train", type=int, default=2000, help="training pairs (default: %(default)s)")
    pairs.add_argument("--val", type=int, default=500, help="validation pairs, cvact only (default: %(default)s)")
    pairs.add_argument("--test", type=int, default=500, help="test pairs (default: %(default)s)")
    pairs.add_argument("--jitter-metres", type=float, default=0.0, help="camera up to this far from the tile's centre")
    pairs.add_argument("--jitter-degrees", type=float, default=0.0, help="panorama's north off by up to this")
    vigor = parser.add_argument_group("vigor")
    vigor.add_argument("--cities", type=int, default=4, help="how many of NewYork, Seattle, SanFrancisco, Chicago")
    vigor.add_argument("--panoramas", type=int, default=600, help="panoramas per city (default: %(default)s)")
    vigor.add_argument("--tiles", type=int, default=400, help="aerial tiles per city (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    """Write the city; returns the exit code: 0, or 2 after a mistake told in one sentence."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.time()
    try:
        if args.jobs is not None and args.jobs < 1:
            raise CityError(f"--jobs is {args.jobs}: it must be at least 1.")
        out = write_city(**vars(args))
    except CityError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(_explain(error, args.out), file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("A process was killed, most likely for memory: the same command with --jobs 1 goes on.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped; the same command goes on where {args.out} was left.", file=sys.stderr)
        return 130
    print(f"Wrote {out} in {time.time() - started:.0f} s.")
    if args.layout == "vigor" and args.cities < len(VIGOR_CITIES):
        print(
            f"It has not all of VIGOR's cities: train.py needs --vigor-cities {' '.join(VIGOR_CITIES[: args.cities])}."
        )
    return 0


def _explain(error, out):
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk under {out} is full: free some space, then the same command goes on where it stopped."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or out} cannot be written ({os.strerror(error.errno)}): give another --out."
    return f"Writing {out} failed: {error}."


if __name__ == "__main__":
    sys.exit(main())
