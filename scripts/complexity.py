#!/usr/bin/env python
"""Count parameters and multiply-adds of a network, measure its time and memory, draw R@1 against GFLOPs.

    python scripts/complexity.py                                     # the paper's network on the three data sets
    python scripts/complexity.py --dataset cvusa --arch convnext_tiny deit_small_distilled_patch16_224 --measure
    python scripts/complexity.py --plot images/complexity            # also writes complexity.png and complexity.pdf

Counts are those of one ground and one aerial image, made by ptflops (its ATen backend, which sees every operation).
A GMAC is 10^9 multiply-adds of convolutions, linear layers and attention products. Biases, layer norms, GELU and
softmax are left out; their column counts 1 a bias and output, 2 a normalised number, 1 a GELU or softmax value.
Counted so, FRGeo gives the published 11.64 (CVUSA, CVACT) and 27.3 (VIGOR), and two DeiT-S/16, TransGeo's backbone,
its published 12.3; without attention products they have 11.1, near the 11.0 published of FRM and WBL on them. ptflops'
default backend adds biases, GELU and element-wise products, but not timm's layer norms: 11.70, which is the 11.7
"GFLOPs" of the paper's figure.
"""

import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bubbles import COUNTED, draw_bubbles
from scripts.figures import save_figure
from utils.arguments import Parser, mistakes_told, positive
from utils.errors import UserError
from utils.paper import INPUT_SIZES

DATASETS = ("cvusa", "cvact", "vigor")
CONVENTION = """
GMACs: multiply-adds (10^9) of convolutions, linear layers and attention products of one ground and one aerial image,
counted by ptflops (ATen backend). Left out of them: 1 a bias and output, 2 a normalised number, 1 a GELU or softmax."""
ATTENTION = "attention products"
PUBLISHED_GMACS = {"cvusa": 11.64, "cvact": 11.64, "vigor": 27.3}  # the released README, of its ConvNeXt-T


class Complexity(NamedTuple):
    """Of a pair.

    parameters.  ground, aerial: multiply-adds of either image.  attention: those of both that are attention products.
    left_out: {kind: operations} that are none of them.
    """

    parameters: int
    ground: int
    aerial: int
    attention: int
    left_out: Counter

    @property
    def macs(self):
        return self.ground + self.aerial


class Measurement(NamedTuple):
    """Of one pair: median, fastest and slowest run in milliseconds; MiB of weights and of work above them."""

    median: float
    fastest: float
    slowest: float
    weights: float
    work: float


def build(dataset, arch, pool="frm", ground_size=None, aerial_size=None):
    """`model.FRGeo` with random weights, in evaluation mode. Raises UserError where it cannot be built."""
    from model import FRGeo

    try:
        return FRGeo(dataset, arch, pool=pool, ground_size=ground_size, aerial_size=aerial_size).eval()
    except ValueError as error:
        raise UserError(f"{error} (--ground-size, --aerial-size)") from error


def count(model):
    """`Complexity` of a pair of images of the model's own sizes."""
    left_out = Counter()
    encoders = ((model.query_net, model.ground_size), (model.reference_net, model.aerial_size))
    ground, aerial = (count_macs(net, size, left_out) for net, size in encoders)
    return Complexity(sum(p.numel() for p in model.parameters()), ground, aerial, left_out.pop(ATTENTION, 0), left_out)


def count_macs(encoder, image_size, left_out):
    """Multiply-adds of one image, by ptflops; operations that are none, and products of attention, go to `left_out`."""
    import torch
    from ptflops import get_model_complexity_info
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def note(kind, operations):
        left_out[kind] += operations
        return 0

    def convolution(inputs, outputs):  # (input, weight, bias, ...); weight is (out, in / groups, kh, kw)
        note("biases", outputs[0].numel() if inputs[2] is not None else 0)
        return outputs[0].numel() * inputs[1][0].numel()

    def linear(inputs, outputs):  # (bias, input, weight)
        note("biases", outputs[0].numel())
        return inputs[1].numel() * inputs[2].shape[-1]

    def attention(inputs, outputs):  # two stacks of matrices
        macs = outputs[0].numel() * inputs[0].shape[-1]
        note(ATTENTION, macs)
        return macs

    aten = torch.ops.aten
    hooks = {
        aten.convolution: convolution,
        aten.addmm: linear,
        aten.bmm: attention,
        aten.native_layer_norm: lambda _, outputs: note("layer norms", 2 * outputs[0].numel()),
        aten.gelu: lambda _, outputs: note("GELU", outputs[0].numel()),
    }
    hooks |= dict.fromkeys((aten._softmax, aten._safe_softmax), lambda _, outputs: note("softmax", outputs[0].numel()))
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "aten", "custom_modules_hooks": hooks}
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # attention as the plain products that ptflops knows
        macs, _ = get_model_complexity_info(encoder, (3, *image_size), **options)
    if macs is None:
        raise UserError("ptflops could not run the network; its words stand above")
    return int(macs)


def measure(model, runs, warm_up=2):
    """`Measurement` of one pair on this machine: a GPU if there is one, else the CPU; float32."""
    import torch

    from benchmarks.measure import measured

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last)
    images = [
        torch.rand(1, 3, *size, device=device).contiguous(memory_format=torch.channels_last)
        for size in (model.ground_size, model.aerial_size)
    ]

    @torch.inference_mode()
    def encode():
        model(*images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(warm_up + runs):
        started = time.perf_counter()
        encode()
        times.append(1000 * (time.perf_counter() - started))
    times = times[warm_up:]
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    return Measurement(statistics.median(times), min(times), max(times), weights, measured(encode, device).megabytes)


def tabulate(args):
    """Markdown table, a row per data set and network, counted (and with --measure measured) one after the other."""
    head = [
        "data set",
        "network",
        "ground",
        "aerial",
        "parameters (M)",
        "GMACs",
        "of them attention",
        "published",
        "left out (10^9)",
    ]
    head += ["ms per pair (fastest to slowest)", "weights + work (MiB)"] if args.measure else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for dataset in args.dataset:
        for arch in args.arch:
            model = build(dataset, arch, args.pool, args.ground_size, args.aerial_size)
            cells = [dataset, arch if args.pool == "frm" else f"{arch}, {args.pool}"]
            cells += [" x ".join(map(str, size)) for size in (model.ground_size, model.aerial_size)]
            cells += describe(count(model), published(dataset, arch, model))
            if args.measure:
                m = measure(model, args.runs)
                cells += [f"{m.median:.1f} ({m.fastest:.1f} to {m.slowest:.1f})", f"{m.weights:.0f} + {m.work:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe(complexity, known):
    """Cells of the table: parameters, GMACs, attention's share, the published GMACs (or None), what is left out."""
    left_out = ", ".join(f"{kind} {n / 1e9:.3f}" for kind, n in sorted(complexity.left_out.items()) if n)
    gmacs = f"{complexity.macs / 1e9:.2f}"
    attention = f"{complexity.attention / 1e9:.2f}" if complexity.attention else ""
    return [f"{complexity.parameters / 1e6:.2f}", gmacs, attention, f"{known}" if known else "", left_out]


def published(dataset, arch, model):
    """The published GMACs, where the network and its sizes are the paper's."""
    sizes = (model.ground_size, model.aerial_size)
    return PUBLISHED_GMACS.get(dataset) if arch == "convnext_tiny" and sizes == tuple(INPUT_SIZES[dataset]) else None


def machine():
    """What measurements were made on, in words."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread(s)"


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS, help="input sizes (default: all)")
    parser.add_argument("--arch", nargs="+", default=["convnext_tiny"], help="timm networks (default: convnext_tiny)")
    parser.add_argument("--pool", choices=("frm", "gap"), default="frm", help="as in train.py (default: frm)")
    parser.add_argument("--ground-size", nargs=2, type=positive, metavar=("H", "W"), help="instead of the data set's")
    parser.add_argument("--aerial-size", nargs=2, type=positive, metavar=("H", "W"), help="instead of the data set's")
    parser.add_argument("--measure", action="store_true", help="also time and memory of a pair on this machine")
    parser.add_argument("--runs", type=positive, default=10, help="timed runs, after two that are not (default: 10)")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="write the bubble plot to OUT.png and OUT.pdf")
    args = parser.parse_args(argv)
    with mistakes_told("complexity.py"):
        print(tabulate(args))
        if args.measure:
            print(f"\nMeasured on: {machine()}; float32, batch of one pair, median of {args.runs} runs.")
        print(CONVENTION)
        if args.plot:
            counted = [(name, count(build("cvusa", arch)), recall) for name, arch, recall in COUNTED]
            save_figure(draw_bubbles(counted), args.plot, dpi=160)


if __name__ == "__main__":
    main()
