"""Parsed options: checked before anything is read or written, completed from checkpoints, recorded."""

import os
import secrets
from pathlib import Path

from utils.errors import UserError
from utils.flags import DATA_VARIABLE, build_parser
from utils.paper import INPUT_SIZES

# What a resumed run cannot change: it stands in the optimiser's state, or in the mining memory.
KEPT = (
    "dataset", "cross", "vigor_cities", "vigor_labels", "op", "asam", "rho", "weight_decay", "momentum",
    "learn_temperature", "ema",
)  # fmt: skip
# What it can change, and an evaluation the first of them, but hardly without knowing.
SEEN = ("cross", "vigor_cities", "vigor_labels", "fov", "orientation", "ground_size", "aerial_size", "fast_decode")
RECIPE = (
    "lr", "cos", "schedule", "batch_size", "loss", "alpha", "tuple_size", "gather", "label_smoothing", "mining",
    "coordinate_mining", "vigor_guard", "augment", "colour_jitter", "patch_dropout", "amp", "tf32", "seed",
)  # fmt: skip

WHOLE = {"epoch", "state_dict", "best_acc1", "optimizer", "sampler"}  # what a checkpoint holds that can be resumed


def parse_args(argv=None):
    """Parsed and checked options; a mistake is told in one sentence and ends the program with code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return check(args)
    except UserError as error:
        parser.error(str(error))


def check(args):
    """Fill what follows from other options, and refuse values that do not go together.

    Raises:
        UserError: it says which, and what is expected.
    """
    args.data_root = args.data_root or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if args.data_root is None:
        raise UserError(f"no data: give --data-root DIR, or set {DATA_VARIABLE}, to the folder of {args.dataset}")
    if args.gpu is not None:
        args.device = f"cuda:{args.gpu}"
    if args.save_path is None:
        args.save_path = Path(f"result_{run_name(args)}")
    of_vigor = {
        "--cross": args.cross,
        "--vigor-labels": args.vigor_labels != "original",
        "--vigor-cities": args.vigor_cities is not None,
        "--vigor-guard": args.vigor_guard != "strict",
    }
    for flag, given in of_vigor.items():
        if given and args.dataset != "vigor":
            raise UserError(f"{flag} belongs to --dataset vigor, not {args.dataset}; leave it out")
    if args.cross and args.vigor_cities is not None:
        raise UserError("--cross names VIGOR's cities itself; give it or --vigor-cities")
    if not 0 <= args.fov <= 360:
        raise UserError(f"--fov {args.fov} is out of range; expected 1 to 360 degrees, or 0 for all")
    if args.search_north and args.fov not in (0, 360):
        raise UserError(f"--search-north turns whole panoramas; with --fov {args.fov} leave it out")
    if args.asam and args.op != "sam":
        raise UserError(f"--asam needs --op sam, not {args.op}; give --op sam or leave --asam out")
    for flag in ("lr", "rho", "alpha", "weight_decay", "momentum", "layer_scale"):
        value = getattr(args, flag)
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; expected a number of at least 0")
    for flag in ("label_smoothing", "learn_temperature"):
        if getattr(args, flag) and args.loss != "wbl":
            raise UserError(f"--{flag.replace('_', '-')} belongs to --loss wbl, not {args.loss}; leave it out")
    if args.learn_temperature and args.alpha is not None and not 0 < args.alpha <= 100:
        raise UserError(f"--learn-temperature cannot start from --alpha {args.alpha:g}; give a number up to 100, not 0")
    if args.layer_scale is not None and args.pretrained != "none":
        raise UserError("--layer-scale is for random weights; give --pretrained none with it, or leave it out")
    if args.resume is not None and args.evaluate:
        raise UserError("--resume continues a training; to evaluate that file give -e --weights PATH")
    if args.resume is not None and args.weights is not None:
        raise UserError("--resume and --weights both say what to load; give one of them")
    if args.descriptors is not None and not args.evaluate:
        raise UserError("--descriptors is for evaluation; add -e")
    if args.descriptors is not None and args.weights is not None:
        raise UserError("--descriptors and --weights both say what to evaluate; give one of them")
    if args.nprocs is not None and not args.multiprocessing_distributed:
        raise UserError("--nprocs needs --multiprocessing-distributed; add it or leave --nprocs out")
    nodes = max(1, args.world_size)
    if not (0 if args.world_size > 1 else -1) <= args.rank < nodes:
        raise UserError(f"--rank {args.rank} is not a node of --world-size {nodes}; give 0 to {nodes - 1}")
    if args.world_size > 1 and args.dist_url is None:
        raise UserError("several nodes need --dist-url tcp://HOST:PORT of node 0, the same on all")
    return args


def run_name(args):
    """Name of the protocol a run follows: cvusa, cvact, vigor, vigor_cross, vigor_<city> ... or pairs."""
    return "_".join([args.dataset, *(["cross"] if args.cross else []), *(args.vigor_cities or [])])


def settle_model_options(args, stored):
    """Fill model options that were not given from a checkpoint's, else with the paper's defaults.

    Args:
        args: parsed options, changed in place.  stored: {option: value} as the checkpoint recorded them.

    Returns:
        list of sentences on what was taken from the checkpoint.

    Raises:
        UserError: an option was given and the checkpoint says otherwise.
    """
    sizes = INPUT_SIZES[args.dataset]
    defaults = {
        "arch": "convnext_tiny",
        "pool": "frm",
        "regions": None,
        "share": False,
        "ground_size": list(sizes.ground),
        "aerial_size": list(sizes.aerial),
    }
    taken = []
    for name, default in defaults.items():
        given, known = getattr(args, name), stored.get(name)
        flag = _flag(name)
        if given is None and known is not None:
            setattr(args, name, known)
            usual = default or (name == "regions" and _regions(args.pool))
            if known != usual:
                taken.append(f"{flag} {_text(known)} as the checkpoint was trained with")
        elif given is None:
            setattr(args, name, default)
        elif known is not None and name in ("arch", "pool", "regions", "share") and given != known:
            raise UserError(
                f"{flag} {_text(given)} was given, the checkpoint was trained with {_text(known)}; leave it out"
            )
    if args.pool == "gap" and args.regions not in (None, 1):
        raise UserError(f"--pool gap has one region, not {args.regions}; leave --regions out, or --pool")
    args.regions = args.regions or _regions(args.pool)
    if args.search_north and args.search_north % args.regions:
        raise UserError(
            f"--search-north {args.search_north} is no multiple of the {args.regions} regions of a descriptor; give one"
        )
    args.ground_size, args.aerial_size = list(args.ground_size), list(args.aerial_size)
    if args.augment and (args.ground_size[1] % 4 or args.aerial_size[0] != args.aerial_size[1]):
        raise UserError(
            f"--augment turns by quarters: it needs a ground width that is a multiple of 4 and square aerial images, "
            f"not {_text(args.ground_size)} and {_text(args.aerial_size)}"
        )
    return taken


def take_evaluation(args, told, split):
    """Take from the record `told` of an evaluation (its metrics.json) how its descriptors saw the panoramas.

    Raises:
        UserError: they are of other data than `args` and `split` say, or were seen otherwise than a given option says.
    """
    wanted = {"dataset": run_name(args), "split": split}
    if args.dataset == "vigor":
        wanted["labels"] = args.vigor_labels
    given = {"fov": args.fov or None, "orientation": args.orientation}
    for name, value in (wanted | {name: value for name, value in given.items() if value is not None}).items():
        if told.get(name, value) != value:
            raise UserError(
                f"--descriptors {args.descriptors} are of {name} {told[name]}, not {value}; say what they are"
            )
    args.fov, args.orientation = told.get("fov", args.fov), told.get("orientation", args.orientation)
    args.seed = told.get("seed", args.seed)
    if args.search_north and args.fov not in (0, 360):
        raise UserError(
            f"--search-north turns whole panoramas; --descriptors {args.descriptors} saw {args.fov} degrees"
        )


def stored_args(state):
    """{option: value} of the run that wrote a checkpoint `state`; {} where it does not tell, as the release's."""
    args = state.get("args")
    return args if isinstance(args, dict) else {}


def settle_seed(args, state):
    """The seed where none is given: the checkpoint's to resume or to evaluate it, so that angles of view stay."""
    if args.resume or args.evaluate:
        stored = stored_args(state).get("seed")
        if isinstance(stored, int) and stored >= 0:
            return stored
        if args.evaluate:
            return 0
    return secrets.randbelow(2**31)


def check_resumed(args, state):
    """Refuse to resume from a checkpoint `state` that is no whole one, or that was trained otherwise.

    Raises:
        UserError: it says which option differs, and from what.
    """
    if not state.keys() >= WHOLE:
        raise UserError(
            f"--resume {args.resume} holds weights only (a best model, or a released file); to start from them "
            f"give --weights {args.resume}"
        )
    for name in KEPT:
        given = getattr(args, name)
        trained = stored_args(state).get(name, given)
        if (given or None) != (trained or None):
            raise UserError(
                f"{_flag(name)} is {given}, {args.resume} was trained with {trained}; resume as it was trained"
            )


def changed_options(args, state):
    """Sentences on the options of a resumed training, or of an evaluation, that differ from those of the checkpoint."""
    stored = stored_args(state)
    sentences = []
    recipe = (*RECIPE, *(["epochs"] if args.cos else [])) if args.resume else ()
    for name in (*SEEN, *recipe):
        if name not in stored or (name.startswith(("cross", "vigor")) and stored.get("dataset") != args.dataset):
            continue
        now, then = _effective(name, vars(args)), _effective(name, stored)
        if now != then:
            told = ["set" if value is True else "not set" if value is None else _text(value) for value in (now, then)]
            sentences.append(f"{_flag(name)} {told[0]}, in the checkpoint {told[1]}")
    return sentences


def _effective(name, options):
    """The value of an option, equal for what is equal in effect."""
    value = options.get(name)
    if name == "fov":
        return value or 360
    if name == "orientation":
        return value or ("unknown" if (options.get("fov") or 0) % 360 else "aligned")
    return list(value) if isinstance(value, tuple) else None if value is False else value


def recorded(args):
    """The options as plain values, for args.json and checkpoints."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}


def _flag(name):
    return "--" + name.replace("_", "-")


def _regions(pool):
    return 4 if pool == "frm" else 1


def _text(value):
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
