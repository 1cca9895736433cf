"""From parsed options to the three datasets of a run."""

from dataset.cvact import CVACT
from dataset.cvusa import CVUSA
from dataset.pairs import Pairs
from dataset.vigor import VIGOR

LAYOUTS = {"cvusa": CVUSA, "cvact": CVACT, "vigor": VIGOR, "pairs": Pairs}


def build_datasets(args, pixels=False):
    """Training pairs, queries and gallery of the run that `args` describes.

    Args:
        args: parsed options: dataset, data_root, cross, vigor_labels, ground_size, aerial_size, fov, augment, seed,
            evaluate, and, if they exist, eval_split, vigor_cities, orientation, cache, fast_decode, colour_jitter and
            patch_dropout.
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
    if layout is VIGOR:
        area = getattr(args, "vigor_cities", None)
        kwargs |= {"cross": args.cross, "labels": args.vigor_labels, "area": area}
    split = getattr(args, "eval_split", None) or layout.splits[1]
    query = layout(args.data_root, split, view="ground", **kwargs)
    reference = query.as_view("aerial")
    if args.evaluate:
        return None, query, reference
    kwargs |= {name: getattr(args, name, 0) for name in ("augment", "colour_jitter", "patch_dropout")}
    train = layout(args.data_root, "train", view="pair", **kwargs)
    return train, query, reference
