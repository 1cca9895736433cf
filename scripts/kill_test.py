#!/usr/bin/env python
"""Kill a training at random moments, resume it each time, and compare it with one that was never stopped.

    python scripts/kill_test.py --kills 20 [--nprocs 2] [--seed 0] [--out DIR]

The training is small and uses what has a state: ASAM, mining, an average of the weights, augmentation, a network with
dropout, and a learned temperature. It writes a checkpoint after every 3 steps. Each kill is a SIGKILL or a SIGTERM at a
random moment after the training has written its first checkpoint. Weights and the numbers of every epoch have to be
equal, bit for bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from utils.logging import on_terminal
from utils.options import Parser, UserError, handle_errors, natural, path, positive

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
RECIPE = (
    "--dataset cvusa --pretrained none --ground-size 32 128 --aerial-size 64 64 --device cpu "
    "--op sam --asam --rho 0.5 --lr 0.001 --cos --batch-size 4 --mining --augment --ema 0.9 --learn-temperature "
    "--eval-every 3 --print-freq 1 --seed 1 --checkpoint-steps 3 -j 1"
)


def command(data, out, epochs, nprocs):
    """The training's command; started again, it continues."""
    processes = ["--multiprocessing-distributed", "--nprocs", str(nprocs)] if nprocs > 1 else []
    import timm

    arch = "test_vit_relpos" if timm.is_model("test_vit_relpos") else "test_vit"  # the former has dropout
    own = ["--arch", arch, "--data-root", data, "--save_path", out, "--epochs", epochs, "--resume", "auto"]
    return [sys.executable, str(TRAIN), *RECIPE.split(), *map(str, own), *processes]


def start(arguments, log):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def finish(arguments, log):
    """Run to the end. Returns seconds."""
    began = time.time()
    if code := start(arguments, log).wait():
        raise UserError(f"the training ended with code {code}; see {log.name}")
    return time.time() - began


def kill_often(arguments, out, kills, chance, log):
    """Start, kill and start again, then let it end. Returns {signal's name: how often}."""
    counts = {}
    for _ in tqdm(range(kills), "kills", disable=not on_terminal()):
        run, checkpoint = start(arguments, log), out / "checkpoint.pth.tar"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while run.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        if run.poll() is None:
            run.send_signal(number)
            counts[number.name] = counts.get(number.name, 0) + 1
        run.wait()
    finish(arguments, log)
    return counts


def differences(a, b):
    """What differs between two runs' folders, as texts."""
    import torch

    first, second = (torch.load(out / "checkpoint.pth.tar", weights_only=True) for out in (a, b))
    found = [
        f"{key} {name}"
        for key in ("state_dict", "online")
        for name, tensor in first[key].items()
        if not torch.equal(tensor, second[key][name])
    ]
    lines = []
    for out in (a, b):
        every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in every])
    return found + [f"epoch {x['epoch']} of metrics.jsonl" for x, y in zip(*lines, strict=False) if x != y]


def run(kills, nprocs, epochs, seed, folder):
    """Both trainings in `folder`. Raises UserError if they differ."""
    from dataset.city import write_city

    write_city("cvusa", folder / "city", train=48, test=16)
    with open(folder / "log.txt", "a", encoding="utf-8") as log:
        seconds = finish(command(folder / "city", folder / "whole", epochs, nprocs), log)
        print(f"the training takes {seconds:.0f} s when nothing stops it")
        arguments = command(folder / "city", folder / "killed", epochs, nprocs)
        counts = kill_often(arguments, folder / "killed", kills, random.Random(seed), log)
    if wrong := differences(folder / "whole", folder / "killed"):
        raise UserError(f"after {counts} the runs differ in {len(wrong)} places, first in {wrong[0]}")
    told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{nprocs} process(es), {epochs} epochs, {told or 'no kill'}: equal, bit for bit")


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=positive, default=20, help="default: 20")
    parser.add_argument("--nprocs", type=positive, default=1, help="processes of the training (default: 1)")
    parser.add_argument("--epochs", type=positive, help="epochs of the training (default: 4 for each kill)")
    parser.add_argument("--seed", type=natural, default=0, help="of the moments and signals (default: 0)")
    parser.add_argument("--out", type=path, help="folder to write (default: a temporary one)")
    args = parser.parse_args(argv)
    with handle_errors("kill_test.py"), tempfile.TemporaryDirectory() as temporary:
        run(args.kills, args.nprocs, args.epochs or 4 * args.kills, args.seed, args.out or Path(temporary))


if __name__ == "__main__":
    main()
