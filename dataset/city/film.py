"""What is new in every exposure: light, season, camera and grain, and the cars and people that happen to be there.

The two views of a place were never taken at the same moment, so each draws all of it anew.
"""

from dataclasses import dataclass

import numpy as np

from .blocks import CAR, PERSON, Building
from .style import CARS, DRYING, SPECIES, SURFACES


@dataclass(frozen=True)
class Exposure:
    """How one image was taken; angles in radians, compass azimuth (clockwise from north)."""

    sun_azimuth: float
    sun_altitude: float
    direct: float  # share of the light that comes from the sun
    season: float  # 0 lush .. 1 dry
    gain: np.ndarray  # (3,) exposure times white balance
    gamma: float
    saturation: float
    haze: float  # share of haze over the whole aerial image, density on the ground
    noise: float

    @property
    def sun(self):
        """Unit vector (east, north, up) towards the sun."""
        c, azimuth = np.cos(self.sun_altitude), self.sun_azimuth
        return np.array([c * np.sin(azimuth), c * np.cos(azimuth), np.sin(self.sun_altitude)], np.float32)

    def albedo(self):
        """Colour (surfaces, 3) of the surfaces in this season."""
        lush = np.array(list(SURFACES.values()), np.float32) / 255
        dry = lush.mean(1, keepdims=True) * np.array([1.3, 1.08, 0.68], np.float32)
        share = (self.season * 0.75 * np.array([DRYING.get(name, 0) for name in SURFACES], np.float32))[:, None]
        return ((1 - share) * lush + share * dry).astype(np.float32)

    def crown_colours(self, trees):
        """Colour (trees, 3) of crowns in this season."""
        leaf, autumn = (np.array([s[k] for s in SPECIES], np.float32) / 255 for k in (0, 1))
        species = trees[:, 4].astype(int)
        colour = (1 - self.season) * leaf[species] + self.season * autumn[species]
        return np.clip(colour * (1 + trees[:, 5:6]), 0, 1)


def draw_exposure(rng, view, from_north=False):
    """Draw the circumstances of one image.

    Args:
        view: "ground" or "aerial": aerial flights choose clearer days.
        from_north: the sun stands in the north at noon (southern hemisphere).
    """
    aerial = view == "aerial"
    azimuth = rng.uniform(np.pi * 0.55, np.pi * 1.45) + (np.pi if from_north else 0.0)
    altitude = np.deg2rad(rng.uniform(28, 68))
    direct = rng.uniform(0.35, 0.65) if aerial else rng.uniform(0.1, 0.6)
    season = float(np.clip(rng.beta(1.3, 1.6), 0, 1))
    balance, warmth = np.exp(rng.normal(0, 0.055, 3)), rng.normal(0, 0.06)
    gain = rng.uniform(0.75, 1.3) * balance * np.array([1 + warmth, 1, 1 - warmth])
    gamma, saturation = rng.uniform(0.8, 1.2), rng.uniform(0.65, 1.25)
    haze = rng.uniform(0, 0.16) if aerial else rng.uniform(0.0008, 0.005)
    light = float(azimuth % (2 * np.pi)), float(altitude), direct, season
    return Exposure(*light, gain.astype(np.float32), gamma, saturation, haze, noise=rng.uniform(0.008, 0.03))


_GRAIN = np.random.default_rng(11).standard_normal(1 << 20).astype(np.float32)


def develop(linear, exposure, rng):
    """Turn light (H, W, 3) into an 8-bit image: gain, saturation, gamma, grain. The array is overwritten."""
    linear *= exposure.gain
    grey = ((linear[..., 0] + linear[..., 1] + linear[..., 2]) / 3)[..., None]
    linear -= grey
    linear *= exposure.saturation
    linear += grey
    np.clip(linear, 0.001, None, out=linear)
    # A shoulder keeps bright walls from clipping; a table of 4,096 levels is faster than a power per pixel.
    levels = np.minimum(linear * (4095 / 2.0), 4095).astype(np.uint16)
    x = np.linspace(0, 2, 4096)
    x = np.where(x < 0.7, x, 0.7 + 0.3 * np.tanh((x - 0.7) / 0.3 * 0.8))
    out = (x**exposure.gamma).astype(np.float32)[levels]
    line, start, half = out.reshape(-1), int(rng.integers(_GRAIN.size // 2)), _GRAIN.size // 2
    for k in range(0, line.size, half):
        part = line[k : k + half]
        part += exposure.noise * _GRAIN[start : start + part.size]
    out *= 255
    return np.clip(out, 0, 255, out=out).astype(np.uint8)


def fractal_noise(size, octaves, seed):
    """Tileable noise (size, size) in [0, 1], smooth at its coarsest octave."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size, size))
    for octave in octaves:
        lattice = rng.random((octave, octave))
        at = np.arange(size) * octave / size
        i, f = at.astype(int), at % 1
        f = f * f * (3 - 2 * f)
        rows = lattice[i] * (1 - f)[:, None] + lattice[(i + 1) % octave] * f[:, None]
        out += (rows[:, i] * (1 - f) + rows[:, (i + 1) % octave] * f) / np.sqrt(octave)
    out -= out.min()
    return (out / out.max()).astype(np.float32)


TEXTURE = fractal_noise(512, (4, 8, 16, 32, 64, 128, 256), 3)  # of the ground, by world position
CLOUDS = fractal_noise(512, (3, 6, 12, 24, 48, 96), 5)


def cast_shadows(top, cell, sun, reach, receiver=None):
    """Where the sun is hidden, bool (H, W).

    Args:
        top: heights in metres (H, W), rows from north to south.
        cell: metres; sun: unit vector (east, north, up); reach: longest shadow in metres.
        receiver: heights the light falls on (default: `top` itself).
    """
    flat = max(float(np.hypot(sun[0], sun[1])), 1e-3)
    east, north, fall = sun[0] / flat, sun[1] / flat, sun[2] / flat
    ceiling = top.copy()  # height of the shadow's upper side, doubled in reach each turn
    n = 1
    while n * cell <= reach:
        dc, dr = round(n * east), round(-n * north)
        drop = np.float32(n * cell * fall)
        h, w = top.shape
        a = np.s_[max(-dr, 0) : h - max(dr, 0), max(-dc, 0) : w - max(dc, 0)]
        b = np.s_[max(dr, 0) : h - max(-dr, 0), max(dc, 0) : w - max(-dc, 0)]
        lifted = ceiling[b] - drop
        ceiling[a] = np.maximum(ceiling[a], lifted)
        n *= 2
    return ceiling > (top if receiver is None else receiver) + np.float32(0.15)


def draw_traffic(raster, x, y, reach, rng, keep_clear=6.0):
    """Cars on slots and lanes and people on sidewalks within `reach` metres of (x, y): a list of buildings."""
    found = []

    def add_car(px, py, angle):
        colour = tuple(np.array(CARS[rng.integers(len(CARS))], np.float32) / 255 * rng.uniform(0.85, 1.1))
        size = rng.uniform(1.9, 2.4), rng.uniform(0.85, 1.0)
        found.append(Building(px, py, *size, angle, 1.5, 1.5, colour, colour, CAR))

    def near(px, py):
        dx, dy = px - x, py - y
        return abs(dx) < reach and abs(dy) < reach and np.hypot(dx, dy) > keep_clear

    for px, py, angle in raster.slots[(np.abs(raster.slots[:, :2] - (x, y)) < reach).all(1)]:
        if rng.random() < 0.45 and near(px, py):
            add_car(px, py, angle + rng.normal(0, 0.04))
    for line, half in raster.lanes:
        if (np.abs(line[len(line) // 2] - (x, y)) > reach + 60).any():
            continue
        for _ in range(rng.poisson(0.5 + 0.12 * half)):
            px, py, angle = _beside(line, rng.uniform(0.15, 0.85), (half * 0.5) * (2 * rng.integers(2) - 1))
            if near(px, py):
                add_car(px, py, angle)
        for _ in range(rng.poisson(0.7)):
            px, py, angle = _beside(line, rng.uniform(0.1, 0.9), (half + 1.2) * (2 * rng.integers(2) - 1))
            if near(px, py):
                shirt = tuple(rng.uniform(0.1, 0.85, 3))
                found.append(Building(px, py, 0.3, 0.3, angle, 1.7, 1.7, shirt, shirt, PERSON))
    return found


def _beside(line, t, offset):
    """Position and heading at the share t of a polyline, `offset` metres to its left."""
    at = t * (len(line) - 1)
    k = min(int(at), len(line) - 2)
    step = line[k + 1] - line[k]
    d = step / max(np.hypot(*step), 1e-6)
    p = line[k] + (at - k) * step + offset * np.array([-d[1], d[0]])
    return p[0], p[1], float(np.arctan2(d[1], d[0]))
