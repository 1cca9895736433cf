"""The bubble plot of CVUSA R@1 against GFLOPs (the paper's motivation figure); scripts/complexity.py draws it."""

import matplotlib.pyplot as plt

from scripts.figures import BLUE, GREY, RED
from utils.paper import PUBLISHED_METRICS

# CVUSA R@1 and GFLOPs of others, as the paper's tables and figure give them; SAFA's R@1 is that with polar transform.
OTHERS = {
    "SAFA, polar transform": (89.84, 40.2),
    "DSM": (91.93, 39.3),
    "L2LTR": (94.05, 57.1),
    "TransGeo": (94.08, 12.3),
    "GeoDTR": (95.43, 39.9),
}
# Networks that are counted here: name, timm network, published CVUSA R@1.
COUNTED = (
    ("FRGeo", "convnext_tiny", PUBLISHED_METRICS["cvusa"]["R@1"]),
    ("FRM + WBL on DeiT-S/16", "deit_small_distilled_patch16_224", 95.52),
)
AREA = 11  # square points of a bubble per million parameters
RING = {"s": 130, "facecolors": "none", "edgecolors": "#555555", "linewidths": 1.4}


def draw_bubbles(counted):
    """A figure: bubbles with the area for the parameters where they are counted, uniform rings where unknown.

    Args:
        counted: (name, complexity, R@1 in percent) of each bubble; complexity has `macs` and `parameters`.
    """
    figure, axis = plt.subplots(figsize=(7.4, 4.6))
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for (name, complexity, recall), colour in zip(counted, (RED, BLUE), strict=True):
        gmacs, millions = complexity.macs / 1e9, complexity.parameters / 1e6
        axis.scatter(gmacs, recall, s=AREA * millions, color=colour, alpha=0.75, linewidths=0)
        text = f"{name}\n{recall:.2f} %, {gmacs:.2f} GFLOPs, {millions:.1f} M"
        axis.annotate(text, (gmacs, recall), (20, 0), color=colour, **beside)
    for name, (recall, gflops) in OTHERS.items():
        axis.scatter(gflops, recall, **RING)
        axis.annotate(f"{name}\n{recall:.2f} %, {gflops}", (gflops, recall), (11, 0), color="#333333", **beside)
    for millions in (25, 50):
        axis.scatter(
            [], [], s=AREA * millions, color=GREY, linewidths=0, label=f"counted here, {millions} M parameters"
        )
    axis.scatter([], [], **RING, label="published GFLOPs, parameters not given")
    axis.set(xlabel="GFLOPs of one pair (10$^9$ multiply-adds)", ylabel="CVUSA R@1 (%), as published")
    axis.set(xlim=(0, 72), ylim=(86.6, 98.4))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower left", fontsize=8.5, edgecolor="none", framealpha=1, labelspacing=1.9, handletextpad=1.0)
    figure.tight_layout()
    return figure
