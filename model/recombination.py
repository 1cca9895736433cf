"""Feature Recombination Module (FRM): the compass quadrants of both views in one order.

Panoramas are north-aligned: left to right they show south, west, north, east, south. Aerial images have
north up and the camera at the centre. Region by region:

    1  south to west   ground columns 0 .. W/4        aerial bottom left
    2  west to north   ground columns W/4 .. W/2      aerial top left
    3  north to east   ground columns W/2 .. 3W/4     aerial top right
    4  east to south   ground columns 3W/4 .. W       aerial bottom right

The paper has these four. Others serve ablations: 1 (the whole map: one global average), 2 (the western and the eastern
half), 8 (each of the four halved; in the aerial view along its diagonal).
"""

from itertools import pairwise

import torch
from torch import nn

VIEWS = ("ground", "aerial")
REGIONS = (1, 2, 4, 8)


class FeatureRecombination(nn.Module):
    """Average a feature map over its compass quadrants (the paper's FRM; no parameters).

    Args:
        view: "ground" (column strips) or "aerial" (quadrants).
        regions: R, 4 in the paper; 1, 2 or 8 for ablations.

    Shapes: (B, C, H, W) -> (B, R, C), regions in the order of this module's table. Cuts stand at integer
    quotients; the last strip or quadrant takes the remainder.

    Raises:
        ValueError: unknown view or number of regions, or a map too small for them (ground: W < R; aerial: H or
            W < 2).
    """

    def __init__(self, view, regions=4):
        super().__init__()
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; expected one of {', '.join(VIEWS)}")
        if regions not in REGIONS:
            raise ValueError(f"regions is {regions!r}; expected one of {', '.join(map(str, REGIONS))}")
        self.view, self.regions = view, regions

    def forward(self, feature_map):
        height, width = feature_map.shape[-2:]
        if self.view == "ground":
            if width < self.regions:
                raise ValueError(
                    f"a ground feature map of {height} x {width} has fewer than the {self.regions} columns that "
                    f"{self.regions} compass strips need; use a wider ground image"
                )
            return _means(_strips(feature_map, self.regions))
        if self.regions == 1:
            return _means([feature_map])
        if height < 2 or width < 2:
            raise ValueError(
                f"an aerial feature map of {height} x {width} cannot be cut into quadrants; use a larger aerial image"
            )
        left, right = feature_map[..., : width // 2], feature_map[..., width // 2 :]
        if self.regions == 2:
            return _means([left, right])
        cut = height // 2
        quadrants = [left[..., cut:, :], left[..., :cut, :], right[..., :cut, :], right[..., cut:, :]]
        if self.regions == 4:
            return _means(quadrants)
        return torch.stack([mean for turns, part in enumerate(quadrants) for mean in _octants(part, turns)], dim=1)

    def extra_repr(self):
        return f"view={self.view!r}, regions={self.regions}"


def _means(parts):
    return torch.stack([part.mean(dim=(-2, -1)) for part in parts], dim=1)


def _strips(feature_map, count):
    width = feature_map.shape[-1]
    strips = min(count, 4)
    cuts = [i * (width // strips) for i in range(strips)] + [width]
    if count == 8:  # the paper's four, halved
        halves = [(left + right) // 2 for left, right in pairwise(cuts)]
        cuts = sorted(cuts + halves)
    return [feature_map[..., cuts[i] : cuts[i + 1]] for i in range(count)]


def _octants(quadrant, turns):
    """Means (B, C) of the two halves of an aerial quadrant, the one that comes first clockwise first.

    Cells on the diagonal, which starts at the camera, count half in both.

    Args:
        quadrant: (B, C, h, w).  turns: quarter turns clockwise from the first, south to west, to this one.
    """
    outwards = quadrant.rot90(turns, (-2, -1))  # seen as bottom left: the camera at the top right corner
    h, w = outwards.shape[-2:]
    south = torch.arange(h, device=quadrant.device)[:, None]
    west = torch.arange(w - 1, -1, -1, device=quadrant.device)[None, :]
    for weight in ((south > west) + 0.5 * (south == west), (south < west) + 0.5 * (south == west)):
        weight = (weight / weight.sum()).to(quadrant.dtype)
        yield (outwards * weight).sum(dim=(-2, -1))
