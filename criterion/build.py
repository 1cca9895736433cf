"""From parsed options to the loss and the optimiser of a run."""

import math

import torch

from criterion.sam import SAM
from criterion.soft_triplet import SoftTripletLoss
from criterion.wbl import TupleLoss, WBLoss
from utils.options import UserError


def build_loss(args, share, world_size):
    """The loss over tuples that `args` asks for.

    Args:
        args: parsed options: loss, alpha, label_smoothing, learn_temperature, tuple_size, gather, mining,
            coordinate_mining.
        share: pairs of one process.

    Raises:
        UserError: the tuple size does not divide the pairs of a loss, leaves no negatives, or separates mined pairs.
    """
    scale = {} if args.alpha is None else {"alpha": args.alpha}
    if args.loss == "wbl":
        loss = WBLoss(**scale, label_smoothing=args.label_smoothing, learned=args.learn_temperature)
    else:
        loss = SoftTripletLoss(**scale)
    size = args.tuple_size
    # A tuple larger than a process's share needs the descriptors of the other processes.
    gather = world_size > 1 and (args.gather or (size is not None and size > share))
    visible = share * world_size if gather else share
    if size is not None and (size < 2 or visible % size):
        raise UserError(
            f"--tuple-size {size} does not divide the {visible} pairs that one loss compares (--batch-size "
            f"{share * world_size} on {world_size} process(es)); pass a divisor of at least 2"
        )
    # In a process's share every anchor is followed by its hard negative: tuples of complete shares keep them together,
    # and so do tuples of an even size if the share is even.
    parts = size is not None and size % share and (size % 2 or share % 2)
    if parts and (args.mining or args.coordinate_mining):
        even = "" if share % 2 else ", or an even one"
        raise UserError(
            f"--tuple-size {size} would separate an anchor from its hard negative; pass a divisor of {visible} that is "
            f"a multiple of the {share} pairs of a process{even}"
        )
    return TupleLoss(loss, size, gather)


def build_optimizer(args, model, criterion):
    """The optimiser that `args` asks for: op, lr, weight_decay, momentum, rho, asam.

    Parameters of the loss (a learned temperature) neither decay nor take part in SAM's climb.
    """
    params = [{"params": list(model.parameters())}]
    if own := list(criterion.parameters()):
        params.append({"params": own, "weight_decay": 0.0, **({"rho": 0.0} if args.op == "sam" else {})})
    if args.op == "sgd":
        return torch.optim.SGD(params, args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    adam_args = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": True}
    if args.op == "sam":
        return SAM(params, torch.optim.AdamW, rho=args.rho, adaptive=args.asam, **adam_args)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.op](params, **adam_args)


def set_learning_rate(optimizer, args, epoch):
    """Learning rate of an epoch: half a cosine down to 0 (`--cos`), or a tenth from each `--schedule` epoch on."""
    factor = (
        0.5 * (1 + math.cos(math.pi * epoch / args.epochs))
        if args.cos
        else 0.1 ** sum(epoch >= milestone for milestone in args.schedule)
    )
    for group in optimizer.param_groups:
        group["lr"] = args.lr * factor
    return args.lr * factor
