"""Train or evaluate FRGeo on CVUSA, CVACT, VIGOR or own pairs. `python train.py -h` explains every flag."""

from utils.options import parse_args

if __name__ == "__main__":
    parse_args()  # -h and a wrong flag are answered before torch is imported, which takes seconds

import logging
import math
import time
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from criterion.build import build_loss, build_optimizer, set_learning_rate
from criterion.step import train_step
from dataset.build import LAYOUTS, build_datasets, evaluation_split
from dataset.sampler import MiningSampler
from model.average import WeightAverage
from model.frgeo import build_model
from utils import distributed
from utils.arguments import mistakes_told
from utils.checkpoint import load_checkpoint, load_weights, model_options, stored_epoch
from utils.errors import UserError
from utils.evaluation import evaluate, precision, read_descriptors, record, score_saved
from utils.images import collate, to_device
from utils.launch import keep_freed_memory, launch, loader_workers
from utils.logging import log_setup, log_training, progress_bar, start_logging, stop_logging
from utils.options import (
    changed_options,
    check_resumed,
    recorded,
    settle_model_options,
    settle_seed,
    stored_args,
    take_evaluation,
)
from utils.run_files import RunFiles
from utils.seeding import loader_generator, seed_process, seed_worker, set_kernels

log = logging.getLogger(__name__)


def main(argv=None):
    """Run train.py with the given arguments (default: the command line's).

    Returns:
        dict | None: metrics of the run's last evaluation on rank 0 (None elsewhere).

    Raises:
        SystemExit: code 2 after one sentence on stderr where the user's input is wrong; 130 on Ctrl-C.
    """
    args = parse_args(argv)
    began = time.time()

    def interrupted():
        last = RunFiles(args.save_path).checkpoint
        last = last if last.exists() and last.stat().st_mtime >= began else args.resume
        return f"interrupted; go on with --resume {last}" if last and not args.evaluate else "interrupted"

    with mistakes_told("train.py", interrupted):
        try:
            check_inputs(args)
            return launch(run, args)
        finally:
            stop_logging()


def check_inputs(args):
    """Tell at once, before any process starts, that the data or the weights are not there."""
    evaluation_split(args)
    LAYOUTS[args.dataset].find_root(args.data_root)
    if args.evaluate and not args.descriptors:
        RunFiles(args.save_path).weights_to_evaluate(args.weights)


def run(args, device):
    """One process's part of a run: read, build, then evaluate or train. Returns the last metrics on rank 0."""
    files = RunFiles(args.save_path)
    if args.descriptors:
        return rescore(args, device, files)
    source = files.weights_to_evaluate(args.weights) if args.evaluate else args.resume or args.weights
    state = load_checkpoint(source) if source else None
    taken = settle_model_options(args, model_options(state) if state is not None else {})
    if args.seed is None:
        args.seed = distributed.broadcast_object(settle_seed(args, state))
    datasets = build_datasets(args, pixels=True)

    set_kernels(args.deterministic, args.tf32)
    if device.type == "cpu":
        keep_freed_memory()
    seed_process(args.seed)
    pretrained = {"imagenet": True, "none": False}.get(args.pretrained, args.pretrained)
    # Rank 0's weights reach the others when DistributedDataParallel is built.
    model = build_model(args, pretrained=pretrained if state is None and distributed.is_main() else False)

    told = load_weights(model, state) if state is not None else {}
    trained_for = stored_epoch(told)
    model.to(device, memory_format=torch.channels_last)
    model.tune(args.grad_checkpointing, args.compile)
    training = None if args.evaluate else prepare_training(args, model, datasets[0], device, state)
    changed = changed_options(args, state) if args.evaluate or args.resume else []
    del state  # as large as model, moments and mining memory together

    # Every mistake that can be seen at the start has been told by now; from here on files are written.
    if distributed.is_main():
        own = args.resume is not None and args.resume.resolve().parent == args.save_path.resolve()
        files.open(fresh=not (args.evaluate or own), alone=not args.evaluate)
    try:
        distributed.barrier()
        start_logging(args.save_path)
        log_setup(recorded(args), device, model, datasets, taken, changed)
        if not args.evaluate:
            return train(model, datasets, training, args, device, files)
        if distributed.is_main():
            files.keep_args(recorded(args))
        log.info("weights %s, epoch %s", source, "unknown" if trained_for is None else trained_for)
        return evaluate_and_record(model, datasets, args, device, files, source, trained_for)
    finally:
        files.close()


def rescore(args, device, files):
    """Metrics of descriptors that an earlier evaluation has written; no model is built."""
    source = RunFiles(args.descriptors)
    made_with = source.model_options()
    if args.search_north and not made_with and args.regions is None:
        raise UserError(
            f"--search-north has to know the regions of the descriptors, and no metrics.json or args.json in "
            f"{args.descriptors} tells them; give --regions"
        )
    settle_model_options(args, made_with)
    made_from = source.evaluation()
    take_evaluation(args, made_from, evaluation_split(args))
    _, query, reference = datasets = build_datasets(args)
    descriptors = read_descriptors(args.descriptors, query, reference)
    if distributed.is_main():
        files.open(fresh=False)
    distributed.barrier()
    start_logging(args.save_path)
    started = time.perf_counter()
    metrics = score_saved(*descriptors, query, args, device)
    if distributed.is_main() and files.folder.resolve() != source.folder.resolve():
        files.set_evaluation_aside()
    weights, epoch = made_from.get("weights", args.descriptors), made_from.get("epoch")
    return record(metrics, datasets, args, files, weights, epoch, started)


class Training(NamedTuple):
    """What a training run keeps from epoch to epoch."""

    sampler: MiningSampler
    criterion: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    start: int  # epochs done
    best: float  # R@1 so far


def prepare_training(args, model, train_set, device, state):
    """Sampler, loss, optimiser and average, restored from the checkpoint `state` where a run is resumed."""
    positions = train_set.positions if args.coordinate_mining else None
    if args.coordinate_mining and positions is None:
        raise UserError(
            f"--coordinate-mining needs to know where the places are, and {train_set.root} does not tell (CVUSA: "
            "split_locations/all.csv); leave it out"
        )
    sampler = MiningSampler(
        train_set.tiles,
        args.batch_size,
        visits=train_set.visits,
        mining=args.mining,
        dim=model.dim,
        seed=args.seed,
        guard=args.vigor_guard,
        device=device,
        positions=positions,
        near_epochs=args.coordinate_mining,
    )
    criterion = build_loss(args, sampler.share, distributed.world_size()).to(device)
    optimizer = build_optimizer(args, model, criterion)
    average = WeightAverage(model, args.ema) if args.ema else None
    if average:
        average.model.tune(compiled=args.compile)
    start, best = args.start_epoch or 0, 0.0
    if args.resume:
        check_resumed(args, state)
        before = stored_args(state).get("eval_split")
        if evaluation_split(args, before) != evaluation_split(args):
            raise UserError(
                f"--eval-split is {evaluation_split(args)}, {args.resume} was evaluated on "
                f"{evaluation_split(args, before)}; resume as it was trained, or evaluate the other split with -e"
            )
        try:
            optimizer.load_state_dict(state["optimizer"])
            sampler.load_state_dict(state["sampler"])
            criterion.load_state_dict(state.get("criterion", {}))
            if "online" in state:  # state_dict is the average of these
                model.load_state_dict(state["online"])
            if average:
                average.steps = state.get("average_steps", 0)
            start = int(state["epoch"]) if args.start_epoch is None else args.start_epoch
            best = float(state["best_acc1"])
        except torch.OutOfMemoryError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"--resume {args.resume} is no whole checkpoint ({error!r}); give another one") from error
    return Training(sampler, criterion, optimizer, average, start, best)


def train(model, datasets, training, args, device, files):
    """Train for the epochs that remain. Returns the metrics of the last evaluation on rank 0."""
    train_set = datasets[0]
    sampler, criterion, optimizer, average, start, best = training
    shown = average.model if average else model  # what is evaluated and kept
    log_training(args, training, train_set)
    if start >= args.epochs:
        log.warning("nothing to train: %d of --epochs %d are done; give a larger --epochs", start, args.epochs)
        return None
    if distributed.is_main():
        files.start(recorded(args), start)

    network = model
    if distributed.world_size() > 1:
        network = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    workers = loader_workers(args)
    loader = DataLoader(
        train_set,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=seed_worker,
        collate_fn=collate,
        generator=loader_generator(args.seed, start, distributed.rank()),
    )
    metrics = None
    for epoch in range(start, args.epochs):
        seed_process(args.seed, epoch, distributed.rank())
        train_set.set_epoch(epoch)
        lr = set_learning_rate(optimizer, args, epoch)
        plan_epoch(sampler, epoch)
        line = {"epoch": epoch + 1, "lr": lr}
        line |= train_one_epoch(network, loader, training, args, device, epoch)
        is_best = False
        if (epoch + 1) % args.eval_every == 0 or epoch + 1 == args.epochs:
            weights = files.checkpoint
            metrics = evaluate_and_record(shown, datasets, args, device, files, weights, epoch + 1)
            if distributed.is_main():
                is_best = metrics["R@1"] > best or not files.best.exists()  # not there: resumed in another folder
                best = metrics["R@1"] if is_best else best
                line |= metrics
        if args.learn_temperature:
            line["alpha"] = criterion.loss.alpha.item()
        if distributed.is_main():
            files.save_epoch(
                line,
                is_best,
                epoch=epoch + 1,
                state_dict=shown.state_dict(),
                best_acc1=best,
                optimizer=optimizer.state_dict(),
                sampler=sampler.state_dict(),
                criterion=criterion.state_dict(),
                args=recorded(args),
                **({"online": model.state_dict(), "average_steps": average.steps} if average else {}),
            )
        distributed.barrier()
    return metrics


def train_one_epoch(network, loader, training, args, device, epoch):
    """One pass over the planned batches. Returns loss, similarities and speed, averaged over processes."""
    sampler, criterion, optimizer, average = training[:4]
    network.train()
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, positive and negative similarity
    window, started, last = totals.clone(), time.perf_counter(), time.perf_counter()
    lr = optimizer.param_groups[0]["lr"]
    steps = len(loader)
    for step, (ground, aerial, index) in enumerate(progress_bar(loader, f"epoch {epoch + 1}"), start=1):
        ground, aerial = to_device(ground, device), to_device(aerial, device)
        values, q, k = train_step(network, criterion, optimizer, ground, aerial, precision(args, device))
        sampler.update(index, q, k)
        if average:
            average.update(getattr(network, "module", network))
        totals += values
        window += values
        if step % args.print_freq == 0 or step == steps:
            count = args.print_freq if step % args.print_freq == 0 else step % args.print_freq
            loss, positive, negative = (window / count).tolist()  # the only wait for the device
            if not math.isfinite(loss):
                last = RunFiles(args.save_path).checkpoint
                how = f"go on with --resume {last} or start again" if last.exists() else "start again"
                raise UserError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {step}: training has diverged; lower --lr "
                    f"({args.lr:g}) and {how}"
                )
            speed = 2 * sampler.batch_size * count / (time.perf_counter() - last)
            log.info(
                "epoch %d step %d/%d: loss %.4f, positive %.3f, negative %.3f, lr %.3g, %.1f images/s",
                epoch + 1, step, steps, loss, positive, negative, lr, speed,
            )  # fmt: skip
            window.zero_()
            last = time.perf_counter()
    loss, positive, negative = distributed.mean_over_ranks((totals / steps).tolist())
    seconds = time.perf_counter() - started
    return {
        "loss": loss,
        "positive_similarity": positive,
        "negative_similarity": negative,
        "images_per_second": 2 * sampler.batch_size * steps / seconds,
        "seconds": seconds,
    }


def evaluate_and_record(model, datasets, args, device, files, weights, epoch):
    """Evaluate on all processes; rank 0 writes metrics.json and, with -e, the descriptors, and gets the metrics."""
    started = time.perf_counter()
    metrics, descriptors = evaluate(model, *datasets[1:], args, device)
    return record(metrics, datasets, args, files, weights, epoch, started, descriptors if args.evaluate else None)


def plan_epoch(sampler, epoch):
    """Lay out the epoch's batches and say what mining found."""
    started = time.perf_counter()
    sampler.plan(epoch)
    counts = sampler.counts
    if counts["mined"] or counts["random"]:
        log.info(
            "epoch %d: %d hard partners, %d random ones where no hard one fitted (%.1f s)",
            epoch + 1, counts["mined"], counts["random"], time.perf_counter() - started,
        )  # fmt: skip
    if counts["short"]:
        log.warning("epoch %d: %d batches left out, too few places without a common tile", epoch + 1, counts["short"])


if __name__ == "__main__":
    main()
