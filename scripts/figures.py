"""What the scripts that draw share: the files, data and weights of a run; figures written as PNG and PDF."""

import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")  # figures go to files; no display is needed

import numpy as np

from utils.arguments import natural, positive
from utils.errors import UserError
from utils.flags import DATASETS, build_parser
from utils.run_files import DESCRIPTOR_FILES, RunFiles, read_rows

RED, GREEN, GREY, BLUE, ORANGE = "#d62728", "#2ca02c", "#b0b0b0", "#1f77b4", "#e6861a"
ENDINGS = ("png", "pdf")


def save_figure(figure, stem, dpi=130):
    """Write `stem`.png and `stem`.pdf, make their folder, and say so.

    Args:
        figure: matplotlib figure; it is closed.  stem: path with or without one of the two endings.

    Returns:
        list of the two paths.

    Raises:
        UserError: the files cannot be written.
    """
    import matplotlib.pyplot as plt

    stem = Path(stem)
    if stem.suffix[1:] in ENDINGS:
        stem = stem.with_suffix("")
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ENDINGS]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise UserError(f"{stem} cannot be written to ({error}); give another place") from error
    plt.close(figure)
    print(f"wrote {paths[0]} and .pdf")
    return paths


def read_json(path):
    """The content of a JSON file.

    Raises:
        UserError: no such file, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); give the folder of a run of train.py") from error


def require(folder, names, hint):
    """Refuse a folder that lacks any of the files.

    Raises:
        UserError: it says which, and `hint`.
    """
    lacking = [name for name in names if not (Path(folder) / name).is_file()]
    if lacking:
        raise UserError(f"{folder} lacks {', '.join(lacking)}; {hint}")


def run_options(folder, data_root=None, evaluation=False):
    """The options of a run from its args.json, completed with train.py's defaults, set to evaluate.

    With `evaluation`, those of its last evaluation, which may have looked at other data than the training.
    """
    recorded = read_json(Path(folder) / "args.json")
    if not isinstance(recorded, dict) or "dataset" not in recorded:
        raise UserError(f"{Path(folder) / 'args.json'} names no dataset; give the folder of a run of train.py")
    if recorded["dataset"] not in DATASETS:
        raise UserError(f"{Path(folder) / 'args.json'} names {recorded['dataset']!r}; expected {', '.join(DATASETS)}")
    if evaluation:
        last = read_json(Path(folder) / "metrics.json")
        recorded |= last.get("data", {}) | {
            "eval_split": last.get("split"),
            "search_north": last.get("search_north", 0),
        }
        recorded["seed"] = last.get("seed", recorded.get("seed"))
    options = vars(build_parser().parse_args([])) | recorded | {"evaluate": True}
    return SimpleNamespace(**options | {"data_root": data_root or recorded.get("data_root"), "cache": None})


def run_names(folders, given=None):
    """Names of runs for legends and titles: those given, else the folders' own, with their parents where these agree.

    Raises:
        UserError: more or fewer names than runs, or the same twice.
    """
    if given is None:
        names = [Path(folder).resolve().name for folder in folders]
        return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    if len(given) != len(folders) or len(set(given)) < len(given):
        raise UserError(f"--names gives {', '.join(given)} for {len(folders)} run(s); give each a name of its own")
    return given


def add_query_flags(parser, count):
    """Flags of a page that shows some queries, read by `chosen_queries`; `count` is the default of --count."""
    parser.add_argument("--queries", nargs="+", type=natural, metavar="ROW", help="rows of the queries to show, from 0")
    parser.add_argument(
        "--count",
        type=positive,
        default=count,
        help=f"queries to draw by chance where none are named (default: {count})",
    )
    parser.add_argument("--seed", type=natural, default=0, help="of that draw (default: 0)")


def chosen_queries(args, total):
    """List of the rows to show out of `total` queries.

    Raises:
        UserError: one of --queries is not among them.
    """
    if args.queries is None:
        generator = np.random.default_rng(args.seed)
        return np.sort(generator.choice(total, min(args.count, total), replace=False)).tolist()
    if max(args.queries) >= total:
        raise UserError(f"--queries {max(args.queries)} is not a query; there are {total}, counted from 0")
    return args.queries


def load_descriptors(folder):
    """The (N, D) query and (M, D) gallery descriptors that an evaluation left, as it wrote them."""
    hint = f"run train.py -e with --save_path {folder} first"
    require(folder, ("args.json", "metrics.json", *DESCRIPTOR_FILES), hint)
    return tuple(read_rows(Path(folder) / name) for name in DESCRIPTOR_FILES)


def load_evaluation(folder, data_root=None):
    """Normalised descriptors (N, D) and (M, D), and the query and gallery datasets they belong to.

    Raises:
        UserError: files of the run or of the data are missing, or do not belong together.
    """
    descriptors = load_descriptors(folder)
    options = run_options(folder, data_root, evaluation=True)
    refuse_searched(folder, options)
    return *map(unit, descriptors), *_images_of(descriptors, options, folder)


def load_files(ground, aerial, flags):
    """As `load_evaluation`, of two .npy files, whose data are those that train.py would evaluate with `flags`."""
    from utils.options import check

    descriptors = read_rows(ground), read_rows(aerial)
    options = check(build_parser().parse_args([*flags, "-e"]))
    return *map(unit, descriptors), *_images_of(descriptors, options, f"{ground}, {aerial}")


def _images_of(descriptors, options, name):
    """The query and gallery datasets that the options say, which must have as many images as there are descriptors."""
    from dataset.build import build_datasets

    _, query, reference = build_datasets(options)
    if (len(query), len(reference)) != tuple(map(len, descriptors)):
        raise UserError(
            f"{name} holds descriptors of {len(descriptors[0])} queries and {len(descriptors[1])} gallery images, "
            f"{options.data_root} has {len(query)} and {len(reference)}; give the --data-root of that evaluation"
        )
    return query, reference


def refuse_searched(folder, options):
    """Raises UserError where an evaluation compared more descriptors than it saved."""
    if options.search_north:
        raise UserError(
            f"{folder} was evaluated with --search-north, whose turned descriptors are not saved; evaluate it without"
        )


def load_model(folder):
    """The trained model of a run, on the CPU and ready to evaluate, and the run's options.

    Where the folder has weights of its own, they and the options of their training; else those it evaluated.

    Raises:
        UserError: args.json or weights are missing or do not fit.
    """
    from model.frgeo import build_model
    from utils.checkpoint import load_checkpoint, load_weights, model_options
    from utils.options import settle_model_options

    require(folder, ("args.json",), "give the folder of a run of train.py")
    files = RunFiles(folder)
    trained, evaluated = files.best.is_file() or files.checkpoint.is_file(), None
    if not trained:
        evaluated = files.evaluation().get("weights")
        trained = not (evaluated and Path(evaluated).is_file())
    options = run_options(folder, evaluation=not trained)
    state = load_checkpoint(files.weights_to_evaluate(None if trained else Path(evaluated)))
    settle_model_options(options, model_options(state))
    model = build_model(options)
    load_weights(model, state)
    return model.eval(), options


def shorten(text, most):
    """The text, its middle left out where it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]} … {text[-(most // 2 - 2) :]}"


def unit(rows):
    """L2-normalised rows, float32 or wider."""
    rows = np.asarray(rows, dtype=np.promote_types(rows.dtype, np.float32))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
