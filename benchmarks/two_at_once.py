#!/usr/bin/env python
"""Two trainings at once on the cores of this machine, each against one alone: images per second of train.py.

    python -m benchmarks.two_at_once [--seconds 30]

The plain way lets OpenMP's threads wait for each other as long as they do by default, each training on all cores.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.city import write_city
from utils.options import Parser, handle_errors, positive
from utils.workers import cores

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
RECIPE = (
    "--dataset cvusa --arch test_resnet --pretrained none --ground-size 64 256 --aerial-size 128 128 --op adamw "
    "--lr 0.002 --batch-size 16 --epochs 1000 --eval-every 1000 --print-freq 10 --device cpu -j 1"
)
LATER = 10  # seconds after which the second training starts
PLAIN = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(cores())}


def speeds(count, folder, seconds, environment):
    """Images per second of `count` trainings while all of them run."""
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    running, texts = [], []
    for k in range(count):
        out = folder / str(k)
        command = [sys.executable, str(TRAIN), *RECIPE.split(), "--data-root", str(folder / "city")]
        command += ["--cache", str(folder / "cache"), "--save_path", str(out)]
        running.append(
            subprocess.Popen(command, env=own | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        time.sleep(LATER)
    before = [(folder / str(k) / "log.txt").read_text() for k in range(count)]
    time.sleep(seconds)
    texts = [(folder / str(k) / "log.txt").read_text() for k in range(count)]
    for process in running:
        process.kill()
        process.wait()
    found = [re.findall(r"([\d.]+) images/s", text[len(b) :]) for text, b in zip(texts, before, strict=True)]
    return [median(map(float, values)) if values else 0.0 for values in found]


def main(argv=None):
    parser = Parser(__doc__, prog="python -m benchmarks.two_at_once")
    parser.add_argument("--seconds", type=positive, default=30, help="of each measurement (default: 30)")
    args = parser.parse_args(argv)
    with handle_errors("python -m benchmarks.two_at_once"), tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_city("cvusa", folder / "city", train=160, test=8)
        print("| | alone, images/s | two at once, images/s | share of alone |\n|---|---|---|---|")
        for name, environment in (("plain", PLAIN), ("train.py", {})):
            (alone,), both = (speeds(count, folder, args.seconds, environment) for count in (1, 2))
            rates, shares = " + ".join(f"{v:.0f}" for v in both), " + ".join(f"{v / alone:.0%}" for v in both)
            print(f"| {name} | {alone:.0f} | {rates} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
