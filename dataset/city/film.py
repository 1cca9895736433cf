"""Light and camera of one exposure: sun, season, white balance, noise; drawn anew for each view."""

from dataclasses import dataclass

import numpy as np


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
        c = np.cos(self.sun_altitude)
        return np.array(
            [c * np.sin(self.sun_azimuth), c * np.cos(self.sun_azimuth), np.sin(self.sun_altitude)],
            np.float32,
        )


def draw_exposure(rng, view, from_north=False):
    """Draw the circumstances of one image.

    Args:
        view: "ground" or "aerial": aerial flights choose clearer days.
        from_north: the sun stands in the north at noon (southern hemisphere).
    """
    azimuth = rng.uniform(np.pi * 0.55, np.pi * 1.45) + (np.pi if from_north else 0.0)
    altitude = np.deg2rad(rng.uniform(28, 68))
    direct = rng.uniform(0.35, 0.65) if view == "aerial" else rng.uniform(0.1, 0.6)
    season = float(np.clip(rng.beta(1.3, 1.6), 0, 1))
    balance = np.exp(rng.normal(0, 0.055, 3))
    warmth = rng.normal(0, 0.06)
    gain = rng.uniform(0.75, 1.3) * balance * np.array([1 + warmth, 1, 1 - warmth])
    return Exposure(
        float(azimuth % (2 * np.pi)), float(altitude), float(direct), season, gain.astype(np.float32),
        float(rng.uniform(0.8, 1.2)), float(rng.uniform(0.65, 1.25)),
        float(rng.uniform(0, 0.16) if view == "aerial" else rng.uniform(0.0008, 0.005)),
        float(rng.uniform(0.008, 0.03)),
    )  # fmt: skip


_GRAIN = np.random.default_rng(11).standard_normal(1 << 20).astype(np.float32)


def develop(linear, exposure, rng):
    """Turn light (H, W, 3) into an 8-bit image: gain, saturation, gamma, grain.

    The array is used up.
    """
    linear *= exposure.gain
    grey = ((linear[..., 0] + linear[..., 1] + linear[..., 2]) / 3)[..., None]
    linear -= grey
    linear *= exposure.saturation
    linear += grey
    np.clip(linear, 0.001, None, out=linear)
    # A shoulder keeps bright walls from clipping; the table stands for one power per pixel.
    levels = np.minimum(linear * (4095 / 2.0), 4095).astype(np.uint16)
    x = np.linspace(0, 2, 4096)
    x = np.where(x < 0.7, x, 0.7 + 0.3 * np.tanh((x - 0.7) / 0.3 * 0.8))
    table = (x**exposure.gamma).astype(np.float32)
    out = table[levels]
    line, start = out.reshape(-1), int(rng.integers(_GRAIN.size // 2))
    for k in range(0, line.size, _GRAIN.size // 2):
        part = line[k : k + _GRAIN.size // 2]
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


def texture_at(x, y, per_metre=4.0):
    """Ground texture around 1.0 at world positions (arrays of the same shape)."""
    u = (x * per_metre).astype(np.int32) & 511
    v = (y * per_metre).astype(np.int32) & 511
    return 0.82 + 0.36 * TEXTURE.ravel()[(v << 9) + u]


def cast_shadows(top, cell, sun, reach, receiver=None):
    """Where the sun is hidden, bool (H, W).

    Args:
        top: heights in metres (H, W), rows from north to south.
        cell: metres; sun: unit vector (east, north, up); reach: longest shadow in metres.
        receiver: heights the light falls on, `top` itself unless given.
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
