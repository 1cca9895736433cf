"""Where queries and gallery items lie: distances in metres, and which items lie near a query."""

from typing import NamedTuple

import numpy as np

EARTH_RADIUS = 6_371_008.8  # metres, mean radius (IUGG)
KINDS = ("degrees", "metres")
WITHIN = (25, 50, 100)  # metres
BLOCK = 1024  # queries whose neighbours are listed at once


class Positions(NamedTuple):
    """Positions of a split's N queries and M gallery items.

    query: (N, 2) float64.  gallery: (M, 2) float64.
    kind: "degrees" (latitude, longitude) or "metres" (easting, northing of one map).
    """

    query: np.ndarray
    gallery: np.ndarray
    kind: str

    def errors(self, nearest):
        """(N,) metres between each query and gallery item `nearest` (N,)."""
        return distances(self.query, self.gallery[nearest], self.kind)


def distances(a, b, kind):
    """(n,) metres between the rows of two (n, 2) arrays, on the sphere ("degrees") or on a map ("metres").

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "metres":
        return np.hypot(*(a - b).T)
    return haversine(a, b)


def nearest_places(places, kind, count):
    """(n, min(count, n - 1)) int64: for each of (n, 2) places the others that lie nearest, nearest first."""
    from scipy.spatial import cKDTree

    if kind == "degrees":  # on the unit sphere, where a chord grows with the distance
        lat, lng = np.radians(places).T
        places = np.stack([np.cos(lat) * np.cos(lng), np.cos(lat) * np.sin(lng), np.sin(lat)], axis=1)
    count = min(count + 1, len(places))
    found = cKDTree(places).query(places, k=count)[1].reshape(len(places), count)
    own = found == np.arange(len(places))[:, None]
    own[~own.any(axis=1), -1] = True  # places in one spot may crowd out the place itself
    return found[~own].reshape(len(places), count - 1)


def haversine(a, b):
    """(n,) metres along great circles between two (n, 2) arrays of latitude and longitude in degrees."""
    (lat_a, lng_a), (lat_b, lng_b) = np.radians(a).T, np.radians(b).T
    half = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lng_b - lng_a) / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(half, 0, 1)))


def describe_errors(errors):
    """Median and mean in metres, and the share within 25, 50 and 100 m in percent, of (N,) metres."""
    measures = {"median error (m)": float(np.median(errors)), "mean error (m)": float(np.mean(errors))}
    return measures | {f"within {metres} m": 100.0 * float(np.mean(errors <= metres)) for metres in WITHIN}


def neighbours(positions, radius, start, stop):
    """Gallery items within `radius` metres of queries start .. stop, block by block, for positions on a map.

    Yields:
        (i, j): (P,) int64 each, query rows counted from `start`, gallery rows.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(positions.gallery)
    for first in range(start, stop, BLOCK):
        found = tree.query_ball_point(positions.query[first : min(first + BLOCK, stop)], radius)
        rows = np.repeat(np.arange(first - start, first - start + len(found)), [len(items) for items in found])
        yield rows, np.concatenate([np.asarray(items, dtype=np.int64) for items in found])
