#!/usr/bin/env python
"""Evaluation time and memory against the size of the gallery, with a plot; what is linear is a line.

    python -m benchmarks.growth [--largest 100000] [--queries 1000] [--out images/growth]

1,000 queries in galleries of 10^3 to 10^6 descriptors of 3,072 numbers: float32 in memory, from 10^6 on float16 in a
memory map on disk (6 GB in --scratch). Memory is what an evaluation takes above the descriptors.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import measured, save_plot
from utils.metrics import rank_queries
from utils.options import Parser, UserError, handle_errors, path, positive

ON_DISK = 1_000_000


def gallery(count, dim, folder):
    """Random descriptors, (count, dim)."""
    generator = torch.Generator().manual_seed(0)
    rows = (
        np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float16, (count, dim)) if count >= ON_DISK else None
    )
    rows = torch.empty(count, dim) if rows is None else rows
    for start in range(0, count, 8192):
        part = torch.randn(min(8192, count - start), dim, generator=generator)
        rows[start : start + len(part)] = part if isinstance(rows, torch.Tensor) else part.half().numpy()
    return rows


def measure(count, queries, dim, folder):
    """Seconds and MB of an evaluation with that many gallery items."""
    reference = gallery(count, dim, folder)
    labels = np.random.default_rng(0).integers(0, count, queries)
    positives = torch.from_numpy(np.asarray(reference[labels], dtype=np.float32))
    query = positives + 5 * torch.randn(queries, dim, generator=torch.Generator().manual_seed(1))
    best = min((measured(lambda: rank_queries(query, reference, labels)) for _ in range(2)), key=lambda m: m.seconds)
    return best.seconds, best.megabytes


def draw(sizes, seconds, megabytes, out):
    import matplotlib.pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.6))
    time.plot(sizes, seconds, "o-", color="C3")
    time.plot(sizes, [seconds[-1] * s / sizes[-1] for s in sizes], "--", color="C7", label="in proportion")
    time.set(ylabel="seconds", yscale="log")
    time.legend()
    memory.plot(sizes, megabytes, "o-", color="C0")
    memory.set(ylabel="MB above the descriptors", ylim=(0, None))
    for axis in (time, memory):
        axis.set(xlabel="gallery", xscale="log")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    save_plot(figure, out)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--largest", type=positive, default=100_000)
    parser.add_argument("--queries", type=positive, default=1_000)
    parser.add_argument("--dim", type=positive, default=3_072)
    parser.add_argument("--scratch", help="folder for galleries on disk (default: the system's)")
    parser.add_argument("--out", type=path, help="write the plot to OUT.png and OUT.pdf")
    args = parser.parse_args(argv)
    with handle_errors("python -m benchmarks.growth"):
        sizes = [n for n in (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000) if n <= args.largest]
        if not sizes:
            raise UserError(f"--largest {args.largest} leaves nothing to measure; give at least 1000")
        print(f"| gallery ({args.queries:,} queries) | seconds | MB above the descriptors |\n|---|---|---|")
        seconds, megabytes = [], []
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            for count in sizes:
                taken = measure(count, args.queries, args.dim, Path(folder))
                seconds.append(taken[0])
                megabytes.append(taken[1])
                print(f"| {count:,} | {taken[0]:.2f} | {taken[1]:,.0f} |", flush=True)
        if args.out:
            draw(sizes, seconds, megabytes, args.out)


if __name__ == "__main__":
    main()
