"""The flags of train.py in titled groups, with their help."""

import argparse
from pathlib import Path

from utils.arguments import Parser, natural, positive
from utils.paper import VIGOR_CITIES
from utils.recipe_flags import add_beyond, add_loss, add_optimiser

DATASETS = ("cvusa", "cvact", "vigor", "pairs")
DATA_VARIABLE = "FRGEO_DATA"

DESCRIPTION = """\
Train or evaluate FRGeo: find the aerial image that shows the place of a street-level panorama.

  train     python train.py --dataset cvusa --data-root DATA --save_path result_cvusa \\
                --op sam --asam --rho 2.5 --wd 0.03 --lr 0.0001 --batch-size 32 --epochs 50 --cos --mining
  evaluate  python train.py --dataset cvusa --data-root DATA --save_path result_cvusa -e

One process by default (a GPU if there is one). --multiprocessing-distributed starts one process per GPU;
torchrun --nproc-per-node N train.py ... works as well, on one or several nodes."""

EPILOG = """\
A run writes to --save_path: checkpoint.pth.tar (last epoch, whole state), model_best.pth.tar (weights of the best
epoch), log.txt, args.json, metrics.jsonl (a line per epoch), metrics.json (last evaluation); with -e also
grd_global_descriptor.npy and sat_global_descriptor.npy. A mistake in the call ends with one sentence and code 2."""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=118)


def _add_data(group):
    group.add_argument("--dataset", default="vigor", choices=DATASETS, help="layout of the data (default: vigor)")
    group.add_argument(
        "--data-root",
        metavar="DIR",
        type=path,
        help=f"folder of the data set, or one that holds it (default: the environment variable {DATA_VARIABLE})",
    )
    group.add_argument("--cross", action="store_true", help="VIGOR: cross-area split instead of same-area")
    group.add_argument(
        "--vigor-labels",
        default="original",
        choices=("original", "corrected"),
        help="VIGOR: labels as published, or those corrected by SliceMatch (default: original)",
    )
    group.add_argument(
        "--vigor-cities",
        nargs="+",
        choices=VIGOR_CITIES,
        metavar="CITY",
        help=f"VIGOR: train and evaluate in these cities only, gallery included: {', '.join(VIGOR_CITIES)} (default: "
        "all; same-area lists)",
    )
    group.add_argument(
        "--eval-split",
        choices=("val", "test"),
        help="split to evaluate; CVACT has val and test, of which test is scored by exact pair and by any tile within "
        "5 m (default: val; VIGOR test)",
    )
    group.add_argument(
        "--ground-size",
        nargs=2,
        type=positive,
        metavar=("H", "W"),
        help="panorama size in pixels (default: 128 512; VIGOR 320 640)",
    )
    group.add_argument(
        "--aerial-size",
        nargs=2,
        type=positive,
        metavar=("H", "W"),
        help="aerial image size in pixels (default: 256 256; VIGOR 320 320)",
    )
    group.add_argument(
        "--fov",
        default=0,
        type=int,
        metavar="DEG",
        help="horizontal field of view of the panoramas (default: 0, all 360 degrees)",
    )
    group.add_argument(
        "--orientation",
        choices=("aligned", "unknown"),
        help="aligned: panoramas centred on north; unknown: turned, at random in training and by a fixed angle per "
        "image in evaluation (default: aligned, with a smaller --fov unknown, as published)",
    )
    group.add_argument(
        "--search-north",
        type=positive,
        metavar="N",
        help="in evaluation, try N directions for each panorama and take the best; N is a multiple of --regions R, "
        "whose shifts stand for turns: N / R passes over the queries, N times the comparisons (default: none)",
    )
    group.add_argument(
        "--cache",
        type=path,
        metavar="DIR",
        help="keep resized images there, as first read or as scripts/build_cache.py made them, and read them from "
        "there; the pixels stay the same",
    )
    group.add_argument(
        "--fast-decode",
        action="store_true",
        help="let the JPEG decoder scale large images down: faster, and pixels differ by a few grey levels",
    )
    group.add_argument(
        "-j",
        "--workers",
        default=None,
        type=natural,
        metavar="N",
        help="loader processes per node (default: 32, at most the cores there are)",
    )


def _add_model(group):
    group.add_argument(
        "--arch",
        metavar="NAME",
        help="a timm network that yields a feature map: any ConvNeXt, ViT, DeiT, Swin, ... (default: convnext_tiny)",
    )
    group.add_argument(
        "--pool",
        choices=("frm", "gap"),
        help="frm: the Feature Recombination Module, compass regions; gap: one global average (default: frm)",
    )
    group.add_argument(
        "--regions",
        type=int,
        choices=(1, 2, 4, 8),
        help="compass regions of --pool frm: ground strips and the aerial sectors that match them (default: 4)",
    )
    group.add_argument("--share", action="store_true", default=None, help="one set of encoder weights for both views")
    group.add_argument(
        "--dim",
        type=positive,
        metavar="N",
        help="numbers in a descriptor; checked against the model (default: the model's own, 3072 for ConvNeXt-T)",
    )
    group.add_argument(
        "--pretrained",
        default="imagenet",
        metavar="WHAT",
        help="weights that training starts from: imagenet, none, or a file in timm's or Facebook's key style "
        "(default: imagenet)",
    )
    group.add_argument(
        "--weights",
        type=path,
        metavar="PATH",
        help="weights to evaluate, or to start training from: a checkpoint of this project or of the published release "
        "(default with -e: model_best.pth.tar, else checkpoint.pth.tar, in --save_path)",
    )

    group.add_argument(
        "--layer-scale",
        type=float,
        metavar="V",
        help="layer scale that random weights start with (default: the network's own, 1e-6 in ConvNeXt; 0.1 learns "
        "faster in short runs)",
    )


def _add_run(group):
    group.add_argument("-e", "--evaluate", action="store_true", help="evaluate weights instead of training")
    group.add_argument(
        "--descriptors",
        type=path,
        metavar="DIR",
        help="with -e: score the two .npy files that an evaluation left there, without a model",
    )
    group.add_argument(
        "--save_path",
        "--save-path",
        type=path,
        metavar="DIR",
        help="folder of the run's files, made where it is not there (default: result_<dataset>)",
    )
    group.add_argument("--resume", type=path, metavar="PATH", help="go on from this checkpoint.pth.tar")
    group.add_argument("--epochs", default=200, type=natural, metavar="N", help="epochs in all (default: 200)")
    group.add_argument(
        "--start-epoch",
        default=None,
        type=natural,
        metavar="N",
        help="number of the first epoch (default: 0, or that of --resume)",
    )
    group.add_argument(
        "-b",
        "--batch-size",
        default=256,
        type=positive,
        metavar="N",
        help="pairs of all processes together (default: 256)",
    )
    group.add_argument("--mining", action="store_true", help="global hard-negative mining from the second epoch on")
    group.add_argument(
        "--vigor-guard",
        default="strict",
        choices=("strict", "release"),
        help="VIGOR: strict keeps every false negative out of a batch; release checks as the published code does, "
        "which lets some in (default: strict)",
    )
    group.add_argument(
        "--eval-every",
        default=1,
        type=positive,
        metavar="N",
        help="evaluate every N epochs and after the last (default: 1)",
    )
    group.add_argument(
        "--eval-batch-size",
        default=32,
        type=positive,
        metavar="N",
        help="images per process in evaluation (default: 32)",
    )
    group.add_argument(
        "-p", "--print-freq", default=10, type=positive, metavar="N", help="steps between log lines (default: 10)"
    )
    group.add_argument("--seed", type=natural, metavar="N", help="of weights, order, angles (default: drawn, logged)")
    group.add_argument("--deterministic", action="store_true", help="only deterministic kernels (slower on a GPU)")


def _add_machine(group):
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument(
        "--amp",
        default="none",
        choices=("none", "bf16"),
        help="bf16: networks under bfloat16 autocast; weights, loss and optimiser stay float32 (default: none, as "
        "published)",
    )
    group.add_argument(
        "--tf32",
        choices=("on", "off"),
        help="TensorFloat-32 on GPUs: for convolutions and matrix products, or for none (default: PyTorch's, "
        "convolutions only)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the encoders (torch.compile): slower to start, then faster"
    )
    group.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="recompute activations in the backward pass: less memory, about a third more time, the same gradients",
    )
    group.add_argument("--gpu", type=natural, metavar="N", help="the same as --device cuda:N")
    group.add_argument(
        "--multiprocessing-distributed",
        action="store_true",
        help="start one process per GPU of this node, or --nprocs processes",
    )
    group.add_argument(
        "--nprocs",
        type=positive,
        metavar="N",
        help="processes that --multiprocessing-distributed starts on this node (default: one per GPU, 1 without)",
    )
    group.add_argument("--world-size", default=-1, type=int, metavar="N", help="nodes (default: 1)")
    group.add_argument("--rank", default=-1, type=int, metavar="N", help="number of this node (default: 0)")
    group.add_argument("--dist-url", metavar="URL", help="where processes meet (default: a free port of this node)")
    group.add_argument("--dist-backend", metavar="NAME", help="nccl or gloo (default: nccl with GPUs, else gloo)")


def path(text):
    """A flag's file or folder; `~` is the user's home, also where the shell leaves it (`--flag=~/x`)."""
    return Path(text).expanduser()


def build_parser():
    """The parser of train.py. Names, short forms and meanings of the published flags are kept."""
    parser = Parser(DESCRIPTION, prog="train.py", epilog=EPILOG, formatter_class=_HelpFormatter)

    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    add_loss(parser.add_argument_group("loss"))
    add_optimiser(parser.add_argument_group("optimiser and schedule"))
    add_beyond(parser.add_argument_group("beyond the paper", "From later work; all off by default."))
    _add_run(parser.add_argument_group("run"))
    _add_machine(parser.add_argument_group("device and processes"))
    return parser
