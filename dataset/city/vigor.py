"""VIGOR's layout: overlapping tiles on a grid, panoramas anywhere on the streets, labels in pixels."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.writing import write_text

from .places import street_places, ward_box, ward_of
from .plan import PANORAMA, City
from .style import VIGOR_STYLES
from .writing import CityError, Region, Shot, close_folder, identifier, open_folder, render_all

METRES_PER_PIXEL = 0.114  # of a tile of 640 pixels, whatever size is written
PIXELS = 640
STEP = PIXELS / 2 * METRES_PER_PIXEL  # metres between the centres of neighbouring tiles
MOST_PER_TILE = 3  # panoramas that have the same positive tile
APART = 7.0  # metres between such panoramas
DEGREE = 6371000 * np.pi / 180  # metres


@dataclass(frozen=True)
class Grid:
    """The tiles of a city: row-major from the south-west, the last row possibly shorter."""

    latitude: float
    longitude: float
    columns: int
    count: int

    def centre(self, k):
        """Centre (x, y) of tile k in metres."""
        return (k % self.columns) * STEP, (k // self.columns) * STEP

    def degrees(self, x, y):
        """Latitude and longitude of a point of the map."""
        return self.latitude + y / DEGREE, self.longitude + x / (DEGREE * np.cos(np.deg2rad(self.latitude)))

    def snap(self, x, y):
        """(x, y, latitude, longitude) of the nearest point with six decimals, as many as a panorama's name has."""
        latitude, longitude = (round(float(v), 6) for v in self.degrees(x, y))
        x = (longitude - self.longitude) * DEGREE * np.cos(np.deg2rad(self.latitude))
        return float(x), float((latitude - self.latitude) * DEGREE), latitude, longitude

    def tile_name(self, k):
        latitude, longitude = (float(v) for v in self.degrees(*self.centre(k)))
        return f"satellite_{latitude!r}_{longitude!r}.png"

    def covering(self, x, y):
        """The four tiles that cover a point, the one whose central quarter holds it first; None at the rim."""
        i, j = round(x / STEP), round(y / STEP)
        di = 1 if x >= i * STEP else -1
        dj = 1 if y >= j * STEP else -1
        found = []
        for a, b in ((i, j), (i, j + dj), (i + di, j), (i + di, j + dj)):
            if not 0 <= a < self.columns or b < 0 or b * self.columns + a >= self.count:
                return None
            found.append(b * self.columns + a)
        return found

    def delta(self, k, x, y):
        """(delta row, delta column) for tile k: the camera is at row 320 + delta row, column 320 - delta column."""
        tile_x, tile_y = self.centre(k)
        return round((tile_y - y) / METRES_PER_PIXEL), round((tile_x - x) / METRES_PER_PIXEL)


@dataclass(frozen=True)
class Panorama:
    """A camera: position in metres, file name, and its four tiles."""

    x: float
    y: float
    name: str
    tiles: tuple


def make_grid(style, tiles):
    return Grid(style.latitude, style.longitude, int(np.ceil(np.sqrt(tiles))), tiles)


def choose_panoramas(city, grid, count):
    """Spread `count` panoramas over the tiles: each tile gets one before any gets a second.

    Raises:
        CityError: the streets under the tiles have no room for so many.
    """
    rows = -(-grid.count // grid.columns)
    box = (0.0, 0.0, (grid.columns - 1) * STEP, (rows - 1) * STEP)
    waiting = defaultdict(list)  # positive tile -> panoramas, apart from each other
    for x, y in street_places(city, box, step=7.0):
        x, y, latitude, longitude = grid.snap(x, y)
        tiles = grid.covering(x, y)
        if tiles is None or len(waiting[tiles[0]]) == MOST_PER_TILE:
            continue
        if all(np.hypot(x - p.x, y - p.y) >= APART for p in waiting[tiles[0]]):
            name = identifier(city.seed, city.index, round(latitude * 1e6) % 2**31, round(longitude * 1e6) % 2**31)
            name = f"{name},{latitude:.6f},{longitude:.6f},.jpg"
            waiting[tiles[0]].append(Panorama(x, y, name, tuple(tiles)))
    room = sum(len(found) for found in waiting.values())
    if room < count:
        raise CityError(
            f"--panoramas {count} do not fit on --tiles {grid.count} in {city.style.name}: "
            f"there is room for {room}, {MOST_PER_TILE} per tile with streets; raise --tiles or lower --panoramas."
        )
    rng, chosen = city.rng(PANORAMA, 0, 0), []
    for turn in range(MOST_PER_TILE):
        round_ = [found[turn] for _, found in sorted(waiting.items()) if len(found) > turn]
        chosen += [round_[k] for k in rng.permutation(len(round_))]
    return chosen[:count]


def write_vigor(out, arguments, jobs, form):
    """Write the cities; `form` holds the image sizes, see `layouts.FORMATS`."""
    number, native, seed = arguments["cities"], arguments["native"], arguments["seed"]
    if number > len(VIGOR_STYLES):
        raise CityError(f"--cities is {number}: VIGOR has {len(VIGOR_STYLES)}.")
    out, towns = Path(out), []
    for index, style in enumerate(VIGOR_STYLES[:number]):
        city, grid = City(seed, index + 1, style), make_grid(style, arguments["tiles"])
        towns.append((city, grid, choose_panoramas(city, grid, arguments["panoramas"])))
    open_folder(out, arguments)
    render_all(out, [r for town in towns for r in _regions(*town, form, native)], jobs)
    record = {"metres_per_pixel": METRES_PER_PIXEL, "tile_pixels": PIXELS, "cameras": [], "tiles": {}}
    for city, grid, panoramas in towns:
        splits = _write_lists(out, city, grid, panoramas)
        name = city.style.name
        record["tiles"][name] = [[round(v, 3) for v in grid.centre(k)] for k in range(grid.count)]
        record["cameras"] += [
            {
                "city": name,
                "split": split,
                "ground": f"{name}/panorama/{p.name}",
                "x": round(p.x, 4),
                "y": round(p.y, 4),
            }
            | {"tiles": list(p.tiles)}
            for p, split in zip(panoramas, splits, strict=True)
        ]
    close_folder(out, arguments, record)
    return out


def _regions(city, grid, panoramas, form, native):
    shots, name, seed = defaultdict(list), city.style.name, city.seed
    side, ground = form["aerial"][native], form["ground"][native]
    for n, p in enumerate(panoramas):
        path = f"{name}/panorama/{p.name}"
        shots[ward_of(p.x, p.y)].append(
            Shot(path, "ground", p.x, p.y, ground, form["elevation"], (seed, city.index, 0, n))
        )
    for k in range(grid.count):
        path = f"{name}/satellite/{grid.tile_name(k)}"
        x, y = grid.centre(k)
        shots[ward_of(x, y)].append(
            Shot(path, "aerial", x, y, (side, side), PIXELS * METRES_PER_PIXEL, (seed, city.index, 1, k))
        )
    cell = 0.125 if native else 0.25
    return [Region(seed, city.index, city.style, ward_box(*ward), cell, tuple(s)) for ward, s in sorted(shots.items())]


def _write_lists(out, city, grid, panoramas):
    """Write the tile list and the labels; returns each panorama's same-area split.

    The `__corrected` labels are the same as the plain ones: here both are exact.
    """
    lines = []
    for p in panoramas:
        columns = [p.name]
        for k in p.tiles:
            row, column = grid.delta(k, p.x, p.y)
            columns += [grid.tile_name(k), f"{float(row)}", f"{float(column)}"]
        lines.append(" ".join(columns) + "\n")
    half = np.zeros(len(panoramas), bool)
    half[city.rng(PANORAMA, 1, 0).permutation(len(panoramas))[: (len(panoramas) + 1) // 2]] = True
    tiles = "".join(grid.tile_name(k) + "\n" for k in range(grid.count))
    files = {
        "pano_label_balanced": lines,
        "same_area_balanced_train": [line for line, train in zip(lines, half, strict=True) if train],
        "same_area_balanced_test": [line for line, train in zip(lines, half, strict=True) if not train],
    }
    for folder in ("splits", "splits__corrected"):
        place = out / folder / city.style.name
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / "satellite_list.txt", tiles)
        for stem, chosen in files.items():
            write_text(place / f"{stem}__corrected.txt", "".join(chosen))
            if folder == "splits":
                write_text(place / f"{stem}.txt", "".join(chosen))
    return ["train" if train else "test" for train in half]
