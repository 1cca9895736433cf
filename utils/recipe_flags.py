"""The flags of train.py that say how a network learns: the paper's recipe, and what goes beyond it."""

from utils.arguments import natural, positive, share

OPTIMISERS = ("sgd", "adam", "adamw", "sam")


def add_loss(group):
    """Flags of the loss."""
    group.add_argument(
        "--loss",
        default="wbl",
        choices=("wbl", "soft-triplet"),
        help="weighted (B+1)-tuple loss, or TransGeo's soft-margin triplet (default: wbl)",
    )
    group.add_argument("--alpha", type=float, metavar="A", help="scale of similarities (default: 10; soft-triplet 20)")
    group.add_argument(
        "--tuple-size",
        type=positive,
        metavar="B",
        help="pairs that one loss sees (default: those of one process; published: 16 on CVUSA and CVACT, 8 on VIGOR)",
    )
    group.add_argument("--gather", action="store_true", help="take the loss over the pairs of all processes")


def add_optimiser(group):
    """Flags of optimiser and learning rate."""
    group.add_argument("--op", default="adam", choices=OPTIMISERS, help="sam is AdamW inside SAM (default: adam)")
    group.add_argument("--asam", action="store_true", help="with --op sam: adaptive SAM, as published")
    group.add_argument("--rho", default=0.05, type=float, help="radius of SAM (default: 0.05; published: 2.5)")
    group.add_argument("--lr", "--learning-rate", default=0.03, type=float, help="learning rate (default: 0.03)")
    group.add_argument("--momentum", default=0.9, type=float, help="of --op sgd (default: 0.9)")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        default=1e-4,
        type=float,
        help="weight decay (default: 1e-4)",
    )
    group.add_argument("--cos", action="store_true", help="cosine learning rate, epoch by epoch, down to 0")
    group.add_argument(
        "--schedule",
        default=[120, 160],
        nargs="*",
        type=natural,
        metavar="EPOCH",
        help="without --cos: epochs from which the learning rate is a tenth of what it was (default: 120 160)",
    )


def add_beyond(group):
    """Flags of what the paper does not have."""
    group.add_argument(
        "--augment",
        action="store_true",
        help="turn (by quarters) and mirror both views of a training pair together: they stay aligned",
    )
    group.add_argument(
        "--colour-jitter",
        default=0.0,
        type=share,
        metavar="S",
        help="change brightness, contrast and saturation of each training image by up to this share (default: 0)",
    )
    group.add_argument(
        "--patch-dropout",
        default=0.0,
        type=share,
        metavar="P",
        help="blank each square patch of a training image, an eighth of its height a side, with probability P "
        "(default: 0)",
    )
    group.add_argument(
        "--label-smoothing",
        default=0.0,
        type=share,
        metavar="E",
        help="smooth WBL's targets by this share, spread evenly over the tuple (default: 0)",
    )
    group.add_argument(
        "--learn-temperature", action="store_true", help="learn WBL's alpha, starting from --alpha, at most 100"
    )
    group.add_argument(
        "--coordinate-mining",
        default=0,
        type=natural,
        metavar="N",
        help="in the first N epochs, take hard partners from the 100 places nearest on the map, also without --mining, "
        "where the data tell positions: VIGOR, CVACT, CVUSA with all.csv (default: 0)",
    )
    group.add_argument(
        "--ema",
        default=0.0,
        type=share,
        metavar="D",
        help="evaluate and keep a moving average of the weights instead of the weights; D is its decay, e.g. 0.999 "
        "(default: 0, none)",
    )
