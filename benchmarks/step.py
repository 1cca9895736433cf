#!/usr/bin/env python
"""One training step of FRGeo (ConvNeXt-T, WBL, ASAM): as published, and here in float32, bfloat16 and compiled.

    python -m benchmarks.step [--batch 8] [--dataset cvusa|vigor] [--device cpu|cuda] [--compile] [--growth OUT]

As published: channels-first activations with a permutation around every block's LayerNorm and linear layers, a norm
written out in the downsampling layers, one operation per tensor in ASAM and AdamW, float32. Both start from the same
weights and images; "off by" compares AdamW's first moments after one step, which are a tenth of the gradient at w + e:
the norm of their difference over their norm.
"""

import copy
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.measure import in_turns, measured, save_plot
from criterion import SAM, WBLoss
from model import FRGeo
from model.depthwise import triton_fails
from train import compute_gradients, train_step
from utils.distributed import choose_device
from utils.graphs import Recorded
from utils.options import Parser, handle_errors, path, positive
from utils.seeding import set_kernels

LR, DECAY, RHO = 1e-4, 0.03, 2.5
HEADER = "| a step of {batch} {dataset} pairs | time | memory | faster | off by |\n|---|---|---|---|---|"
MODES = {"float32": ("none", False), "bfloat16": ("bf16", False), "compiled bfloat16": ("bf16", True)}


def norm_channels_first(x, norm):
    """LayerNorm over the channels of (B, C, H, W), written out."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / torch.sqrt(variance + norm.eps)
    return norm.weight[:, None, None] * x + norm.bias[:, None, None]


def plain_map(net, x):
    """(B, C, h, w) feature map of a timm ConvNeXt's weights, channels first throughout."""
    x = norm_channels_first(F.conv2d(x, net.stem[0].weight, net.stem[0].bias, stride=4), net.stem[1])
    for stage in net.stages:
        if len(list(stage.downsample.children())):
            norm, reduce = stage.downsample
            x = F.conv2d(norm_channels_first(x, norm), reduce.weight, reduce.bias, stride=2)
        for block in stage.blocks:
            conv, mlp = block.conv_dw, block.mlp
            y = F.conv2d(x, conv.weight, conv.bias, padding=3, groups=conv.groups).permute(0, 2, 3, 1)
            y = F.layer_norm(y, y.shape[-1:], block.norm.weight, block.norm.bias, block.norm.eps)
            y = F.linear(F.gelu(F.linear(y, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
            x = x + (block.gamma * y).permute(0, 3, 1, 2)
    return x


def plain_descriptors(encoder, images):
    regions = encoder.pooling(plain_map(encoder.backbone.net, images))
    return encoder.backbone.norm(regions).flatten(1)


def flat_moments(optimizer, parameters):
    """AdamW's first moments of all parameters, one after the other."""
    return torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in parameters])


class PlainStep:
    """The published step on its own copy of a model, with ASAM or without."""

    def __init__(self, model, images, sam=True):
        self.model, self.images, self.sam = copy.deepcopy(model).to(memory_format=torch.contiguous_format), images, sam
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=DECAY, foreach=False)

    def backward(self):
        q = plain_descriptors(self.model.query_net, self.images[0])
        k = plain_descriptors(self.model.reference_net, self.images[1])
        WBLoss()(q, k)[0].backward()

    @torch.no_grad()
    def climb(self):
        norm = torch.norm(torch.stack([(p.abs() * p.grad).norm() for p in self.parameters]))
        old = []
        for p in self.parameters:
            old.append(p.clone())
            p.add_(p.pow(2) * p.grad * (RHO / (norm + 1e-12)))
        return old

    def moments(self):
        return flat_moments(self.adamw, self.parameters)

    def __call__(self):
        self.backward()
        if self.sam:
            old = self.climb()
            self.adamw.zero_grad()
            self.backward()
            for p, value in zip(self.parameters, old, strict=True):
                p.data.copy_(value)
        self.adamw.step()
        self.adamw.zero_grad()


class OurStep:
    """`train.train_step` on its own copy of a model, on a GPU as train.py runs it with --fast-gpu."""

    def __init__(self, model, images, amp, compiled=False, sam=True, fast=True):
        device = images[0].device
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        fast = fast and device.type == "cuda" and not triton_fails(device)
        self.model.optimize(compiled=compiled, fast_gpu=fast)
        self.images = [image.contiguous(memory_format=torch.channels_last) for image in images]
        settings = {"lr": LR, "weight_decay": DECAY, "fused": True}
        parameters = list(self.model.parameters())
        adamw = torch.optim.AdamW
        self.optimizer = SAM(parameters, adamw, RHO, True, **settings) if sam else adamw(parameters, **settings)
        self.criterion = WBLoss()
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")
        compute = partial(compute_gradients, self.model, self.criterion, self.autocast)
        self.gradients = Recorded(compute, parameters) if fast else compute

    def moments(self):
        return flat_moments(self.optimizer, self.model.parameters())

    def __call__(self):
        train_step(self.model, self.criterion, self.optimizer, *self.images, self.autocast, self.gradients)


def make(dataset, batch, device, **sizes):
    """A model with random weights of a trained one's size, and a batch of images."""
    torch.manual_seed(0)
    model = FRGeo(dataset, layer_scale=0.1, **sizes).to(device)
    sizes = (model.ground_size, model.aerial_size)
    return model, [torch.randn(batch, 3, *size, device=device) for size in sizes]


def run(batch=8, dataset="cvusa", device="cpu", compiled=False, rounds=2):
    """Lines of the table."""
    set_kernels(deterministic=False)  # for both, as train.py does
    model, images = make(dataset, batch, device)
    ways = {"as published": PlainStep(model, images)}
    modes = {name: mode for name, mode in MODES.items() if compiled or not mode[1]}
    ways |= {name: OurStep(model, images, *mode) for name, mode in modes.items()}
    for step in ways.values():
        step()  # the first, which also warms up and compiles
    plain = ways["as published"].moments()
    off = {name: float((step.moments() - plain).norm() / plain.norm()) for name, step in ways.items()}
    best = in_turns(ways, rounds, device)
    reference = best["as published"].seconds
    return [
        f"| {name} | {m.seconds:.3f} s | {m.megabytes:,.0f} MB | {reference / m.seconds:.2f} x "
        f"| {f'{off[name]:.1e}' if name != 'as published' else ''} |"
        for name, m in best.items()
    ]


def growth(dataset, device, largest, out):
    """Time of a bfloat16 step over the batch size, as a line of the table each and a plot OUT.png, OUT.pdf."""
    sizes = [2**i for i in range(1, 12) if 2**i < largest] + [largest]
    model, images = make(dataset, largest, device)
    seconds = []
    for batch in sizes:
        step = OurStep(model, [image[:batch] for image in images], "bf16", False)
        step()
        seconds.append(min(measured(step, device).seconds for _ in range(2)))
        print(f"| batch {batch} | {seconds[-1]:.3f} s | {2 * batch / seconds[-1]:.1f} images/s |", flush=True)

    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.6))
    axis.plot(sizes, seconds, "o-", color="C3")
    axis.set(xlabel="pairs in a batch", ylabel="seconds a step (ASAM)", xlim=(0, None), ylim=(0, None))
    axis.grid(alpha=0.3)
    figure.tight_layout()
    save_plot(figure, out)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--batch", type=positive, default=8, help="pairs (default: 8)")
    parser.add_argument("--dataset", default="cvusa", choices=("cvusa", "cvact", "vigor"), help="image sizes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also the compiled step")
    parser.add_argument("--growth", type=path, metavar="OUT", help="instead, the step over batches up to --batch")
    args = parser.parse_args(argv)
    with handle_errors("python -m benchmarks.step"):
        device = choose_device(args.device).type
        if args.growth:
            growth(args.dataset, device, args.batch, args.growth)
            return
        print(HEADER.format(batch=args.batch, dataset=args.dataset.upper()))
        for line in run(args.batch, args.dataset, device, args.compile):
            print(line)


if __name__ == "__main__":
    main()
