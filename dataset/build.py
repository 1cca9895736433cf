"""From parsed options to the three datasets of a run."""

from contextlib import suppress

from dataset.cvact import CVACT
from dataset.cvusa import CVUSA
from dataset.pairs import Pairs
from dataset.vigor import VIGOR
from utils.options import UserError

LAYOUTS = {"cvusa": CVUSA, "cvact": CVACT, "vigor": VIGOR, "pairs": Pairs}


def build_datasets(args, pixels=False):
    """Training pairs, queries and gallery of the run that `args` describes.

    Args:
        args: parsed options: dataset, data_root, cross, vigor_labels, ground_size, aerial_size, fov, augment, seed,
            evaluate, and, if they exist, eval_split, vigor_cities, orientation, cache, fast_decode, colour_jitter,
            patch_dropout and on_bad_image.
        pixels: images as uint8, which `PairDataset.to_device` normalises, instead of floats.

    Returns:
        (train, query, reference): a `PairDataset` of view "pair" (None with `args.evaluate`), one of view "ground"
        with `labels` and `semi_positives`, one of view "aerial". The last two share their lists.

    Raises:
        UserError: the data are not where `args.data_root` says, or not complete.
    """
    layout = LAYOUTS[args.dataset]
    kwargs = {
        "ground_size": args.ground_size,
        "aerial_size": args.aerial_size,
        "fov": args.fov,
        "orientation": getattr(args, "orientation", None),
        "seed": args.seed or 0,
        "pixels": pixels,
        "cache": getattr(args, "cache", None),
        "fast_decode": getattr(args, "fast_decode", False),
    }
    lists = {}
    if layout is VIGOR:
        lists = {"cross": args.cross, "labels": args.vigor_labels, "area": getattr(args, "vigor_cities", None)}
    split = getattr(args, "eval_split", None) or layout.splits[1]
    query = layout(args.data_root, split, view="ground", **lists, **kwargs)
    if args.evaluate:
        train = None
        with suppress(UserError):  # an evaluation does not need the training's lists
            query.in_training = query.shared_with(layout(args.data_root, "train", check_files=False, **lists))
    else:
        kwargs |= {name: getattr(args, name, 0) for name in ("augment", "colour_jitter", "patch_dropout")}
        kwargs["skip_bad"] = getattr(args, "on_bad_image", "stop") == "skip"
        train = layout(args.data_root, "train", view="pair", **lists, **kwargs)
        query.in_training = query.shared_with(train)
    return train, query, query.as_view("aerial")
