#!/usr/bin/env python
"""One epoch's mining plan against the plain way (whole product, full argsort): time and memory.

    python benchmarks/mining.py [--items 35532] [--plain-items 8884] [--dim 3072]

Descriptors are random. "Above" is the peak resident memory beyond what the descriptors take (Linux).
"""

import argparse
import ctypes
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from dataset.mining import DescriptorMemory
from dataset.sampler import MiningSampler

NEIGHBOURS = 100


def filled_memory(items, dim):
    memory = DescriptorMemory(items, dim)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, items, 2048):
        rows = torch.arange(start, min(start + 2048, items))
        ground = torch.randn(len(rows), dim, generator=generator)
        memory.update(rows, ground, ground + 2 * torch.randn(len(rows), dim, generator=generator))
    return memory


def measured(function):
    """(result, seconds, MB of peak resident memory above the start)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory must not count as in use at the start
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = status("VmRSS")
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started, (status("VmHWM") - before) / 1024


def status(field):
    """A kB figure of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def plain_lists(memory):
    """The definition: every similarity, sorted."""
    similarity = memory.ground.numpy() @ memory.aerial.numpy().T
    return np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=35_532, help="items of the plan (default: CVUSA's)")
    parser.add_argument("--plain-items", type=int, default=8_884, help="items of the comparison (default: 8884)")
    parser.add_argument("--dim", type=int, default=3_072)
    args = parser.parse_args()

    memory = filled_memory(args.plain_items, args.dim)
    rows = torch.arange(args.plain_items)
    ours = measured(lambda: memory.hard_negatives(rows, np.random.default_rng(0)))
    plain = measured(lambda: plain_lists(memory))
    same = np.mean([len(set(a) & set(b)) for a, b in zip(ours[0].tolist(), plain[0].tolist(), strict=True)])
    print(f"{args.plain_items} items, lists for all: ours {ours[1]:.1f} s, {ours[2]:.0f} MB above; ", end="")
    print(f"product and argsort {plain[1]:.1f} s, {plain[2]:.0f} MB above; ", end="")
    print(f"{plain[1] / ours[1]:.1f} x faster, {plain[2] / ours[2]:.1f} x less memory, ", end="")
    print(f"{same:.2f} of {NEIGHBOURS} neighbours in common")

    sampler = MiningSampler(np.arange(args.items)[:, None], 32, mining=True, dim=args.dim)
    sampler.memory = filled_memory(args.items, args.dim)
    sampler.plan(0)
    plan, seconds, above = measured(lambda: sampler.plan(1))
    print(f"{args.items} items, one epoch plan: {seconds:.1f} s, {above:.0f} MB above the descriptors ", end="")
    print(f"({2 * args.items * args.dim * 4 / 2**20:.0f} MB); {len(plan)} batches, {sampler.counts}")


if __name__ == "__main__":
    main()
