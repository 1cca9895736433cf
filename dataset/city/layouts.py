"""The layouts of CVUSA, CVACT and VIGOR on disk, written from the city."""

import io
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.options import FULL_DISK, UserError
from utils.run_files import PARTIAL, whole_file, write_text
from utils.workers import cores

from .map import PANORAMA, City, choose_places, street_places, ward_of
from .render import Shot, render_all
from .style import CANBERRA, TOWN, VIGOR_STYLES

VERSION = 1  # raised whenever the same arguments make other bytes
UNFINISHED, FINISHED = "city.unfinished.json", "city.json"
TILE = 72.0  # metres, side of the aerial images of CVUSA and CVACT
# Sizes of the images: ground (width, height) and aerial side, small and native. Elevation: degrees at the lower and
# upper edge of the panorama.
FORMATS = {
    "cvusa": {"ground": ((512, 93), (1232, 224)), "aerial": (256, 750), "elevation": (-27.5, 38.0)},
    "cvact": {"ground": ((512, 256), (1664, 832)), "aerial": (256, 1200), "elevation": (-90.0, 90.0)},
    "vigor": {"ground": ((512, 256), (2048, 1024)), "aerial": (256, 640), "elevation": (-90.0, 90.0)},
}
GROUND, AERIAL, OFFSET = 0, 1, 2  # which generator of a camera's seed
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

# CVACT: a .mat file begins with 116 bytes of text; scipy writes the time there, and the same city is the same bytes.
MAT_HEADER = b"MATLAB 5.0 MAT-file of a procedural city".ljust(116)
EASTING, NORTHING = 693000.0, 6090000.0  # of the map's origin in Canberra, UTM zone 55 south, metres

METRES_PER_PIXEL = 0.114  # of VIGOR's tiles of 640 pixels, whatever size is written
PIXELS = 640
STEP = PIXELS / 2 * METRES_PER_PIXEL  # metres between the centres of neighbouring tiles
MOST_PER_TILE = 3  # panoramas that have the same positive tile
APART = 7.0  # metres between such panoramas
DEGREE = 6371000 * np.pi / 180  # metres


def write_city(layout, out, *, seed=0, train=2000, val=500, test=500, cities=4, panoramas=600, tiles=400, jobs=None,
               native=False, jitter_metres=0.0, jitter_degrees=0.0):  # fmt: skip
    """Write a procedural data set.

    Args:
        layout: "cvusa" (uses train, test), "cvact" (train, val, test) or "vigor" (cities; panoramas, tiles per city).
        out: folder, new, empty, or holding the same city unfinished.
        jobs: processes; None for one per core. The bytes written do not depend on it.
        native: the real sets' image sizes instead of small ones.
        jitter_metres: the camera stands up to this far from the centre of its tile (CVUSA, CVACT).
        jitter_degrees: the panorama's north is off by up to this (CVUSA, CVACT).

    Returns:
        Path of the folder.

    Raises:
        UserError: sizes that are not possible, a folder that cannot be used, or a killed process.
    """
    out, arguments = Path(out), {"version": VERSION, "layout": layout, "seed": seed, "native": native}
    if not 0 <= jitter_metres <= TILE / 4:
        raise UserError(f"--jitter-metres is {jitter_metres}; expected 0 to {TILE / 4:g}, a quarter of a tile")
    if not 0 <= jitter_degrees <= 180:
        raise UserError(f"--jitter-degrees is {jitter_degrees}; expected 0 to 180")
    if layout == "vigor":
        if jitter_metres or jitter_degrees:
            raise UserError("--jitter-metres and --jitter-degrees belong to cvusa and cvact; omit them")
        arguments |= {"cities": cities, "panoramas": panoramas, "tiles": tiles}
        shots, files, record = _plan_vigor(arguments)
    else:
        counts = {"train": train, "test": test} if layout == "cvusa" else {"train": train, "val": val, "test": test}
        arguments |= {**counts, "jitter_metres": jitter_metres, "jitter_degrees": jitter_degrees}
        shots, files, record = _plan_pairs(arguments, counts)
    try:
        _open_folder(out, arguments)
        render_all(out, shots, 0.125 if native else 0.25, jobs or cores())
        for name, content in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(out / name) as file:
                file.write(content)
        write_text(out / FINISHED, json.dumps({"arguments": arguments, **record}))  # last: now the set is complete
        (out / UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        if error.filename is None or error.errno in FULL_DISK:
            raise
        raise UserError(f"{error.filename} cannot be written ({error.strerror}); pass another --out") from error
    return out


def _open_folder(out, arguments):
    """Make the output folder, or check that what it holds is the same city."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; pass a folder that is new or empty")
    out.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in out.iterdir() if path.suffix != PARTIAL)
    for path in (out / name for name in (FINISHED, UNFINISHED) if name in names):
        try:
            found = dict(json.loads(path.read_text())["arguments"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not the record of a city; remove it or pass another --out") from None
        for key in sorted({**found, **arguments}):
            if found.get(key) != arguments.get(key):
                made, asked = found.get(key), arguments.get(key)
                raise UserError(
                    f"{out} holds a city made with {key} {made!r}, not {asked!r}; "
                    "pass the same arguments to continue it, or another --out"
                )
        return
    if names:
        raise UserError(f"{out} holds no city but {names[0]}; pass a new or empty folder as --out")
    write_text(out / UNFINISHED, json.dumps({"arguments": arguments}))


def _identifier(*key):
    """A name of 22 letters and digits, like the panoramas' in CVACT and VIGOR."""
    return "".join(LETTERS[k] for k in np.random.default_rng(key).integers(len(LETTERS), size=22))


def _plan_pairs(arguments, counts):
    """The shots to render, {path: bytes} of the lists, and the record of a city in CVUSA's or CVACT's layout."""
    layout, seed, native = (arguments[name] for name in ("layout", "seed", "native"))
    form, style = FORMATS[layout], TOWN if layout == "cvusa" else CANBERRA
    size, side = form["ground"][native], form["aerial"][native]
    places = choose_places(City(seed, 0, style), counts, TILE, arguments["jitter_metres"])
    cameras, shots = [], defaultdict(list)
    for n, (split, x, y, ward) in enumerate((split, *place) for split, chosen in places.items() for place in chosen):
        rng = np.random.default_rng((seed, 0, OFFSET, n))
        away, angle = arguments["jitter_metres"] * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        tile_x, tile_y = x + away * np.cos(angle), y + away * np.sin(angle)
        heading = arguments["jitter_degrees"] * rng.uniform(-1, 1)
        if layout == "cvusa":
            ground, aerial = f"streetview/panos/{n + 1:07d}.jpg", f"bingmap/19/{n + 1:07d}.jpg"
        else:
            folder, name = f"ANU_data_{'test' if split == 'test' else 'small'}", _identifier(seed, 0, 77, n)
            ground = f"{folder}/streetview/{name}_grdView.jpg"
            aerial = f"{folder}/satview_polish/{name}_satView_polish.jpg"
        shots[(seed, 0, style), ward] += [
            Shot(ground, "ground", x, y, size, form["elevation"], (seed, 0, GROUND, n), heading),
            Shot(aerial, "aerial", tile_x, tile_y, (side, side), TILE, (seed, 0, AERIAL, n)),
        ]
        numbers = {"x": x, "y": y, "tile_x": tile_x, "tile_y": tile_y, "heading": heading}
        rounded = {name: round(value, 3) for name, value in numbers.items()}
        cameras.append({"split": split, "ground": ground, "aerial": aerial, **rounded})
    record = {"metres_per_pixel": TILE / side, "tile_metres": TILE, "cameras": cameras}
    return shots, (_cvusa_lists if layout == "cvusa" else _cvact_list)(cameras), record


def _cvusa_lists(cameras):
    lines = {"train": "", "test": ""}
    for c in cameras:
        lines[c["split"]] += f"{c['aerial']},{c['ground']},annotations/{Path(c['ground']).stem}.png\n"
    return {f"splits/{name}-19zl.csv": lines[split].encode() for name, split in (("train", "train"), ("val", "test"))}


def _cvact_list(cameras):
    """`ACT_data.mat`: the ids, positions and 1-based indices of the splits."""
    index = {
        split: np.array([[k + 1.0] for k, c in enumerate(cameras) if c["split"] == split]).reshape(-1, 1)
        for split in ("train", "val", "test")
    }
    content = {
        "panoIds": np.array([os.path.basename(c["ground"]).removesuffix("_grdView.jpg") for c in cameras]),
        "utm": np.array([[EASTING + c["x"], NORTHING + c["y"]] for c in cameras]).reshape(-1, 2),
        "trainSet": {"trainInd": index["train"]},
        "valSet": {"valInd": index["val"]},
        "valSetAll": {"valInd": index["test"]},
    }
    from scipy.io import savemat  # takes 0.15 s to import, and only this layout needs it

    file = io.BytesIO()
    savemat(file, content)
    return {"ACT_data.mat": MAT_HEADER + file.getvalue()[len(MAT_HEADER) :]}


class Grid:
    """VIGOR's tiles of a city: row-major from the south-west, the last row possibly shorter."""

    def __init__(self, style, count):
        self.latitude, self.longitude, self.count = style.latitude, style.longitude, count
        self.columns = int(np.ceil(np.sqrt(count)))
        self._cos = np.cos(np.deg2rad(style.latitude))

    def centre(self, k):
        """Centre (x, y) of tile k in metres."""
        return (k % self.columns) * STEP, (k // self.columns) * STEP

    def degrees(self, x, y):
        """Latitude and longitude of a point of the map."""
        return float(self.latitude + y / DEGREE), float(self.longitude + x / (DEGREE * self._cos))

    def snap(self, x, y):
        """(x, y, latitude, longitude) of the nearest point with six decimals, as many as a panorama's name has."""
        latitude, longitude = (round(degrees, 6) for degrees in self.degrees(x, y))
        x, y = (longitude - self.longitude) * DEGREE * self._cos, (latitude - self.latitude) * DEGREE
        return float(x), float(y), latitude, longitude

    def tile_name(self, k):
        """File name of tile k."""
        latitude, longitude = self.degrees(*self.centre(k))
        return f"satellite_{latitude!r}_{longitude!r}.png"

    def covering(self, x, y):
        """The four tiles that cover a point, the one whose central quarter holds it first; None at the rim."""
        i, j = round(x / STEP), round(y / STEP)
        di, dj = 1 if x >= i * STEP else -1, 1 if y >= j * STEP else -1
        found = [(a, b * self.columns + a) for a, b in ((i, j), (i, j + dj), (i + di, j), (i + di, j + dj))]
        inside = all(0 <= a < self.columns and 0 <= k < self.count for a, k in found)
        return tuple(k for _, k in found) if inside else None


class Panorama(NamedTuple):
    """A camera of VIGOR: position in metres, file name, and its four tiles."""

    x: float
    y: float
    name: str
    tiles: tuple


def choose_panoramas(city, grid, count):
    """Spread `count` panoramas over the tiles: each tile gets one before any gets a second.

    Raises:
        UserError: the streets under the tiles have no room for so many.
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
            name = _identifier(city.seed, city.index, round(latitude * 1e6) % 2**31, round(longitude * 1e6) % 2**31)
            waiting[tiles[0]].append(Panorama(x, y, f"{name},{latitude:.6f},{longitude:.6f},.jpg", tiles))
    room = sum(len(found) for found in waiting.values())
    if room < count:
        raise UserError(
            f"--panoramas {count} do not fit on --tiles {grid.count} in {city.style.name}, which has room for {room} "
            f"({MOST_PER_TILE} per tile with streets); raise --tiles or lower --panoramas"
        )
    rng, chosen = city.rng(PANORAMA, 0, 0), []
    for turn in range(MOST_PER_TILE):
        ready = [found[turn] for _, found in sorted(waiting.items()) if len(found) > turn]
        chosen += [ready[k] for k in rng.permutation(len(ready))]
    return chosen[:count]


def same_area_split(city, count):
    """Draw the "train" half and the "test" half of a city's panoramas: a list of `count` names."""
    train = set(city.rng(PANORAMA, 1, 0).permutation(count)[: (count + 1) // 2].tolist())
    return ["train" if n in train else "test" for n in range(count)]


def _plan_vigor(arguments):
    """The shots to render, {path: bytes} of the lists, and the record of cities in VIGOR's layout."""
    seed, native, form, number = arguments["seed"], arguments["native"], FORMATS["vigor"], arguments["cities"]
    if number > len(VIGOR_STYLES):
        raise UserError(f"--cities is {number}; expected at most {len(VIGOR_STYLES)}")
    if arguments["panoramas"] < 2:
        raise UserError(f"--panoramas is {arguments['panoramas']}; expected at least 2, one to train and one to test")
    side, size, shots, files = form["aerial"][native], form["ground"][native], defaultdict(list), {}
    record = {"metres_per_pixel": METRES_PER_PIXEL, "tile_pixels": PIXELS, "cameras": [], "tiles": {}}
    for index, style in enumerate(VIGOR_STYLES[:number], 1):
        name, key = style.name, (seed, index, style)
        city, grid = City(*key), Grid(style, arguments["tiles"])
        panoramas = choose_panoramas(city, grid, arguments["panoramas"])
        splits = same_area_split(city, len(panoramas))
        files |= _vigor_lists(name, grid, panoramas, splits)
        record["tiles"][name] = [[round(v, 3) for v in grid.centre(k)] for k in range(grid.count)]
        for n, (p, split) in enumerate(zip(panoramas, splits, strict=True)):
            ground, place = f"{name}/panorama/{p.name}", {"x": round(p.x, 4), "y": round(p.y, 4)}
            record["cameras"].append({"city": name, "split": split, "ground": ground, **place, "tiles": list(p.tiles)})
            shot = Shot(ground, "ground", p.x, p.y, size, form["elevation"], (seed, index, GROUND, n))
            shots[key, ward_of(p.x, p.y)].append(shot)
        for k in range(grid.count):
            (x, y), path = grid.centre(k), f"{name}/satellite/{grid.tile_name(k)}"
            shot = Shot(path, "aerial", x, y, (side, side), PIXELS * METRES_PER_PIXEL, (seed, index, AERIAL, k))
            shots[key, ward_of(x, y)].append(shot)
    return shots, files, record


def _vigor_lists(name, grid, panoramas, splits):
    """The tile list and the labels: for each of four tiles its name, delta row and delta column.

    The camera is at row 320 + delta row, column 320 - delta column of the tile. The `__corrected` labels are the same:
    here both are exact.
    """
    lines = []
    for p in panoramas:
        centres = [(grid.tile_name(k), *grid.centre(k)) for k in p.tiles]
        deltas = [(tile, (y - p.y) / METRES_PER_PIXEL, (x - p.x) / METRES_PER_PIXEL) for tile, x, y in centres]
        lines.append(" ".join([p.name, *(f"{tile} {round(row)}.0 {round(col)}.0" for tile, row, col in deltas)]) + "\n")
    texts = {"pano_label_balanced": lines}
    for half in ("train", "test"):
        texts[f"same_area_balanced_{half}"] = [line for line, s in zip(lines, splits, strict=True) if s == half]
    texts = {stem: "".join(chosen).encode() for stem, chosen in texts.items()}
    tiles = "".join(grid.tile_name(k) + "\n" for k in range(grid.count)).encode()
    files = {f"splits/{name}/{stem}.txt": text for stem, text in texts.items()}
    for folder in (f"splits/{name}", f"splits__corrected/{name}"):
        files |= {f"{folder}/{stem}__corrected.txt": text for stem, text in texts.items()}
        files[f"{folder}/satellite_list.txt"] = tiles
    return files
