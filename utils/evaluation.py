"""Descriptors of a split and their metrics, the work shared by all processes."""

import logging
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from utils import distributed
from utils.descriptors import Turned
from utils.errors import UserError
from utils.geodesy import describe_errors, neighbours
from utils.images import collate, to_device
from utils.launch import loader_workers
from utils.logging import describe_metrics, progress_bar
from utils.metrics import Ranks, rank_queries, recalls, summarise
from utils.options import recorded, run_name
from utils.run_files import DESCRIPTOR_FILES, read_rows
from utils.seeding import seed_worker

log = logging.getLogger(__name__)

# The options that say which images were evaluated; with them an evaluation's figures find its data again.
DATA_OPTIONS = ("dataset", "data_root", "cross", "vigor_cities", "vigor_labels", "fov", "orientation")


def evaluate(model, query, reference, args, device):
    """Metrics of a model on a split, its forward passes and comparisons shared by all processes.

    Returns:
        (metrics, (query descriptors, reference descriptors)): a dict in percent, (N, dim) and (M, dim) float32.
    """
    model.eval()
    distributed.share_buffers(model)
    angles, regions = _search(args)
    q = [extract(model.query_net, query.turned(angle), args, device, "queries") for angle in angles]
    r = extract(model.reference_net, reference, args, device, "gallery")
    return score(q, r, query, device, regions), (q[0].numpy(), r.numpy())


def score_saved(q, r, query, args, device):
    """Metrics of saved (N, dim) and (M, dim) descriptors.

    Raises:
        UserError: a search for north that needs panoramas turned by other angles than the regions'.
    """
    angles, regions = _search(args)
    if len(angles) > 1:
        raise UserError(
            f"--search-north {args.search_north} turns the panoramas themselves, and --descriptors has no model to see "
            f"them with; give --search-north {regions}"
        )
    return score([q], r, query, device, regions)


def _search(args):
    """Degrees by which panoramas are turned to search for north, and the regions whose shifts do the rest.

    A descriptor's regions follow each other around the compass: of N directions, N / regions are looked at as images.
    """
    if not args.search_north:
        return [0.0], 1
    return [360 * k / args.search_north for k in range(args.search_north // args.regions)], args.regions


def score(q, r, query, device, regions=1):
    """Metrics of descriptors, every process comparing its share of the queries.

    R@k and Hit in percent (`utils.metrics`); where positions are known, how far the most similar item lies from the
    query (`utils.geodesy`); for a split that has `near_metres`, "R@1 (5 m)" and so on: found at k if one of the k
    most similar items lies that near.

    Args:
        q: list of (N, dim) descriptors of the queries; several, or `regions` > 1, to search for north (`Turned`).
        r: (M, dim) descriptors of the gallery.
    """
    if device.type == "cuda":
        r = (r if isinstance(r, torch.Tensor) else torch.tensor(r)).to(device)
    rows, positions = distributed.shard(len(q[0])), query.positions
    near = neighbours(positions, query.near_metres, *rows) if positions and query.near_metres else None
    nearest = 0 if positions is None else 1
    searched = len(q) > 1 or regions > 1
    queries = Turned(q, regions, "query descriptors", device) if searched else q[0]
    ranks = rank_queries(queries, r, query.labels, query.semi_positives, rows=rows, nearest=nearest, near=near)
    ranks = Ranks(*(column if column is None else _gather(column, len(q[0])) for column in ranks))
    metrics = summarise(ranks, len(r))
    if ranks.near is not None:
        near = recalls(ranks.near, len(r))
        metrics |= {f"{name} ({query.near_metres:g} m)": value for name, value in near.items()}
    if positions is not None:
        metrics |= describe_errors(positions.errors(ranks.nearest[:, 0]))
    return metrics


def record(metrics, datasets, args, files, weights, epoch, started, descriptors=None):
    """Log and write an evaluation on rank 0. Returns its metrics there, None elsewhere."""
    if not distributed.is_main():
        return None
    _, query, reference = datasets
    log.info(
        "%s %s: %s (%d queries, %d in the gallery, %.1f s)",
        run_name(args), query.split, describe_metrics(metrics), len(query), len(reference),
        time.perf_counter() - started,
    )  # fmt: skip
    told = {
        "dataset": run_name(args),
        "split": query.split,
        "queries": len(query),
        "gallery": len(reference),
        "missing_pairs": query.missing,
        "missing_tiles": query.missing_tiles,
        "fov": query.fov,
        "orientation": query.orientation,
        "weights": str(weights),
        "epoch": epoch,
        "pool": args.pool,
        "regions": args.regions,
    }
    told["data"] = {name: recorded(args)[name] for name in DATA_OPTIONS}
    if args.dataset == "vigor":
        told["labels"] = args.vigor_labels
    if query.orientation == "unknown" and args.seed is not None:
        told["seed"] = args.seed  # of the angles
    if args.search_north:
        told["search_north"] = args.search_north
    files.write_evaluation(metrics | told, descriptors)
    return metrics


def _gather(rows, length):
    """The rows of all processes as one array, on every process."""
    return distributed.gather_rows(torch.from_numpy(rows), length).numpy()


def read_descriptors(folder, query, reference):
    """The (N, dim) and (M, dim) descriptors that `-e` left in a folder, as memory maps.

    Raises:
        UserError: as `read_rows`, or a file has not a row for every image.
    """
    found = []
    for name, images in zip(DESCRIPTOR_FILES, (query, reference), strict=True):
        rows = read_rows(Path(folder) / name)
        if len(rows) != len(images):
            raise UserError(
                f"{folder}: {name} has shape {rows.shape}, the data have {len(images)} images; give the --data-root "
                "and the split that were evaluated"
            )
        found.append(rows)
    return found


@torch.inference_mode()
def extract(encoder, images, args, device, label):
    """(rows, dim) float32 descriptors of a dataset, on the CPU of every process; each computes its part."""
    start, stop = distributed.shard(len(images))
    loader = DataLoader(
        Subset(images, range(start, stop)),
        batch_size=args.eval_batch_size,
        num_workers=loader_workers(args),
        pin_memory=device.type == "cuda",
        worker_init_fn=seed_worker,
        collate_fn=collate,
    )
    own = torch.empty(stop - start, encoder.dim)
    done = 0
    for image, _ in progress_bar(loader, label):
        with precision(args, device):
            rows = encoder(to_device(image, device))
        own[done : done + len(image)] = rows.float().cpu()
        done += len(image)
    return distributed.gather_rows(own, len(images))


def precision(args, device):
    """The autocast context of a run's forward passes: bfloat16 with `--amp bf16`, else float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp == "bf16")
