#!/usr/bin/env python
"""Count parameters and multiply-adds of a network, measure its time and memory, plot R@1 against GFLOPs.

    python scripts/complexity.py                                     # the paper's network on the three data sets
    python scripts/complexity.py --dataset cvusa --arch convnext_tiny deit_small_distilled_patch16_224 --measure
    python scripts/complexity.py --plot images/complexity            # also writes complexity.png and complexity.pdf

A GMAC is 10^9 multiply-adds of one ground and one aerial image in convolutions, linear layers and attention products,
counted by PyTorch's FlopCounterMode; biases, norms, activations and softmax are left out. FRGeo then has the published
11.64 (CVUSA, CVACT; "11.7 GFLOPs" in the paper's figure) and 27.3 (VIGOR). Two DeiT-S/16 have TransGeo's published
12.3, and 11.1 without attention products, near the 11.0 published for FRM and WBL on them. The cross-check, ptflops,
also counts biases.
"""

import ctypes
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common import BLUE, GREY, RED, save_figure
from utils.options import Parser, UserError, handle_errors, path, pixels, positive
from utils.paper import INPUT_SIZES, PUBLISHED_METRICS, TRANSGEO_ARCH

DATASETS = ("cvusa", "cvact", "vigor")
HEAD = "data set | network | ground | aerial | parameters (M) | GMACs | of them attention | published | ptflops"
MEASURED = " | ms per pair (fastest to slowest) | weights + work (MiB) | measured on"
PUBLISHED_GMACS = {"cvusa": 11.64, "cvact": 11.64, "vigor": 27.3}  # the released README, for its ConvNeXt-T
# CVUSA R@1 and GFLOPs of others, from the paper's tables and figure.
OTHERS = {
    "SAFA, polar transform": (89.84, 40.2),
    "DSM": (91.93, 39.3),
    "L2LTR": (94.05, 57.1),
    "TransGeo": (94.08, 12.3),
    "GeoDTR": (95.43, 39.9),
}
# Networks that the plot counts: name, timm network, published CVUSA R@1, colour.
COUNTED = (
    ("FRGeo", "convnext_tiny", PUBLISHED_METRICS["cvusa"]["R@1"], RED),
    ("FRM + WBL on DeiT-S/16", TRANSGEO_ARCH, PUBLISHED_METRICS["cvusa_deit"]["R@1"], BLUE),
)
AREA = 11  # square points of a bubble per million parameters


def build(dataset, arch, pool="frm", ground_size=None, aerial_size=None):
    """`model.FRGeo` with random weights, in evaluation mode. Raises UserError if it cannot be built."""
    from model import FRGeo

    try:
        return FRGeo(dataset, arch, pool=pool, ground_size=ground_size, aerial_size=aerial_size).eval()
    except ValueError as error:
        raise UserError(f"{error} (--ground-size, --aerial-size)") from error


def encoders(model):
    return (model.query_net, model.ground_size), (model.reference_net, model.aerial_size)


def count(model):
    """(parameters, multiply-adds of a pair, those of attention products); moves the model to the meta device."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.to("meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for encoder, size in encoders(model):
            encoder(torch.empty(1, 3, *size, device="meta"))
    attention = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, attention // 2


def cross_check(model):
    """The GMACs of a pair by ptflops (ATen backend), as text."""
    try:
        from ptflops import get_model_complexity_info
    except ImportError:
        return "not installed"
    from torch.nn.attention import SDPBackend, sdpa_kernel

    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "aten"}
    with sdpa_kernel(SDPBackend.MATH):
        macs = [get_model_complexity_info(net, (3, *size), **options)[0] for net, size in encoders(model)]
    return "failed" if None in macs else f"{sum(macs) / 1e9:.2f}"


def measure(model, runs, warm_up=2):
    """Device (a GPU if there is one), sorted milliseconds of the runs of a pair, MiB of weights, of work above them."""
    import torch

    gpu = torch.cuda.is_available()
    layout = {"device": "cuda" if gpu else "cpu", "memory_format": torch.channels_last}
    model.to(**layout)
    images = [torch.rand(1, 3, *size).to(**layout) for _, size in encoders(model)]
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = torch.cuda.memory_allocated() if gpu else resident("VmRSS")
    times = []
    for _ in range(warm_up + runs):
        started = time.perf_counter()
        with torch.inference_mode():
            model(*images)
        if gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    return device, sorted(times[warm_up:]), weights / 2**20, (peak - before) / 2**20


def resident(field):
    """Bytes of this process in memory: VmRSS now, VmHWM at the peak (Linux)."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def row(dataset, arch, args):
    """The table's line for a data set and a network."""
    model = build(dataset, arch, args.pool, args.ground_size, args.aerial_size)
    sizes, measured = (model.ground_size, model.aerial_size), []
    if args.measure:
        device, times, weights, work = measure(model, args.runs)
        measured += [f"{statistics.median(times):.1f} ({times[0]:.1f} to {times[-1]:.1f})"]
        measured += [f"{weights:.0f} + {work:.0f}", device]
    counts = [f"{n / unit:.2f}" for n, unit in zip(count(model), (1e6, 1e9, 1e9), strict=True)]
    own = arch == "convnext_tiny" and sizes == tuple(INPUT_SIZES[dataset])
    network = arch if args.pool == "frm" else f"{arch}, {args.pool}"
    cells = [dataset, network, *(f"{height} x {width}" for height, width in sizes), *counts]
    return " | ".join([*cells, str(PUBLISHED_GMACS[dataset]) if own else "", cross_check(model), *measured])


def draw_bubbles(counted):
    """The paper's motivation figure: bubbles with the area for the parameters if they are counted, else equal rings.

    Args:
        counted: (name, (parameters, multiply-adds, ...), R@1 in percent, colour) of each bubble.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.4, 4.6))
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    ring = {"s": 130, "facecolors": "none", "edgecolors": "#555555", "linewidths": 1.4}
    for name, (parameters, macs, *_), recall, colour in counted:
        axis.scatter(macs / 1e9, recall, s=AREA * parameters / 1e6, color=colour, alpha=0.75, linewidths=0)
        text = f"{name}\n{recall:.2f} %, {macs / 1e9:.2f} GFLOPs, {parameters / 1e6:.1f} M"
        axis.annotate(text, (macs / 1e9, recall), (20, 0), color=colour, **beside)
    for name, (recall, gflops) in OTHERS.items():
        axis.scatter(gflops, recall, **ring)
        axis.annotate(f"{name}\n{recall:.2f} %, {gflops}", (gflops, recall), (11, 0), color="#333333", **beside)
    for n in (25, 50):
        axis.scatter([], [], s=AREA * n, color=GREY, linewidths=0, label=f"counted here, {n} M parameters")
    axis.scatter([], [], **ring, label="published GFLOPs, parameters not given")
    axis.set(xlabel="GFLOPs of one pair (10$^9$ multiply-adds)", ylabel="CVUSA R@1 (%), as published")
    axis.set(xlim=(0, 72), ylim=(86.6, 98.4))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", fontsize=8.5, edgecolor="none", framealpha=1, labelspacing=1.9, handletextpad=1.0)
    figure.tight_layout()
    return figure


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS, help="input sizes (default: all)")
    parser.add_argument("--arch", nargs="+", default=["convnext_tiny"], help="timm networks (default: convnext_tiny)")
    parser.add_argument("--pool", choices=("frm", "gap"), default="frm", help="as in train.py (default: frm)")
    parser.add_argument("--ground-size", nargs=2, type=pixels, metavar=("H", "W"), help="instead of the data set's")
    parser.add_argument("--aerial-size", nargs=2, type=pixels, metavar=("H", "W"), help="instead of the data set's")
    parser.add_argument("--measure", action="store_true", help="also time and memory of a pair on this machine")
    parser.add_argument("--runs", type=positive, default=10, help="timed runs, after two that are not (default: 10)")
    parser.add_argument("--plot", type=path, metavar="OUT", help="write the bubble plot to OUT.png and OUT.pdf")
    args = parser.parse_args(argv)
    with handle_errors("complexity.py"):
        head = HEAD + MEASURED * args.measure
        rows = [row(dataset, arch, args) for dataset in args.dataset for arch in args.arch]
        print(f"| {head} |\n|{'---|' * (head.count('|') + 1)}", *(f"| {line} |" for line in rows), sep="\n")
        if args.measure:
            print(f"\nMeasured: float32, batch of one pair, median of {args.runs} runs.")
        print(
            "\nGMACs: multiply-adds (10^9) of convolutions, linear layers and attention products of one ground and one "
            "aerial image,\ncounted by torch.utils.flop_counter; ptflops (ATen backend) also counts biases."
        )
        if args.plot:
            counted = [(name, count(build("cvusa", arch)), *more) for name, arch, *more in COUNTED]
            save_figure(draw_bubbles(counted), args.plot, dpi=160)


if __name__ == "__main__":
    main()
