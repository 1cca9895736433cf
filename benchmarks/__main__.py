#!/usr/bin/env python
"""Everything that is measured against the plain way, at a size for two cores: python -m benchmarks

--scale cvusa|vigor   evaluation and mining at the real sets' sizes
--device cuda         evaluation, mining and the step on a GPU
"""

import platform
from pathlib import Path

import torch

from benchmarks import evaluation, loading, measure, mining, step
from utils.distributed import choose_device
from utils.logging import versions
from utils.options import Parser, handle_errors
from utils.workers import cores


def machine(device):
    """What this was measured on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {cores()} cores"


def main(argv=None):
    parser = Parser(__doc__, prog="python -m benchmarks")
    parser.add_argument("--scale", default="small", choices=("small", "cvusa", "vigor"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with handle_errors("python -m benchmarks"):
        measure_all(args.scale, choose_device(args.device).type)


def measure_all(scale, device):
    print(f"{machine(device)}; {torch.get_num_threads()} threads\n{versions()}\n")
    print(measure.HEADER)
    for line in evaluation.run(scale, device):
        print(line, flush=True)
    for line in mining.run(scale, device):
        print(line, flush=True)
    batch = 8 if device == "cpu" else 32
    print("\n" + step.HEADER.format(batch=batch, dataset="CVUSA"))
    for line in step.run(batch, device=device, compiled=device == "cuda"):
        print(line, flush=True)
    print("\n" + loading.HEADER)
    for line in loading.run():
        print(line, flush=True)


if __name__ == "__main__":
    main()
