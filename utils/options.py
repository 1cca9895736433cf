"""The command line: flags, their help, what each option belongs to, and the checks that need no data."""

import argparse
import errno
import os
import secrets
import select
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from utils.paper import INPUT_SIZES, SOFT_TRIPLET_ALPHA, VIGOR_CITIES, WBL_ALPHA

DATASETS = ("cvusa", "cvact", "vigor", "pairs")
DATA_VARIABLE = "FRGEO_DATA"
KINDS = {
    "model": "describes the network: stored in checkpoints and taken from them; a contradiction is refused",
    "recipe": "describes the training: --resume takes it from the checkpoint; a contradiction is refused",
    "data": "names the images: --resume takes it from the checkpoint; a contradiction is refused",
    "machine": "says where and how a run is carried out: free to change",
}
LARGEST_SIDE = 32_768  # pixels
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

DESCRIPTION = """\
Train or evaluate FRGeo: find the aerial image that shows the place of a street-level panorama.

  train     python train.py --dataset cvusa --data-root DATA --save_path result_cvusa \\
                --op sam --asam --rho 2.5 --wd 0.03 --lr 0.0001 --batch-size 32 --epochs 50 --cos --mining
  evaluate  python train.py --dataset cvusa --data-root DATA --save_path result_cvusa -e

By default one process runs, on a GPU if there is one. --multiprocessing-distributed starts one process per GPU;
torchrun --nproc-per-node N train.py ... works as well, on one or several nodes."""

EPILOG = """\
A run writes to --save_path: checkpoint.pth.tar (last epoch, complete state), model_best.pth.tar (weights of the best
epoch), log.txt, args.json, metrics.jsonl (one line per epoch), metrics.json (last evaluation); with -e also
grd_global_descriptor.npy and sat_global_descriptor.npy. A mistake in the call ends with one sentence, exit code 2."""


class UserError(Exception):
    """A user's mistake in one sentence: what was wrong, the value, what is expected, what to do."""

    def sentence(self):
        """The sentence alone, also where a loader process has wrapped it in its own traceback."""
        text = str(self).strip()
        return text.rsplit("UserError: ", 1)[-1].strip() if text.startswith("Caught UserError") else text


class Parser(argparse.ArgumentParser):
    """A parser that keeps the line breaks of its description and answers a mistake with one sentence, exit code 2."""

    def __init__(self, description, **kwargs):
        def formatter(prog):
            return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=118)

        super().__init__(description=description, formatter_class=formatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} ({self.prog} -h explains the flags)\n")


class StoppedError(Exception):
    """A run was asked to stop by the signal `number` and has saved its state; `how` says how to continue."""

    def __init__(self, number, how):
        super().__init__(number, how)
        self.number, self.how = number, how


@contextmanager
def handle_errors(program, interrupted="interrupted"):
    """Turn exceptions into exit codes: 2 after one sentence on what the user can correct, 130 after Ctrl-C.

    Full disks, too little memory and killed processes end with one sentence and 2 as well, a pipe on stdout that nobody
    reads any more with 141. Everything else is a bug and keeps its traceback.

    Args:
        program: name that the sentence starts with.  interrupted: text after Ctrl-C, or a function that returns it.
    """
    try:
        yield
        if sys.stdout is not None:  # closed by `>&-`
            sys.stdout.flush()
    except StoppedError as stop:
        _ignore_ctrl_c(program)
        by = "interrupted" if stop.number == signal.SIGINT else f"stopped by {signal.Signals(stop.number).name}"
        print(f"{program}: {by}; {stop.how}", file=sys.stderr)
        raise SystemExit(128 + stop.number) from None
    except KeyboardInterrupt:
        _ignore_ctrl_c(program)
        print(f"{program}: {interrupted() if callable(interrupted) else interrupted}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and sys.stdout is not None and _reader_has_gone(sys.stdout):
            discard_output(sys.stdout)
            raise SystemExit(141) from None
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None


def _ignore_ctrl_c(program):
    """Where the program is about to end: another Ctrl-C would only show what Python does at its end."""
    if Path(sys.argv[0]).name == program and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _reader_has_gone(stream):
    """Whether a stream is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)  # errors are reported without being asked for
    return bool(poll.poll(0))


def discard_output(stream):
    """Send a stream that can no longer be written to nowhere, for Python's own flush at exit."""
    with suppress(OSError):  # no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def explain(error):
    """The sentence for an error that the user can do something about, None for a bug; called where the program ends."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises if a loader process died, here as well
    return error.sentence() if isinstance(error, UserError) else scarcity(error)


def scarcity(error):
    """The sentence for an error that a lack of memory, space or files, or a killed process has caused, else None."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    shared = number in FULL_DISK and _raised_in(error, "multiprocessing")  # a semaphore
    # torch's report of a loader process may interrupt anything, also a checkpoint being written.
    causes = [str(cause).strip() for cause in (error, error.__context__) if isinstance(cause, RuntimeError | OSError)]
    for cause in causes:
        if "unable to allocate shared memory" in cause or "Bus error" in cause:
            shared, first = True, cause.splitlines()[-1].rsplit("Error: ", 1)[-1]
    if shared:
        return (
            f"there is too little shared memory ({first}); use fewer --workers or smaller batches, or enlarge /dev/shm "
            "(docker run --shm-size=8g)"
        )
    if number in FULL_DISK:
        return f"the disk is full ({text}); free some space and run the command again"
    if number in (errno.EMFILE, errno.ENFILE) or any("too many open files" in cause.lower() for cause in causes):
        return "too many files are open; use fewer --workers, or allow more (ulimit -n 4096)"
    scarce = any("out of memory" in cause or "can't allocate memory" in cause for cause in causes)
    scarce = scarce or (isinstance(error, ImportError) and "failed to map segment" in text)
    if scarce or isinstance(error, MemoryError) or number == errno.ENOMEM:
        return f"there is too little memory ({first}); use smaller batches, smaller images or fewer processes"
    for cause in causes:
        if "DataLoader worker" in cause and "Caught" not in cause:
            first = cause.splitlines()[0]
            return f"a loader process was killed ({first}), most likely for lack of memory; use fewer --workers"
    lost = isinstance(error, EOFError | ConnectionError) and _raised_in(
        error, "multiprocessing"
    )  # at a pipe's other end
    if lost or type(error).__name__ in ("BrokenProcessPool", "ProcessExitedException"):
        return f"a process was killed ({first}), most likely for lack of memory; use fewer processes or --workers"
    return None


def _raised_in(error, package):
    """Whether an error comes from a package's code."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and package in Path(frames[-1].filename).parts


def positive(text):
    """A flag's whole number of at least 1."""
    return _whole_number(text, 1)


def natural(text):
    """A flag's whole number of at least 0."""
    return _whole_number(text, 0)


def pixels(text):
    """A flag's height or width of images."""
    value = _whole_number(text, 1)
    if value > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels from 1 to {LARGEST_SIDE}")
    return value


def _whole_number(text, least):
    if not (text.isdecimal() and least <= int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number of at least {least}")
    return int(text)


def fraction(text):
    """A flag's number from 0 to below 1."""
    value = number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")
    return value


def number(text):
    """A flag's finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def path(text):
    """A flag's file or folder; `~` is the user's home, also where the shell does not expand it (`--flag=~/x`)."""
    if not nonempty(text).isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} holds characters that no path can have")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is in the home of an unknown user") from None


def nonempty(text):
    """A flag's text; an empty one is what a shell makes of a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; pass a value or omit the flag")
    return text


@cache
def options_of(*kinds):
    """Names of the options of these KINDS, in the order of the help."""
    return [action.dest for action in build_parser()._actions if getattr(action, "kind", None) in kinds]


def _add(group, kind, *names, **settings):
    group.add_argument(*names, **settings).kind = kind


class _Moved(argparse.Action):
    def __call__(self, parser, namespace, folder, option_string=None):
        parser.error(f"--descriptors is now a tool of its own: python scripts/score_descriptors.py {folder}")


# fmt: off
def build_parser():
    """The parser of train.py. The first argument of `add` says which of KINDS an option belongs to."""
    parser = Parser(DESCRIPTION, prog="train.py", epilog=EPILOG)

    add = partial(_add, parser.add_argument_group("data"))
    add("data", "--dataset", default="vigor", choices=DATASETS, help="layout of the data (default: vigor)")
    add("machine", "--data-root", metavar="DIR", type=path, help="folder of the data set, or a folder that contains it "
        f"(default: the environment variable {DATA_VARIABLE})")
    add("data", "--cross", action="store_true", help="VIGOR: cross-area split instead of same-area")
    add("data", "--vigor-labels", default="original", choices=("original", "corrected"),
        help="VIGOR: labels as published, or as corrected by SliceMatch (default: original)")
    add("data", "--vigor-cities", nargs="+", choices=VIGOR_CITIES, metavar="CITY", help="VIGOR: train and evaluate in "
        "these cities only, with the same-area lists and only their tiles in the gallery "
        f"({', '.join(VIGOR_CITIES)}; default: all)")
    add("data", "--eval-split", choices=("val", "test"), help="split to evaluate; only CVACT has both, and for "
        "its test split recalls that accept any tile within 5 m are added (default: val)")
    add("model", "--ground-size", nargs=2, type=pixels, metavar=("H", "W"),
        help="panorama size in pixels (default: 128 512; VIGOR 320 640)")
    add("model", "--aerial-size", nargs=2, type=pixels, metavar=("H", "W"),
        help="aerial image size in pixels (default: 256 256; VIGOR 320 320)")
    add("data", "--fov", default=0, type=int, metavar="DEG",
        help="horizontal field of view of the panoramas in degrees (default: 0, the full 360)")
    add("data", "--orientation", choices=("aligned", "unknown"), help="aligned: panoramas are centred on north; "
        "unknown: they are turned by an angle that is random in training and fixed per image in evaluation (default: "
        "aligned; unknown if --fov is below 360, as published)")
    add("data", "--search-north", type=positive, metavar="N", help="in evaluation, compare each panorama in N "
        "directions and keep the best; N must be a multiple of --regions R; costs N / R passes over the queries "
        "(default: none)")
    add("machine", "--cache", type=path, metavar="DIR", help="keep resized images in this folder and read them from "
        "there; the pixels stay the same (scripts/build_cache.py fills it in advance)")
    add("data", "--fast-decode", action="store_true",
        help="let the JPEG decoder scale large images down: faster, but pixels differ by a few grey levels")
    add("machine", "--on-bad-image", default="stop", choices=("stop", "skip"), help="when a training image cannot be "
        "read: stop, or train on another pair in its place and count it; an evaluation always stops (default: stop)")
    add("machine", "-j", "--workers", type=natural, metavar="N",
        help="loader processes per node (default: 32, at most the number of cores)")

    add = partial(_add, parser.add_argument_group("model"))
    add("model", "--arch", metavar="NAME",
        help="timm network with a feature map: ConvNeXt, ViT, DeiT, Swin, ResNet, ... (default: convnext_tiny)")
    add("model", "--pool", choices=("frm", "gap"),
        help="frm: Feature Recombination Module, compass regions; gap: one global average (default: frm)")
    add("model", "--regions", type=int, choices=(1, 2, 4, 8),
        help="compass regions of --pool frm: ground strips and the matching aerial sectors (default: 4)")
    add("model", "--share", action="store_true", default=None, help="use one set of encoder weights for both views")
    add("machine", "--dim", type=positive, metavar="N", help="length of a descriptor, checked against the network "
        "(default: the network's own; 3072 for ConvNeXt-T)")
    add("recipe", "--pretrained", default="imagenet", type=nonempty, metavar="WHAT", help="weights that training "
        "starts from: imagenet, none, or a file with timm's or Facebook's key names (default: imagenet)")
    add("machine", "--weights", type=path, metavar="PATH", help="checkpoint of this project or of the published "
        "release to evaluate, or to start training from (default with -e: model_best.pth.tar, else checkpoint.pth.tar, "
        "in --save_path)")
    add("recipe", "--layer-scale", type=number, metavar="V", help="initial layer scale of random weights (default: the "
        "network's own, 1e-6 for ConvNeXt; 0.1 learns faster in short trainings)")

    add = partial(_add, parser.add_argument_group("loss"))
    add("recipe", "--loss", default="wbl", choices=("wbl", "soft-triplet"),
        help="weighted (B+1)-tuple loss, or TransGeo's soft-margin triplet loss (default: wbl)")
    add("recipe", "--alpha", type=number, metavar="A", help="scale of the similarities (default: 10; soft-triplet: 20)")
    add("recipe", "--tuple-size", type=positive, metavar="B", help="pairs that one loss compares (default: the pairs "
        "of one process; published: 16 on CVUSA and CVACT, 8 on VIGOR)")
    add("recipe", "--gather", action="store_true", help="take the loss over the pairs of all processes")

    add = partial(_add, parser.add_argument_group("optimiser and schedule"))
    add("recipe", "--op", default="adam", choices=("sgd", "adam", "adamw", "sam"),
        help="optimiser; sam is AdamW inside SAM (default: adam)")
    add("recipe", "--asam", action="store_true", help="with --op sam: adaptive SAM, as published")
    add("recipe", "--rho", default=0.05, type=number, help="radius of SAM (default: 0.05; published: 2.5)")
    add("recipe", "--lr", "--learning-rate", default=0.03, type=number, help="learning rate (default: 0.03)")
    add("recipe", "--momentum", default=0.9, type=number, help="momentum of --op sgd (default: 0.9)")
    add("recipe", "--wd", "--weight-decay", dest="weight_decay", default=1e-4, type=number,
        help="weight decay (default: 1e-4)")
    add("recipe", "--cos", action="store_true", help="cosine learning rate, epoch by epoch, down to 0")
    add("recipe", "--schedule", default=[120, 160], nargs="*", type=natural, metavar="EPOCH",
        help="without --cos: epochs at which the learning rate is divided by 10 (default: 120 160)")

    beyond = parser.add_argument_group("beyond the paper", "From later work; all off by default.")
    add = partial(_add, beyond)
    add("recipe", "--augment", action="store_true",
        help="turn (by quarter turns) and mirror both views of a training pair together: they stay aligned")
    add("recipe", "--colour-jitter", default=0.0, type=fraction, metavar="S",
        help="vary brightness, contrast and saturation of each training image by up to this fraction (default: 0)")
    add("recipe", "--patch-dropout", default=0.0, type=fraction, metavar="P", help="make each square patch of a "
        "training image, one eighth of its height wide, grey with probability P (default: 0)")
    add("recipe", "--label-smoothing", default=0.0, type=fraction, metavar="E",
        help="smooth WBL's targets by this fraction, spread evenly over the tuple (default: 0)")
    add("recipe", "--learn-temperature", action="store_true",
        help="learn WBL's alpha, starting from --alpha, with an upper limit of 100")
    add("recipe", "--coordinate-mining", default=0, type=natural, metavar="N", help="in the first N epochs, draw hard "
        "negatives from the 100 places nearest on the map, also without --mining; requires positions: VIGOR, CVACT, "
        "CVUSA with all.csv (default: 0)")
    add("recipe", "--ema", default=0.0, type=fraction, metavar="D", help="evaluate and keep an exponential moving "
        "average of the weights instead of the weights; D is its decay, such as 0.999 (default: 0, none)")

    run = parser.add_argument_group("run")
    add = partial(_add, run)
    add("machine", "-e", "--evaluate", action="store_true", help="evaluate weights instead of training")
    run.add_argument("--descriptors", action=_Moved, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("machine", "--save_path", "--save-path", type=path, metavar="DIR",
        help="folder for the files of the run, created if missing (default: result_<dataset>)")
    add("machine", "--resume", type=path, metavar="PATH",
        help="continue the training of this checkpoint.pth.tar with the options it was started with; auto: of the one "
        "in --save_path if there is one, else start")
    add("recipe", "--epochs", default=200, type=natural, metavar="N",
        help="epochs in total; --resume accepts another number (default: 200)")
    add("machine", "--checkpoint-steps", type=positive, metavar="N",
        help="write the checkpoint after every N steps of an epoch as well")
    add("machine", "--checkpoint-minutes", type=number, metavar="M",
        help="write the checkpoint within an epoch as well, M minutes after the last one")
    add("machine", "--start-epoch", type=natural, metavar="N",
        help="number of the first epoch (default: 0; with --resume the checkpoint's)")
    add("recipe", "-b", "--batch-size", default=256, type=positive, metavar="N",
        help="pairs per step, all processes together (default: 256)")
    add("recipe", "--mining", action="store_true", help="global hard-negative mining from the second epoch on")
    add("recipe", "--vigor-guard", default="strict", choices=("strict", "release"), help="VIGOR: strict keeps every "
        "false negative out of a batch; release checks as the published code does and lets some in (default: strict)")
    add("machine", "--nan-patience", default=0, type=natural, metavar="N", help="steps in a row that may have a loss "
        "or gradient that is not finite; such a step changes nothing, and every step waits for the device (default: 0, "
        "stop at the first)")
    add("machine", "--eval-every", default=1, type=positive, metavar="N",
        help="evaluate every N epochs and after the last one (default: 1)")
    add("machine", "--eval-batch-size", default=32, type=positive, metavar="N",
        help="images per process and step of an evaluation (default: 32)")
    add("machine", "-p", "--print-freq", default=10, type=positive, metavar="N",
        help="steps between two log lines (default: 10)")
    add("recipe", "--seed", type=natural, metavar="N", help="seed of all random numbers (default: drawn, logged)")
    add("machine", "--deterministic", action="store_true", help="use deterministic kernels only (slower on a GPU)")

    add = partial(_add, parser.add_argument_group("device and processes"))
    add("machine", "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("recipe", "--amp", default="none", choices=("none", "bf16"), help="bf16: run the networks under bfloat16 "
        "autocast; weights, loss and optimiser stay float32 (default: none, as published)")
    add("recipe", "--tf32", choices=("on", "off"), help="TensorFloat-32 on a GPU for convolutions and matrix products "
        "(default: PyTorch's, convolutions only)")
    add("machine", "--compile", action="store_true",
        help="compile the encoders with torch.compile: a slower start, then faster steps")
    add("machine", "--fast-gpu", action=argparse.BooleanOptionalAction,
        help="on a GPU: run steps as CUDA graphs, depthwise convolutions in Triton, and ConvNeXt's blocks in fewer "
        "passes over memory (default: for a ConvNeXt in one process, without --deterministic)")
    add("machine", "--grad-checkpointing", action="store_true", help="recompute activations in the backward pass: less "
        "memory, about a third more time, the same gradients")
    add("machine", "--gpu", type=natural, metavar="N", help="same as --device cuda:N")
    add("machine", "--multiprocessing-distributed", action="store_true",
        help="start one process per GPU of this node, or --nprocs processes")
    add("machine", "--nprocs", type=positive, metavar="N", help="number of processes that "
        "--multiprocessing-distributed starts on this node (default: one per GPU, else 1)")
    add("machine", "--world-size", default=-1, type=int, metavar="N", help="number of nodes (default: 1)")
    add("machine", "--rank", default=-1, type=int, metavar="N", help="number of this node (default: 0)")
    add("machine", "--dist-url", metavar="URL",
        help="address where the processes meet (default: a free port of this node)")
    add("machine", "--dist-backend", metavar="NAME", help="nccl or gloo (default: nccl with GPUs, else gloo)")
    add("machine", "--timeout", default=30.0, type=number, metavar="MINUTES", help="end the run if a process waits for "
        "the others, or for images from its loader processes, for so long (default: 30)")
    return parser
# fmt: on


def parse_args(argv=None, program="train.py"):
    """Options of train.py, checked as far as possible without data and checkpoint; a mistake exits with code 2.

    Returns:
        namespace of all options, and `given`, the names of those passed in `argv`.
    """
    parser = build_parser()
    parser.prog = program
    args = parser.parse_args(argv)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    args.given = frozenset(vars(parser.parse_args(argv)))
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0
    if args.resume == Path("auto") or (restarted and args.resume is None and not args.evaluate):
        args.resume = None  # the folder's name may follow from other options
        check(args)
        names = ("checkpoint.pth.tar", "checkpoint_before.pth.tar")
        if any((args.save_path / name).is_file() for name in names):
            args.resume, args.weights = args.save_path / names[0], None
    try:
        if args.resume is None or args.evaluate or args.weights:  # else the checkpoint completes the options first
            check(args)
        return args
    except UserError as error:
        parser.error(str(error))


def check(args):
    """Derive options from others, in place, and refuse values that cannot be combined.

    Raises:
        UserError: names the option, its value and what is expected.
    """
    if args.gpu is not None:
        args.device = f"cuda:{args.gpu}"
    args.data_root = args.data_root or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if args.save_path is None:
        args.save_path = Path(f"result_{run_name(args)}")
    nodes, loss, given = max(1, args.world_size), args.loss, getattr(args, "given", ())
    start = args.alpha if args.learn_temperature and args.alpha is not None else 1
    for wrong, sentence in (
        (args.data_root is None, f"no data: pass --data-root DIR or set {DATA_VARIABLE} to the {args.dataset} folder"),
        (args.cross and args.vigor_cities, "--cross and --vigor-cities cannot be combined; omit one of them"),
        (not 0 <= args.fov <= 360, f"--fov {args.fov} is out of range; expected 1 to 360 degrees, or 0 for all"),
        (args.search_north and args.fov % 360,
         f"--search-north turns complete panoramas and cannot be combined with --fov {args.fov}; omit one of them"),
        (args.asam and args.op != "sam", f"--asam requires --op sam, not {args.op}; pass --op sam or omit --asam"),
        ("rho" in given and args.op != "sam", f"--rho requires --op sam, not {args.op}; omit it"),
        ("momentum" in given and args.op != "sgd", f"--momentum requires --op sgd, not {args.op}; omit it"),
        ("pretrained" in given and args.pretrained != "none" and args.weights,
         "--pretrained and --weights cannot be combined: both name the weights to start from; omit one of them"),
        (args.label_smoothing and loss != "wbl", f"--label-smoothing requires --loss wbl, not {loss}; omit it"),
        (args.learn_temperature and loss != "wbl", f"--learn-temperature requires --loss wbl, not {loss}; omit it"),
        (not 0 < start <= 100, f"--learn-temperature cannot start from --alpha {start:g}; expected above 0, up to 100"),
        (args.layer_scale is not None and args.pretrained != "none",
         "--layer-scale sets random weights; pass --pretrained none with it, or omit it"),
        (args.pool == "gap" and args.regions not in (None, 1),
         f"--pool gap has one region, not {args.regions}; omit --regions or --pool"),
        (args.resume and args.evaluate,
         "--resume continues a training; to evaluate the checkpoint pass -e --weights PATH"),
        (args.resume and args.weights, "--resume and --weights cannot be combined; omit one of them"),
        (args.nprocs and not args.multiprocessing_distributed,
         "--nprocs requires --multiprocessing-distributed; add it or omit --nprocs"),
        (not (0 if args.world_size > 1 else -1) <= args.rank < nodes,
         f"--rank {args.rank} is not a node of --world-size {nodes}; expected 0 to {nodes - 1}"),
        (not args.timeout, "--timeout is 0; expected minutes above 0"),
        (args.world_size > 1 and args.dist_url is None,
         "--world-size above 1 requires --dist-url tcp://HOST:PORT of node 0, the same on all nodes"),
    ):  # fmt: skip
        if wrong:
            raise UserError(sentence)
    for name in ("cross", "vigor_labels", "vigor_cities", "vigor_guard"):
        if args.dataset != "vigor" and getattr(args, name) not in (None, False, "original", "strict"):
            raise UserError(f"{flag(name)} requires --dataset vigor, not {args.dataset}; omit it")
    return args


def check_stored(stored, name, kinds):
    """Raises UserError if a checkpoint, called `name`, stores a value that an option of these KINDS cannot have."""
    for action in build_parser()._actions:
        value = stored.get(action.dest)
        if getattr(action, "kind", None) not in kinds or value is None:
            continue
        parts = value if isinstance(value, list | tuple) and action.nargs else [value]
        try:
            if action.nargs == 0 and not isinstance(value, bool):
                raise ValueError("expected true or false")
            if action.nargs in (0, None) and action.type is None and not isinstance(value, bool | str):
                raise ValueError("expected a text")
            if isinstance(action.nargs, int) and action.nargs > 0 and len(parts) != action.nargs:
                raise ValueError(f"expected {action.nargs} values")
            parts = [action.type(str(part)) if action.type else part for part in parts]
            if action.choices and not set(parts) <= set(action.choices):
                raise ValueError(f"expected {', '.join(map(str, action.choices))}")
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise UserError(
                f"{name} stores {flag(action.dest)} {_text(value)[:99]} ({error}); it is damaged or of a later version"
            ) from None


def complete(args, stored, name, kinds=None):
    """Fill options that were not given: from the checkpoint `stored`, else with the paper's defaults. Then `check`.

    Args:
        args: result of `parse_args`, changed in place.  stored: {option: value} of the run that wrote the checkpoint,
            {} if unknown.  name: what messages call the checkpoint.
        kinds: KINDS of options to take from it. Default: "model", and with --resume "recipe" and "data" too.

    Returns:
        list of sentences on what was taken from the checkpoint and what differs from it.

    Raises:
        UserError: a given option contradicts the checkpoint.
    """
    kinds = kinds or (("model", "recipe", "data") if args.resume else ("model",))
    check_stored(stored, name, (*kinds, "data"))
    sizes = INPUT_SIZES[stored.get("dataset", args.dataset) if "data" in kinds else args.dataset]
    defaults = {"arch": "convnext_tiny", "pool": "frm", "share": False, "ground_size": list(sizes.ground),
                "aerial_size": list(sizes.aerial)}  # fmt: skip
    taken = options_of(*kinds)
    free = ("epochs",) if args.resume else ("ground_size", "aerial_size")
    sentences = []
    if args.resume and (lacking := [flag(option) for option in taken if option not in stored]):
        what = ", ".join(lacking) if stored else "its options"
        sentences.append(f"the checkpoint does not store {what}; the command line or the defaults decide")
    for option in options_of("model", "recipe", "data"):
        now, then = getattr(args, option), stored.get(option)
        elsewhere = option.startswith(("cross", "vigor", "eval")) and stored.get("dataset") != args.dataset
        if option not in stored or (then is None and option in defaults) or (elsewhere and "data" not in kinds):
            continue
        differs = _effect(option, vars(args)) != _effect(option, stored)
        if option not in taken:
            if args.evaluate and differs and option in options_of("data"):
                sentences.append(f"{flag(option)} is {_text(now)} (checkpoint: {_text(then)})")
        elif option not in args.given:
            if differs and then != defaults.get(option):
                sentences.append(f"{flag(option)} is {_text(then)} (from the checkpoint)")
            setattr(args, option, then)
        elif differs and option in free:
            sentences.append(f"{flag(option)} is {_text(now)} (checkpoint: {_text(then)})")
        elif differs:
            how = "omit it, or start a new training from these weights with --weights" if args.resume else "omit it"
            raise UserError(f"{flag(option)} is {_text(now)} ({name}: {_text(then)}); {how}")
    for option, value in defaults.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    if args.evaluate and args.seed is None:  # so that angles of view stay the same
        seed = stored.get("seed")
        args.seed = seed if isinstance(seed, int) and seed >= 0 else 0
    args.seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    check(args)
    args.regions = args.regions or (1 if args.pool == "gap" else 4)
    if args.search_north and args.search_north % args.regions:
        raise UserError(
            f"--search-north {args.search_north} is not a multiple of the {args.regions} regions of a descriptor; pass "
            f"a multiple of {args.regions}"
        )
    if args.augment and (args.ground_size[1] % 4 or args.aerial_size[0] != args.aerial_size[1]):
        raise UserError(
            "--augment turns by quarter turns: it requires a ground width that is a multiple of 4 and square aerial "
            f"images, not {_text(args.ground_size)} and {_text(args.aerial_size)}"
        )
    return sentences


def _effect(option, options):
    """The value of an option, equal for values that have the same effect."""
    value = options.get(option)
    if option == "fov":
        return value or 360
    if option == "orientation":
        return value or ("unknown" if (options.get("fov") or 0) % 360 else "aligned")
    if option == "eval_split":  # the other data sets have one split to evaluate
        return (value or "val") if options.get("dataset") == "cvact" else None
    if option == "alpha":
        return value or (SOFT_TRIPLET_ALPHA if options.get("loss") == "soft-triplet" else WBL_ALPHA)
    if option == "regions":
        return value or (1 if options.get("pool") == "gap" else 4)
    return list(value) if isinstance(value, tuple) else None if value is False else value


def run_name(args):
    """Name of the protocol of a run: cvusa, cvact, vigor, vigor_cross, vigor_<city>, ... or pairs."""
    return "_".join([args.dataset, *(["cross"] if args.cross else []), *(args.vigor_cities or [])])


def recorded(args):
    """The options as plain values, for args.json and checkpoints."""
    known = options_of(*KINDS)
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k in known}


def flag(option):
    """An option's flag, as the help shows it."""
    return {"save_path": "--save_path", "weight_decay": "--wd"}.get(option, "--" + option.replace("_", "-"))


def _text(value):
    if value is None or isinstance(value, bool):
        return "set" if value else "not set"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
