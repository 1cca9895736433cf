"""What the command-line tools share: files, data and weights of a run, queries to show, figures, means and spreads."""

import argparse
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from utils.logging import on_terminal
from utils.options import DATASETS, UserError, build_parser, check, complete, natural, positive, scarcity
from utils.run_files import DESCRIPTOR_FILES, RunFiles, read_json

os.environ["MPLBACKEND"] = "Agg"  # figures go to files; no display is needed

RED, GREEN, GREY, BLUE, ORANGE = "#d62728", "#2ca02c", "#b0b0b0", "#1f77b4", "#e6861a"


def named(text):
    """ "name=value" -> (name, value), for argparse."""
    name, sign, value = text.partition("=")
    if not (sign and name.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip(), value


def spread(values, digits=2):
    """Mean and, of several values, the sample's standard deviation (n - 1), as text."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def make_folder(out):
    """Make the folder of --out. Raises UserError if it cannot be made."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made ({error}); pass another folder") from error


def save_figure(figure, stem, dpi=130):
    """Write a matplotlib figure to `stem`.png and `stem`.pdf, make their folder, and close the figure.

    Raises:
        UserError: the files cannot be written.
    """
    import matplotlib.pyplot as plt

    stem = Path(stem)
    stem = stem.with_suffix("") if stem.suffix in (".png", ".pdf") else stem
    make_folder(stem.parent)
    try:
        for ending in ("png", "pdf"):
            figure.savefig(stem.with_name(f"{stem.name}.{ending}"), dpi=dpi)
    except OSError as error:
        raise UserError(f"{stem} cannot be written ({error}); pass another --out") from error
    plt.close(figure)
    print(f"wrote {stem}.png and .pdf")


def on_all_cores(function, items, label, jobs=None, chunk=16):
    """Yield `function(part)` of each part of the list, in order, computed by processes (default: one per core).

    Raises:
        UserError: a process was killed.
    """
    from tqdm import tqdm

    from utils.workers import cores, follow_parent, starting_workers

    parts = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    with (
        ProcessPoolExecutor(jobs or cores(), initializer=follow_parent) as pool,
        tqdm(total=len(items), desc=label, disable=not on_terminal(), dynamic_ncols=True) as bar,
    ):
        try:
            with starting_workers():
                results = pool.map(function, parts)
            for part, result in zip(parts, results, strict=True):
                bar.update(len(part))
                yield result
        except BrokenProcessPool as error:
            raise UserError("a process was killed, most likely for memory; continue with --jobs 1") from error
        finally:
            pool.shutdown(cancel_futures=True)


def shorten(text, most):
    """The text, with its middle left out if it is longer than `most`."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]} … {text[-(most // 2 - 2) :]}"


def unit(rows):
    """L2-normalised rows, float32 or wider."""
    rows = np.asarray(rows, dtype=np.promote_types(rows.dtype, np.float32))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read_rows(path):
    """(rows, numbers) descriptors of a .npy file, as a memory map. Raises UserError if it holds none."""
    try:
        rows = np.load(path, mmap_mode="r")
    except Exception as error:  # whatever NumPy's reader meets in a damaged file
        if scarcity(error):  # not the file's fault
            raise
        raise UserError(f"{path} cannot be read as descriptors ({error}); pass what train.py -e wrote") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {found}; expected floats (rows, numbers), as train.py -e writes them")
    return rows


def require(folder, names, hint):
    """Raises UserError with the hint if the folder lacks any of the files."""
    if lacking := [name for name in names if not (Path(folder) / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(lacking)}; {hint}")


def run_names(folders, given=None):
    """A name for each run: the given ones, else the folders' names, or their paths where these are equal.

    Raises:
        UserError: more or fewer names than runs, or the same name twice.
    """
    if given is None:
        names = [Path(folder).resolve().name for folder in folders]
        return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    if len(given) != len(folders) or len(set(given)) < len(given):
        raise UserError(f"--names gives {', '.join(given)} for {len(folders)} run(s); pass a different name for each")
    return given


def add_query_flags(parser, count):
    """Add the flags that choose queries, which `chosen_queries` reads; `count` is the default of --count."""
    parser.add_argument("--queries", nargs="+", type=natural, metavar="ROW", help="rows of the queries, from 0")
    parser.add_argument("--count", type=positive, default=count, help="queries drawn without --queries (%(default)s)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of that draw (default: 0)")


def chosen_queries(args, total):
    """List of the rows to show. Raises UserError if one of --queries is not among the `total` queries."""
    if args.queries is None:
        generator = np.random.default_rng(args.seed)
        return np.sort(generator.choice(total, min(args.count, total), replace=False)).tolist()
    if max(args.queries) >= total:
        raise UserError(f"--queries {max(args.queries)} is not a query; there are {total}, counted from 0")
    return args.queries


def are_files(sources):
    """Whether the sources are two .npy files; False for folders. Raises UserError for anything else."""
    files = [path.suffix == ".npy" for path in sources]
    if any(files) and files != [True, True]:
        raise UserError(f"{', '.join(map(str, sources))}: pass folders of runs, or exactly two .npy files")
    return any(files)


def run_options(folder, data_root=None, evaluation=False):
    """The options of a run from its args.json, with train.py's defaults where it has none, set to evaluate.

    With `evaluation`, those of its last evaluation, which may have used other data than the training.
    """
    path = Path(folder) / "args.json"
    recorded = read_json(path)
    if recorded.get("dataset") not in DATASETS:
        raise UserError(f"{path} names the dataset {recorded.get('dataset')!r}; expected {', '.join(DATASETS)}")
    if evaluation:
        last = read_json(Path(folder) / "metrics.json")
        recorded |= last.get("data", {}) | {"seed": last.get("seed", recorded.get("seed"))}
        recorded |= {"eval_split": last.get("split"), "search_north": last.get("search_north", 0)}
    options = vars(build_parser().parse_args([])) | recorded | {"evaluate": True}
    options |= dict.fromkeys(("cache", "resume", "weights", "nprocs")) | {"given": (), "rank": -1, "world_size": -1}
    return SimpleNamespace(**options | {"data_root": data_root or options["data_root"]})


def load_descriptors(folder, data_root=None):
    """The options of a run's last evaluation, and the (N, D) query and (M, D) gallery descriptors that it wrote.

    Raises:
        UserError: files are missing, or --search-north compared more descriptors than it wrote.
    """
    hint = f"run train.py -e with --save_path {folder} first"
    require(folder, ("args.json", "metrics.json", *DESCRIPTOR_FILES), hint)
    options = run_options(folder, data_root, evaluation=True)
    if options.search_north:
        raise UserError(f"{folder} was evaluated with --search-north, which saves no turned descriptors; omit it")
    return options, [read_rows(Path(folder) / name) for name in DESCRIPTOR_FILES]


def load_evaluation(folder, data_root=None):
    """Normalised descriptors (N, D) and (M, D) of a run, and the query and gallery datasets that they belong to.

    Raises:
        UserError: files of the run or of the data are missing, or do not belong together.
    """
    return _with_images(*load_descriptors(folder, data_root), folder)


def load_files(ground, aerial, flags):
    """As `load_evaluation`, from two .npy files, with the data that train.py would evaluate with `flags`."""
    options = check(build_parser().parse_args([*flags, "-e"]))
    return _with_images(options, [read_rows(ground), read_rows(aerial)], f"{ground}, {aerial}")


def _with_images(options, descriptors, name):
    from dataset.build import build_datasets

    _, query, reference = build_datasets(options)
    if (len(query), len(reference)) != tuple(map(len, descriptors)):
        raise UserError(
            f"{name} holds descriptors of {len(descriptors[0])} queries and {len(descriptors[1])} gallery images, "
            f"{options.data_root} has {len(query)} and {len(reference)}; pass the --data-root of that evaluation"
        )
    return *map(unit, descriptors), query, reference


def load_model(folder):
    """The trained model of a run, on the CPU and ready to evaluate, and the run's options.

    If the folder has weights of its own, they and the options of their training; else those that it evaluated.

    Raises:
        UserError: args.json or weights are missing or do not fit.
    """
    from model.frgeo import build_model
    from utils.checkpoint import load_checkpoint, load_weights, stored_args

    require(folder, ("args.json",), "pass the folder of a run of train.py")
    files = RunFiles(folder)
    elsewhere = None
    if not (files.best.is_file() or files.checkpoint.is_file()):
        elsewhere = read_json(files.metrics).get("weights")
        elsewhere = Path(elsewhere) if elsewhere and Path(elsewhere).is_file() else None
    options = run_options(folder, evaluation=elsewhere is not None)
    state = load_checkpoint(files.weights_to_evaluate(elsewhere))
    complete(options, stored_args(state), folder)
    model = build_model(options)
    load_weights(model, state)
    return model.eval(), options
