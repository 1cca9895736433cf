"""Train or evaluate FRGeo on CVUSA, CVACT, VIGOR or your own pairs. `python train.py -h` explains every flag."""

from utils.options import handle_errors, parse_args

if __name__ == "__main__":
    import os

    parse_args()  # answers -h and a wrong flag before torch is imported, which takes seconds
    # OpenMP's threads wait for each other in a loop of 300,000 rounds, in which they hold up other programs' and are
    # held up by them. After 1,000 they sleep instead. The library reads this when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with handle_errors("train.py"):
        import torch  # too little memory

import logging
import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel

from criterion.build import build_loss, build_optimizer, set_learning_rate
from criterion.sam import SAM, frozen_statistics
from criterion.wbl import TupleLoss
from dataset.build import LAYOUTS, build_datasets
from dataset.sampler import MiningSampler
from model.convnext import FoldedBlock
from model.depthwise import triton_fails
from model.frgeo import FRGeo, build_model
from utils import distributed
from utils.checkpoint import (
    WHOLE,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    stored_args,
    stored_epoch,
)
from utils.evaluation import evaluate, evaluated_views, precision, record
from utils.graphs import Recorded
from utils.loading import Feed
from utils.logging import log_setup, log_traceback, log_training, progress_bar, start_logging, stop_logging
from utils.options import StoppedError, UserError, complete, explain, flag, options_of, recorded
from utils.progress import EpochProgress
from utils.ranking import CollapsedError
from utils.run_files import RunFiles
from utils.seeding import seed_process, set_kernels
from utils.stopping import Stopping

log = logging.getLogger(__name__)

COLLAPSED = 0.98  # cosine similarity of different places in training
EARLY_LOOK = 30  # seconds, at most, in which a new training reads evaluation images before it begins


@dataclass
class Training:
    """What a training carries from step to step; all of it is in the checkpoint."""

    model: FRGeo
    sampler: MiningSampler
    criterion: TupleLoss
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None  # moving average of the weights, evaluated and kept in their place
    ema_steps: int = 0
    epoch: int = 0  # epochs done
    best: float = 0.0  # highest R@1
    line: dict | None = None  # what metrics.jsonl records of the last epoch
    inside: dict | None = None  # the state within an epoch, in which a run was stopped
    unrecorded: bool = False  # the run ended after its last epoch was saved and before its evaluation was recorded
    lists: dict | None = None  # fingerprints of the lists trained on and evaluated, by split
    notes: list = field(default_factory=list)  # sentences on what a resumed run does otherwise than before

    @property
    def evaluated(self):
        """The network that is evaluated and kept."""
        return self.ema.module if self.ema else self.model


def main(argv=None):
    """Run train.py with the given arguments (default: the command line's).

    Returns:
        dict | None: metrics of the run's last evaluation on rank 0 (None elsewhere).

    Raises:
        SystemExit: code 2 after one sentence on stderr if the user's input is wrong; 130 after Ctrl-C.
    """
    args, began = parse_args(argv), time.time()

    def interrupted():
        last = RunFiles(args.save_path).checkpoint if args.save_path else None
        last = last if last and last.exists() and last.stat().st_mtime >= began else args.resume
        return f"interrupted; continue with --resume {last}" if last and not args.evaluate else "interrupted"

    with handle_errors("train.py", interrupted):
        try:
            source, notes = args.resume or args.weights, []
            if args.evaluate:
                source = RunFiles(args.save_path).weights_to_evaluate(args.weights)
            elif args.resume:
                source, notes = latest_checkpoint(args.resume)
                args.resume = source
            stored = stored_args(load_checkpoint(source, verified=bool(args.resume))) if source else {}
            notes += complete(args, stored, source)
            notes += distributed.choose_threads(args, stored.get("threads") if args.resume else None, argv is None)
            LAYOUTS[args.dataset].find_root(args.data_root)  # a wrong folder ends the run before any process starts
            return distributed.launch(partial(run, source, notes), args)
        finally:
            stop_logging()


def run(source, notes, args, device):
    """One process's part of a run: read, build, then evaluate or train.

    Args:
        source: checkpoint that the weights come from, or None.  notes: sentences of `complete` for the log.

    Returns:
        dict | None: metrics of the last evaluation on rank 0.
    """
    args.seed = distributed.broadcast_object(args.seed)
    files, datasets = RunFiles(args.save_path, args.resume), build_datasets(args, pixels=True)
    lists = {dataset.split: dataset.fingerprint for dataset in datasets[:2] if dataset}
    state = load_checkpoint(source, verified=True) if source else None
    distributed.agree(must_agree(args, lists, state))
    set_kernels(args.deterministic, args.tf32)
    seed_process(args.seed)
    pretrained = {"imagenet": True, "none": False}.get(args.pretrained, args.pretrained)
    # Rank 0's weights reach the others in `prepare_steps`.
    model = build_model(args, pretrained=pretrained if state is None and distributed.is_main() else False)
    epoch = None if state is None else stored_epoch(load_weights(model, state, source))
    model.to(device, memory_format=torch.channels_last)
    args.fast_gpu, reason = choose_fast_gpu(args, model, device)
    notes = [*notes, f"--fast-gpu is not used: {reason}"] if reason else notes
    model.optimize(args.grad_checkpointing, args.compile, fast_gpu=args.fast_gpu and device.type == "cuda")
    training = None if args.evaluate else prepare_training(args, model, datasets[0], device, state, lists)
    del state  # as large as model, moments and mining memory together
    if training and nothing_to_train(training, args, files):
        start_logging()
        log.warning("nothing to train: %d of --epochs %d are done; pass a larger number", training.epoch, args.epochs)
        return None

    # Mistakes in the call have ended the run by now; from here on files are written.
    if distributed.is_main():
        notes += files.open(training=not args.evaluate)
    try:
        distributed.barrier()
        start_logging(files.folder)
        log_setup(recorded(args), device, model, datasets, notes)
        if not args.evaluate:
            return train(datasets, training, args, device, files)
        if distributed.is_main():
            files.start_evaluation(recorded(args))
        log.info("weights %s, epoch %s", source, "unknown" if epoch is None else epoch)
        return evaluate_and_record(model, datasets, args, device, files, source, epoch)
    except StoppedError:
        raise
    except Exception as error:
        if explain(error) is None:
            log_traceback()
        raise
    finally:
        files.close()


def must_agree(args, lists, state):
    """What has to be equal on all processes of a run: options that decide results, lists as they were read, weights."""
    options = {flag(name): getattr(args, name) for name in options_of("model", "recipe", "data")}
    lists = {f"the list of split {split}": found for split, found in lists.items()}
    inside = (state or {}).get("inside") or {}
    return (
        options | lists | {"the epoch and step of the checkpoint": (stored_epoch(state or {}), inside.get("step", 0))}
    )


def choose_fast_gpu(args, model, device):
    """Whether --fast-gpu is used, and why not if it was wanted. On a CPU only the gradients are averaged as on a GPU.

    Default: on where it has been measured, which is a ConvNeXt in one process. A network with batch norms cannot use
    it: DistributedDataParallel keeps running statistics equal and SAM's second pass leaves them as they are; a recorded
    step can do neither.
    """
    wanted, gpu = args.fast_gpu, device.type == "cuda"
    if wanted is None:
        known = any(isinstance(module, FoldedBlock) for module in model.modules())
        wanted = gpu and known and distributed.world_size() == 1 and not args.deterministic
    if not wanted:
        return False, None
    if any(hasattr(module, "running_mean") for module in model.modules()):
        return False, "the network has batch norms"
    reason = triton_fails(device) if gpu else None
    works = distributed.mean_over_ranks([float(reason is None)])[0] == 1
    return works, None if works else reason or "Triton does not work in another process"


def prepare_training(args, model, train_set, device, state, lists):
    """The `Training` that `args` describe, restored from the checkpoint `state` if a run is resumed."""
    positions = train_set.positions if args.coordinate_mining else None
    if args.coordinate_mining and positions is None:
        raise UserError(
            f"--coordinate-mining requires the positions of the places, which {train_set.root} lacks (CVUSA: "
            "split_locations/all.csv); omit it"
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
    # state_dict lists a shared encoder twice, so it would be averaged twice; the list of parameters does not.
    ema = ModelEmaV3(model, args.ema, use_warmup=True, exclude_buffers=args.share) if args.ema else None
    if ema and args.compile:
        ema.module.optimize(compiled=True)
    training = Training(model, sampler, criterion, build_optimizer(args, model, criterion), ema, lists=lists)
    training.epoch = args.start_epoch or 0
    if args.resume:
        restore(training, state, args)
    return training


def restore(training, state, args):
    """Continue from a checkpoint.

    Raises:
        UserError: the checkpoint is incomplete, or belongs to another training.
    """
    if not state.keys() >= WHOLE:
        raise UserError(
            f"--resume {args.resume} holds weights only (a best model, or a released file); to start a training from "
            f"them pass --weights {args.resume}"
        )
    own, groups = training.optimizer.state_dict()["param_groups"], []
    if isinstance(state["optimizer"], dict) and isinstance(state["optimizer"].get("param_groups"), list):
        groups = [len(group.get("params", ())) for group in state["optimizer"]["param_groups"]]
    whole = {
        "epoch": isinstance(state["epoch"], int) and state["epoch"] >= 0,
        "best_acc1": isinstance(state["best_acc1"], int | float) and math.isfinite(state["best_acc1"]),
        "optimizer": groups == [len(group["params"]) for group in own],
        "sampler": isinstance(state["sampler"], dict) and training.sampler.fits(state["sampler"]),
    }
    if damaged := [name for name, good in whole.items() if not good]:
        raise UserError(
            f"--resume {args.resume} is not a complete checkpoint: its {damaged[0]} is damaged; pass another one"
        )
    stored = state.get("lists") or {}
    if not stored:
        training.notes.append("the checkpoint does not store which lists it was trained on; they are not compared")
    before, now = stored_args(state).get("effective_tuple"), tuple_pairs(training)
    if before not in (None, now):
        training.notes.append(f"a loss compares {now} pairs, before it was {before}: the number of processes differs")
    for split in stored.keys() & training.lists.keys():
        if stored[split] != training.lists[split]:
            raise UserError(
                f"--resume {args.resume} was trained with another list of split {split}: {stored[split]}, here "
                f"{training.lists[split]}; resume with the data it was trained on"
            )
    training.optimizer.load_state_dict(state["optimizer"])
    training.sampler.load_state_dict(state["sampler"])
    training.criterion.load_state_dict(state.get("criterion", {}))
    if "online" in state:  # state_dict is the average of these
        training.model.load_state_dict(state["online"])
        training.ema_steps = state.get("average_steps", 0)
    training.best = float(state["best_acc1"])
    if args.start_epoch is None:
        training.epoch, training.line, training.inside = state["epoch"], state.get("line"), state.get("inside")


def nothing_to_train(training, args, files):
    """Whether all epochs are done and recorded. Every process calls it, before any file is written."""
    lacking = training.line is not None and files.lacks_epoch(training.epoch)
    training.unrecorded = distributed.broadcast_object(lacking)
    return training.epoch >= args.epochs and not training.unrecorded


def train(datasets, training, args, device, files):
    """Train for the epochs that remain. Returns the metrics of the last evaluation on rank 0."""
    train_set, sampler = datasets[0], training.sampler
    log_training(args, sampler, train_set, tuple_pairs(training))
    if args.resume:
        step = f", step {training.inside['step']} of the next" if training.inside else ""
        log.info("resumed %s after epoch %d%s, best R@1 %.2f", args.resume, training.epoch, step, training.best)
        for sentence in training.notes if distributed.is_main() else ():
            log.warning(sentence)
    if distributed.is_main():
        files.start_training(run_record(args, training), training.epoch)
    network, gradients = prepare_steps(training, args, device)
    told = set()
    feed, stopping = Feed([train_set, *evaluated_views(*datasets[1:], args)], args, device), Stopping()
    with closing(feed), stopping.heeding():
        if not args.resume:
            read, total = feed.try_out(args.eval_batch_size, EARLY_LOOK)
            if read < total:
                log.info(
                    "read %d of this process's %d evaluation images in %d s without an error; "
                    "scripts/check_data.py --deep reads all",
                    read, total, EARLY_LOOK,
                )  # fmt: skip
        metrics = finish_epoch(datasets, training, args, device, files, feed) if training.unrecorded else None
        for epoch in range(training.epoch, args.epochs):
            train_set.set_epoch(epoch)
            lr = set_learning_rate(training.optimizer, args, epoch)
            if training.inside:
                sampler.continue_plan(training.inside["plan"], training.inside["counts"])
            else:
                plan_epoch(sampler, epoch)
            line = {"epoch": epoch + 1, "lr": lr}
            line |= train_one_epoch(network, gradients, feed, training, args, device, epoch, stopping, files)
            line |= tell_bad_images(train_set, told)
            if args.learn_temperature:
                line["alpha"] = training.criterion.loss.alpha.item()
            training.epoch, training.line = epoch + 1, line
            if distributed.is_main():
                save_training(files, training, args)
            metrics = finish_epoch(datasets, training, args, device, files, feed) or metrics
            distributed.barrier()
            _, number = stopping.agreed()
            if number and training.epoch < args.epochs:
                raise StoppedError(number, f"continue with --resume {files.checkpoint}")
    return metrics


def tell_bad_images(train_set, told):
    """With --on-bad-image skip: log pairs that are not in `told`, and give metrics.jsonl the number of all."""
    if train_set.bad is None:
        return {}
    found = set().union(*distributed.gather_objects(train_set.bad.nonzero().flatten().tolist()))
    for index in sorted(found - told) if distributed.is_main() else ():
        log.warning("a pair was left out, %s or %s, which cannot be read", *train_set.files_of(index))
    told |= found
    return {"bad_pairs": len(found)}


def prepare_steps(training, args, device):
    """The network that processes share, and how `train_step` computes gradients: None, or as a CUDA graph."""
    model, criterion, gradients = training.model, training.criterion, None
    network = model
    if distributed.world_size() > 1 and args.fast_gpu:
        distributed.share(model.state_dict().values())
    elif distributed.world_size() > 1:
        network = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if device.type == "cuda":
        reasons = {
            "no --fast-gpu": not args.fast_gpu,
            "--grad-checkpointing": args.grad_checkpointing,
            "the loss gathers pairs": criterion.gather,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is None:
            compute = partial(compute_gradients, network, criterion, precision(args, device))
            gradients = Recorded(compute, [*model.parameters(), *criterion.parameters()])
        log.info("steps run %s", f"kernel by kernel ({reason})" if reason else "as a CUDA graph")
    return network, gradients


def train_one_epoch(network, gradients, feed, training, args, device, epoch, stopping, files):
    """One pass over the planned batches. Returns loss, similarities and speed, averaged over processes.

    Raises:
        StoppedError: after a signal, once the step is done and the checkpoint written.
    """
    sampler, train_set = training.sampler, feed.datasets[0]
    network.train()
    progress = EpochProgress.start(training.inside, device)
    training.inside, started, last = None, time.perf_counter(), time.perf_counter()
    lr, steps, first = training.optimizer.param_groups[0]["lr"], len(sampler), progress.step
    batches = feed.batches(train_set, list(sampler)[first:])  # draws a random number of its own, before these are set
    progress.set_random(args.seed, epoch)
    saved, told, shown = started, False, first
    for ground, aerial, index in progress_bar(batches, f"epoch {epoch + 1}", total=steps - first):
        ground, aerial = train_set.to_device(ground, device), train_set.to_device(aerial, device)
        autocast = precision(args, device)
        patient = (True,) * bool(args.nan_patience)
        values, q, k = train_step(
            network, training.criterion, training.optimizer, ground, aerial, autocast, gradients, *patient
        )
        if patient and not values.isfinite().all():
            progress.leave_out()
            sentence = not_finite(train_set, epoch, progress.step, index)
            if progress.bad > args.nan_patience:
                raise UserError(f"{sentence}; so it was {progress.bad} times in a row (--nan-patience)")
            log.warning("%s; the step is left out", sentence)
        else:
            sampler.update(index, q, k)
            if training.ema:
                training.ema_steps += 1
                training.ema.update(training.model, training.ema_steps)
            progress.add(values, index)
        step = progress.step
        due = bool(args.checkpoint_steps) and step % args.checkpoint_steps == 0
        if distributed.is_main() and args.checkpoint_minutes:
            due = due or time.perf_counter() - saved > 60 * args.checkpoint_minutes
        save, number = stopping.agreed(due)
        # Looking at the values waits for the device, which is not done in every step.
        if (save or step % args.print_freq == 0 or step == steps) and (bad := progress.first_bad()):
            last = f"the last checkpoint is {files.checkpoint}, " if files.checkpoint.exists() else ""
            raise UserError(
                f"{not_finite(train_set, epoch, *bad)}; {last}start again with --lr below {args.lr:g}, with earlier "
                "weights (--weights PATH), or with --nan-patience"
            )
        if step % args.print_freq == 0 or step == steps:
            loss, positive, negative = progress.logged()
            if negative > COLLAPSED and not told:
                log.warning(
                    "descriptors are collapsing: those of different places have a cosine similarity of %.3f; a lower "
                    "--lr or a larger batch may help",
                    negative,
                )  # fmt: skip
                told = True
            speed = 2 * sampler.batch_size * (step - shown) / (time.perf_counter() - last)
            log.info(
                "epoch %d step %d/%d: loss %.4f, positive %.3f, negative %.3f, lr %.3g, %.1f images/s",
                epoch + 1, step, steps, loss, positive, negative, lr, speed,
            )  # fmt: skip
            last, shown = time.perf_counter(), step
        if save and step < steps:  # else the epoch's end is saved next
            inside = progress.state(sampler, time.perf_counter() - started)
            if distributed.is_main():
                save_training(files, training, args, inside)
            distributed.barrier()
            saved = time.perf_counter()
            if number:
                raise StoppedError(number, f"continue with --resume {files.checkpoint}")
    taken = max(1, steps - progress.left_out)
    loss, positive, negative = distributed.mean_over_ranks((progress.totals / taken).tolist())
    seconds = progress.seconds + time.perf_counter() - started
    return {
        "loss": loss,
        "positive_similarity": positive,
        "negative_similarity": negative,
        "images_per_second": 2 * sampler.batch_size * steps / seconds,
        "seconds": seconds,
    }


def not_finite(train_set, epoch, step, indices):
    """A sentence on a step whose loss or gradient is not finite; the log gets all files of its batch."""
    batch = [path for index in indices.tolist() for path in train_set.files_of(index)]
    log.warning("the batch of epoch %d, step %d: %s", epoch + 1, step, ", ".join(batch))
    return (
        f"the loss or its gradient is not finite in epoch {epoch + 1}, step {step} (a batch of {len(indices)} pairs, "
        f"{batch[0]} and others, listed in log.txt)"
    )


def train_step(network, criterion, optimizer, ground, aerial, autocast, gradients=None, patient=False):
    """Take one step of a plain optimiser or of SAM.

    Args:
        network: (ground, aerial) -> (q, k) descriptors.  criterion: a `TupleLoss`.
        optimizer: one of PyTorch's, or `SAM`, which needs loss and gradient at w and again at w + e.
        ground, aerial: (B, 3, H, W) float.  autocast: a context for the network.
        gradients: what to call in place of `compute_gradients`: the same, `Recorded`.
        patient: wait for the device, and take no step if loss or gradient are not finite.

    Returns:
        (3,) float64 loss, positive and negative similarity, NaN if a gradient is not finite, and the descriptors
        (B, dim) that they come from, all at the weights before the step.
    """
    gradients = gradients or partial(compute_gradients, network, criterion, autocast)
    averaged = (criterion,) if isinstance(network, DistributedDataParallel) else (criterion, network)

    values, q, k = gradients(ground, aerial)
    distributed.average_gradients(*averaged)
    values = values + zero_if_finite(network)
    if isinstance(optimizer, SAM):
        optimizer.first_step(zero_grad=True)
        with frozen_statistics(network):
            gradients(ground, aerial)
        distributed.average_gradients(*averaged)
        values = values + zero_if_finite(network)
        if patient and not values.isfinite().all():
            optimizer.step_back()
        else:
            optimizer.second_step()
    elif not (patient and not values.isfinite().all()):
        optimizer.step()
    optimizer.zero_grad()
    return values, q, k


def zero_if_finite(network):
    """0.0, or NaN if a gradient is not finite, as a tensor: the first layers' gradients come from all others'."""
    model = getattr(network, "module", network)
    nets = (model.query_net, model.reference_net) if isinstance(model, FRGeo) else (model,)
    first = [next((p.grad for p in net.parameters() if p.grad is not None), None) for net in nets]
    return 0.0 * sum(gradient.double().sum() for gradient in first if gradient is not None)


def compute_gradients(network, criterion, autocast, ground, aerial):
    """A forward and a backward pass of `train_step`. Returns what it returns; the gradients lie with the parameters."""
    with autocast:
        q, k = network(ground, aerial)
    loss, positive, negative = criterion(q, k)
    loss.backward()
    return torch.stack([loss, positive, negative]).detach().double(), q.detach(), k.detach()


def finish_epoch(datasets, training, args, device, files, feed):
    """After the epoch was saved: evaluate it if that is due, keep the best weights, add a line to metrics.jsonl."""
    metrics, line, epoch = None, dict(training.line), training.epoch
    if epoch % args.eval_every == 0 or epoch == args.epochs:
        metrics = evaluate_and_record(training.evaluated, datasets, args, device, files, files.checkpoint, epoch, feed)
    if not distributed.is_main():
        return None
    if metrics:
        line |= metrics
        collapsed = metrics.pop("collapsed", False)
        if not collapsed and (metrics["R@1"] > training.best or not files.best.exists()):  # resumed in another folder
            training.best = metrics["R@1"]
            save_checkpoint(
                files.best,
                epoch=epoch,
                state_dict=training.evaluated.state_dict(),
                best_acc1=training.best,
                args=run_record(args, training),
            )
            save_training(files, training, args)  # again, with its best R@1
    files.add_epoch(line)
    return metrics


def evaluate_and_record(model, datasets, args, device, files, weights, epoch, feed=None):
    """Evaluate on all processes; rank 0 writes metrics.json, with -e also the descriptors, and gets the metrics.

    Collapsed descriptors (all equal) score 0 in training, where they may recover; with -e they are refused.
    """
    started, descriptors = time.perf_counter(), None
    try:
        metrics, descriptors = evaluate(model, *datasets[1:], args, device, feed)
    except CollapsedError as error:
        if args.evaluate:
            raise
        log.warning("epoch %d scores 0: %s", epoch, error)
        metrics = dict.fromkeys(("R@1", "R@5", "R@10", "R@1%"), 0.0) | {"collapsed": True}
    if not distributed.is_main():
        return None
    record(metrics, datasets, args, files, weights, epoch, started, descriptors if args.evaluate else None)
    return metrics


def save_training(files, training, args, inside=None):
    """Write the whole state, from which --resume continues as if never stopped; `inside` an epoch, if given.

    The checkpoint before stays, for the case that this one is damaged later.
    """
    average = {"online": training.model.state_dict(), "average_steps": training.ema_steps} if training.ema else {}
    save_checkpoint(
        files.checkpoint,
        files.before,
        epoch=training.epoch,
        state_dict=training.evaluated.state_dict(),
        best_acc1=training.best,
        optimizer=training.optimizer.state_dict(),
        sampler=training.sampler.state_dict(),
        criterion=training.criterion.state_dict(),
        args=run_record(args, training),
        line=training.line,
        lists=training.lists,
        **({"inside": inside} if inside else {}),
        **average,
    )


def run_record(args, training):
    """The options, how many pairs a loss compares with them, and threads, for args.json and checkpoints."""
    return recorded(args) | {"effective_tuple": tuple_pairs(training), "threads": torch.get_num_threads()}


def tuple_pairs(training):
    """Pairs that one loss compares."""
    sampler, criterion = training.sampler, training.criterion
    return criterion.tuple_size or sampler.share * (distributed.world_size() if criterion.gather else 1)


def plan_epoch(sampler, epoch):
    """Lay out the epoch's batches and log what mining found."""
    started = time.perf_counter()
    sampler.plan(epoch)
    counts = sampler.counts
    if counts["mined"] or counts["random"]:
        log.info(
            "epoch %d: mined %d hard negatives; %d anchors got a random partner (%.1f s)",
            epoch + 1, counts["mined"], counts["random"], time.perf_counter() - started,
        )  # fmt: skip
    if counts["short"]:
        log.warning("epoch %d: %d batches omitted: too few places without a common tile", epoch + 1, counts["short"])


if __name__ == "__main__":
    main()
