"""Descriptors of a split and their metrics, the work shared by all processes."""

import logging
import time
from contextlib import closing, nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from utils import distributed
from utils.geodesy import describe_errors, neighbours
from utils.graphs import Recorded
from utils.loading import Feed
from utils.logging import describe_metrics, progress_bar
from utils.metrics import Ranks, Turned, rank_queries, recalls, summarise
from utils.options import options_of, recorded, run_name

log = logging.getLogger(__name__)


def evaluate(model, query, reference, args, device, feed=None):
    """Metrics of a model on a split, its forward passes and comparisons shared by all processes.

    Args:
        query, reference: datasets of view "ground" and "aerial".
        feed: a `Feed` of `evaluated_views(query, reference, args)` and perhaps others; None to make one.

    Returns:
        (metrics, (query descriptors, reference descriptors)): a dict in percent, (N, dim) and (M, dim) float32.

    Raises:
        DescriptorError: descriptors that must not be scored (`utils.metrics`).
    """
    model.eval()
    distributed.share_buffers(model)
    angles, regions = search_angles(args)
    with nullcontext(feed) if feed else closing(Feed(evaluated_views(query, reference, args), args, device)) as feed:
        *queries, reference = feed.datasets[-len(angles) - 1 :]
        q = [extract(model.query_net, seen, args, device, "queries", feed) for seen in queries]
        r = extract(model.reference_net, reference, args, device, "gallery", feed)
    return score(q, r, query, device, regions), (q[0].numpy(), r.numpy())


def evaluated_views(query, reference, args):
    """The datasets that an evaluation reads: the queries in every direction they are compared in, the gallery."""
    return [*(query.turned(angle) for angle in search_angles(args)[0]), reference]


@torch.inference_mode()
def extract(encoder, images, args, device, label, feed):
    """(rows, dim) float32 descriptors of a dataset, on the CPU of every process; each computes its part."""
    start, stop = distributed.shard(len(images))
    size = args.eval_batch_size
    recorded = device.type == "cuda" and getattr(args, "fast_gpu", False) and stop - start > size
    describe = partial(_describe, encoder, args, device)
    describe = Recorded(describe) if recorded else describe
    own, done = torch.empty(stop - start, encoder.dim, pin_memory=recorded), 0
    batches = [range(first, min(first + size, stop)) for first in range(start, stop, size)]
    for image, _ in progress_bar(feed.batches(images, batches), label, total=len(batches)):
        image, count = images.to_device(image, device), len(image)
        if recorded:  # the last batch, too, has the size that was recorded
            image = F.pad(image, (0, 0) * 3 + (0, size - count))
        (rows,) = describe(image)
        own[done : done + count].copy_(rows[:count], non_blocking=recorded)
        done += count
    if recorded:
        torch.cuda.synchronize(device)
    return distributed.gather_rows(own, len(images))


def _describe(encoder, args, device, images):
    with precision(args, device):
        return (encoder(images).float(),)


def precision(args, device):
    """The autocast context of a run's forward passes: bfloat16 with `--amp bf16`, else float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp == "bf16")


def search_angles(args):
    """Degrees by which panoramas are turned to search for north, and the regions whose shifts do the rest.

    A descriptor's regions follow each other around the compass, so shifting them by one equals a turn of 360 / regions
    degrees: only N / regions of N directions need images of their own.
    """
    if not args.search_north:
        return [0.0], 1
    return [360 * k / args.search_north for k in range(args.search_north // args.regions)], args.regions


def score(q, r, query, device, regions=1):
    """Metrics of descriptors, every process comparing its share of the queries.

    R@k and Hit in percent (`utils.metrics`); where positions are known, how far the most similar item lies from the
    query (`utils.geodesy`); for a split with `near_metres`, "R@1 (5 m)" and so on: found at k if one of the k most
    similar items lies that near.

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


def _gather(rows, length):
    """The rows of all processes as one array, on every process."""
    return distributed.gather_rows(torch.from_numpy(rows), length).numpy()


def record(metrics, datasets, args, files, weights, epoch, started, descriptors=None):
    """Log an evaluation and write metrics.json, with its descriptors if given; on rank 0."""
    _, query, reference = datasets
    log.info(
        "%s %s: %s (%d queries, gallery of %d, %.1f s)",
        run_name(args), query.split, describe_metrics(metrics), len(query), len(reference),
        time.perf_counter() - started,
    )  # fmt: skip
    about = {
        "dataset": run_name(args),
        "split": query.split,
        "queries": len(query),
        "gallery": len(reference),
        "missing_pairs": query.missing,
        "missing_tiles": query.missing_tiles,
        "in_training": query.in_training,
        "fov": query.fov,
        "orientation": query.orientation,
        "weights": str(weights),
        "epoch": epoch,
        "pool": args.pool,
        "regions": args.regions,
        "data": {name: recorded(args)[name] for name in ("data_root", *options_of("data"))},  # to find the images again
    }
    if args.dataset == "vigor":
        about["labels"] = args.vigor_labels
    if query.orientation == "unknown" and args.seed is not None:
        about["seed"] = args.seed  # which the angles depend on
    if args.search_north:
        about["search_north"] = args.search_north
    files.write_evaluation(metrics | about, descriptors)
