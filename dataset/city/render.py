"""Rendering the images of a data set over several processes: each whole or absent, going on where a run was cut off."""

import io
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.options import UserError
from utils.run_files import whole_file
from utils.workers import follow_parent, starting_workers

from .aerial import render_aerial
from .map import City, ward_box
from .raster import rasterise
from .street_view import REACH, render_ground

MARGIN = REACH + 12.0  # metres a region's raster reaches beyond the cameras in it


class Shot(NamedTuple):
    """One image to render."""

    path: str  # relative to the root
    view: str  # ground | aerial
    x: float
    y: float
    size: tuple  # (width, height)
    extent: tuple | float  # elevation (lowest, highest) in degrees, or the tile's side in metres
    key: tuple  # seeds the image's generator
    heading: float = 0.0


def region_raster(city, box, cell):
    """Raster of a box = (west, south, east, north) of the city and of MARGIN metres around it."""
    reach = int(np.ceil(MARGIN / cell)) * cell
    wide = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
    return rasterise(city.blocks_in(wide), city.streets_in(wide), wide, cell)


def write_image(path, pixels):
    """Save an image whole or not at all: a file that exists need not be rendered again."""
    options = {"quality": 90, "subsampling": 0} if path.suffix == ".jpg" else {"compress_level": 1}
    image = io.BytesIO()  # given a file, Pillow ignores that the disk is full
    Image.fromarray(pixels).save(image, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    with whole_file(path) as file:
        file.write(image.getbuffer())


_city = lru_cache(4)(City)  # keeps the blocks that several wards of a process share


def render_ward(root, city, ward, cell, shots):
    """Render the images of one ward that are not on disk yet, from one raster.

    Args:
        city: the arguments of `City`; cell: side of the raster's cells in metres; shots: list of `Shot`.

    Yields:
        How many more images are there.
    """
    missing = [shot for shot in shots if not (root / shot.path).exists()]
    yield len(shots) - len(missing)
    if not missing:
        return
    city = _city(*city)
    raster, from_north = region_raster(city, ward_box(*ward), cell), city.style.sun_from_north
    for shot in missing:
        rng = np.random.default_rng(shot.key)
        if shot.view == "aerial":
            pixels = render_aerial(raster, shot.x, shot.y, shot.extent, shot.size[0], rng, from_north)
        else:
            pixels = render_ground(raster, shot.x, shot.y, shot.size, shot.extent, rng, shot.heading, from_north)
        write_image(root / shot.path, pixels)
        yield 1


def _start_worker(count, stop):
    """Keep what a process of the pool shares with the others: the number of images done, and whether to stop."""
    global _count, _stop
    _count, _stop = count, stop
    follow_parent()


def _work(*task):
    for images in render_ward(*task):
        with _count.get_lock():
            _count.value += images
        if _stop.is_set():
            return


def render_all(root, shots, cell, jobs):
    """Render all images over `jobs` processes, with a progress bar on a terminal.

    Args:
        shots: {(arguments of `City`, ward): list of `Shot`}.

    Raises:
        UserError: a process was killed.
    """
    for folder in {(root / shot.path).parent for found in shots.values() for shot in found}:
        folder.mkdir(parents=True, exist_ok=True)
    tasks = [(root, city, ward, cell, found) for (city, ward), found in shots.items()]
    with tqdm(total=sum(map(len, shots.values())), unit="img", disable=None, desc="rendering") as bar:
        if jobs == 1:
            for images in (images for task in tasks for images in render_ward(*task)):
                bar.update(images)
            return
        context = get_context()
        count, stop = context.Value("q", 0), context.Event()
        with ProcessPoolExecutor(jobs, context, _start_worker, (count, stop)) as pool:
            try:
                with starting_workers():
                    waiting = {pool.submit(_work, *task) for task in tasks}
                while waiting:
                    done, waiting = wait(waiting, 0.3, FIRST_EXCEPTION)
                    bar.update(count.value - bar.n)
                    for future in done:
                        future.result()
            except BrokenProcessPool:
                message = "a process was killed, most likely for lack of memory; continue with --jobs 1"
                raise UserError(message) from None
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
