"""Descriptors of a split and their metrics, the work shared by all processes."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from utils import distributed
from utils.errors import UserError
from utils.geodesy import describe_errors, neighbours
from utils.images import collate, to_device
from utils.launch import loader_workers
from utils.logging import progress_bar
from utils.metrics import Ranks, rank_queries, recalls, summarise
from utils.run_files import DESCRIPTOR_FILES
from utils.seeding import seed_worker


def evaluate(model, query, reference, args, device):
    """Metrics of a model on a split, its forward passes and comparisons shared by all processes.

    Returns:
        (metrics, (query descriptors, reference descriptors)): a dict in percent, (N, dim) and (M, dim) float32.
    """
    model.eval()
    q = extract(model.query_net, query, args, device, "queries")
    r = extract(model.reference_net, reference, args, device, "gallery")
    return score(q, r, query, device), (q.numpy(), r.numpy())


def score(q, r, query, device):
    """Metrics of (N, dim) and (M, dim) descriptors, every process comparing its share of the queries.

    R@k and Hit in percent (`utils.metrics`); where positions are known, how far the most similar item lies from the
    query (`utils.geodesy`); for a split that has `near_metres`, "R@1 (5 m)" and so on: found at k if one of the k
    most similar items lies that near.
    """
    if device.type == "cuda":
        r = (r if isinstance(r, torch.Tensor) else torch.tensor(r)).to(device)
    rows, positions = distributed.shard(len(q)), query.positions()
    near = neighbours(positions, query.near_metres, *rows) if positions and query.near_metres else None
    nearest = 0 if positions is None else 1
    ranks = rank_queries(q, r, query.labels, query.semi_positives, rows=rows, nearest=nearest, near=near)
    ranks = Ranks(*(column if column is None else _gather(column, len(q)) for column in ranks))
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


def read_descriptors(folder, query, reference):
    """The (N, dim) and (M, dim) descriptors that `-e` left in a folder, as memory maps.

    Raises:
        UserError: a file is missing, is no array of descriptors, or has not a row for every image.
    """
    found = []
    for name, images in zip(DESCRIPTOR_FILES, (query, reference), strict=True):
        path = Path(folder) / name
        try:
            rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"--descriptors {folder}: {name} cannot be read ({error}); give a folder that train.py -e has written"
            ) from error
        if rows.ndim != 2 or len(rows) != len(images):
            raise UserError(
                f"--descriptors {folder}: {name} has shape {rows.shape}, the data have {len(images)} images; give "
                "the --data-root and the split that were evaluated"
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
