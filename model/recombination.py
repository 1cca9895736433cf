"""Feature Recombination Module (FRM): the four compass quadrants of both views in one order.

Panoramas are north-aligned: left to right they show south, west, north, east, south. Aerial images have
north up and the camera at the centre. Region by region:

    1  south to west   ground columns 0 .. W/4        aerial bottom left
    2  west to north   ground columns W/4 .. W/2      aerial top left
    3  north to east   ground columns W/2 .. 3W/4     aerial top right
    4  east to south   ground columns 3W/4 .. W       aerial bottom right
"""

import torch
from torch import nn

VIEWS = ("ground", "aerial")


class FeatureRecombination(nn.Module):
    """Average a feature map over its four compass quadrants (the paper's FRM; no parameters).

    Args:
        view: "ground" (four column strips) or "aerial" (four quadrants). It is told, never guessed.

    Shapes: (B, C, H, W) -> (B, 4, C), regions in the order of this module's table. Cuts stand at integer
    quotients; the last strip or quadrant takes the remainder.

    Raises:
        ValueError: unknown view, or a map too small for four regions (ground: W < 4; aerial: H or W < 2).
    """

    regions = 4

    def __init__(self, view):
        super().__init__()
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; expected one of {', '.join(VIEWS)}")
        self.view = view

    def forward(self, feature_map):
        height, width = feature_map.shape[-2:]
        if self.view == "ground":
            if width < 4:
                raise ValueError(
                    f"a ground feature map of {height} x {width} has fewer than the 4 columns that four compass "
                    "strips need; use a wider ground image"
                )
            cuts = [i * (width // 4) for i in range(4)] + [width]
            parts = [feature_map[..., cuts[i] : cuts[i + 1]] for i in range(4)]
        else:
            if height < 2 or width < 2:
                raise ValueError(
                    f"an aerial feature map of {height} x {width} cannot be cut into four quadrants; "
                    "use a larger aerial image"
                )
            top, bottom = feature_map[..., : height // 2, :], feature_map[..., height // 2 :, :]
            left, right = slice(None, width // 2), slice(width // 2, None)
            parts = [bottom[..., left], top[..., left], top[..., right], bottom[..., right]]
        return torch.stack([part.mean(dim=(-2, -1)) for part in parts], dim=1)

    def extra_repr(self):
        return f"view={self.view!r}"


class GlobalAverage(nn.Module):
    """One region, the whole map of either view: the baseline that FRM is compared with. (B, C, H, W) -> (B, 1, C)."""

    regions = 1

    def __init__(self, view):
        super().__init__()
        self.view = view

    def forward(self, feature_map):
        return feature_map.mean(dim=(-2, -1)).unsqueeze(1)
