"""Writing images over several processes: each file whole or absent, going on where a run was cut off."""

import io
import json
import os
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.errors import UserError
from utils.workers import follow_parent, starting_workers
from utils.writing import PARTIAL, whole_file, write_text

from .plan import City
from .render import region_raster, render_aerial, render_ground

VERSION = 1  # raised whenever the same arguments make other bytes
UNFINISHED = "city.unfinished.json"
FINISHED = "city.json"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class CityError(UserError):
    """A mistake of the user, told in one sentence."""


@dataclass(frozen=True)
class Shot:
    """One image to render: `key` seeds its generator, `extent` is the elevation span or the tile's side."""

    path: str  # relative to the root
    view: str  # ground | aerial
    x: float
    y: float
    size: tuple  # (width, height)
    extent: tuple | float
    key: tuple
    heading: float = 0.0


@dataclass(frozen=True)
class Region:
    """Shots of one part of a city, rendered from one raster."""

    seed: int
    index: int
    style: object
    box: tuple  # (west, south, east, north)
    cell: float
    shots: tuple


def identifier(*key):
    """A name of 22 letters and digits, like the panoramas' in CVACT and VIGOR."""
    return "".join(LETTERS[k] for k in np.random.default_rng(key).integers(len(LETTERS), size=22))


def write_image(path, pixels):
    """Save an image whole or not at all: a file that exists need not be rendered again."""
    options = {"quality": 90, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 1}
    image = io.BytesIO()  # Pillow writes to a file of its own descriptor, and takes no notice of a full disk
    Image.fromarray(pixels).save(image, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    with whole_file(path) as file:
        file.write(image.getbuffer())


def render_region(root, region):
    """Render the shots of a region that are not yet on disk."""
    root = Path(root)
    missing = [shot for shot in region.shots if not (root / shot.path).exists()]
    _count(len(region.shots) - len(missing))
    if not missing:
        return
    city = _city(region.seed, region.index, region.style)
    raster = region_raster(city, region.box, region.cell)
    for shot in missing:
        if _stop is not None and _stop.is_set():
            return
        rng = np.random.default_rng(shot.key)
        north = region.style.sun_from_north
        if shot.view == "aerial":
            pixels = render_aerial(raster, shot.x, shot.y, shot.extent, shot.size[0], rng, north)
        else:
            pixels = render_ground(raster, shot.x, shot.y, shot.size, shot.extent, rng, shot.heading, north)
        write_image(root / shot.path, pixels)
        _count(1)


@lru_cache(4)
def _city(seed, index, style):
    return City(seed, index, style)


_done = _stop = None  # shared by the processes: images so far, and whether to leave the rest


def _share(counter, stop):
    """Set up a process of the pool: it counts and stops with the others, and ends with its parent."""
    global _done, _stop
    _done, _stop = counter, stop
    follow_parent()


def _count(n):
    if _done is not None:
        with _done.get_lock():
            _done.value += n


def render_all(root, regions, jobs):
    """Render all regions over `jobs` processes, with a progress bar on a terminal."""
    total = sum(len(r.shots) for r in regions)
    for folder in {os.path.dirname(s.path) for r in regions for s in r.shots}:
        (Path(root) / folder).mkdir(parents=True, exist_ok=True)
    context = get_context()
    counter, stop = context.Value("q", 0), context.Event()
    with tqdm(total=total, unit="img", disable=None, desc="rendering") as bar:
        if jobs == 1:
            global _done
            _done = counter
            for region in regions:
                render_region(root, region)
                bar.update(counter.value - bar.n)
            return
        with ProcessPoolExecutor(jobs, context, _share, (counter, stop)) as pool:
            try:
                with starting_workers():
                    waiting = {pool.submit(render_region, str(root), region) for region in regions}
                while waiting:
                    done, waiting = wait(waiting, 0.3, FIRST_EXCEPTION)
                    bar.update(counter.value - bar.n)
                    for future in done:
                        future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


def open_folder(root, arguments):
    """Make or take up the output folder.

    Raises:
        CityError: it holds other things, or a city made with other arguments, or cannot be written.
    """
    root = Path(root)
    wanted = {"version": VERSION, **arguments}
    try:
        root.mkdir(parents=True, exist_ok=True)
        entries = sorted(p.name for p in root.iterdir() if p.suffix != PARTIAL)
        for name in (FINISHED, UNFINISHED):
            if name in entries:
                found = _read_arguments(root / name)
                differing = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
                if differing:
                    k = sorted(differing)[0]
                    raise CityError(
                        f"{root} holds a city made with {k} {found.get(k)!r}, not {wanted.get(k)!r}: "
                        "give the same arguments to go on with it, or another --out."
                    )
                return
        if entries:
            raise CityError(
                f"{root} is not empty and holds no city (but {entries[0]}): give an empty or new folder as --out."
            )
        write_text(root / UNFINISHED, json.dumps({"arguments": wanted}))
    except (NotADirectoryError, FileExistsError):
        raise CityError(f"{root} cannot be used as a folder: a file is in the way.") from None


def _read_arguments(path):
    try:
        return dict(json.loads(path.read_text())["arguments"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CityError(f"{path} cannot be read as the record of a city: remove it or give another --out.") from None


def close_folder(root, arguments, record):
    """Write city.json, the last file: with it the set is complete."""
    write_text(Path(root) / FINISHED, json.dumps({"arguments": {"version": VERSION, **arguments}, **record}))
    (Path(root) / UNFINISHED).unlink(missing_ok=True)
