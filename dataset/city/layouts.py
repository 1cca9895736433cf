"""The three data sets' layouts on disk, written from the city."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from utils.writing import write_text

from .places import choose_places, ward_box
from .plan import City
from .style import CANBERRA, TOWN
from .writing import CityError, Region, Shot, close_folder, identifier, open_folder, render_all

TILE = 72.0  # metres, side of the aerial images of CVUSA and CVACT
# Sizes of the images: ground (width, height) and aerial side, small and native. Elevation: degrees at the lower and
# upper edge of the panorama.
FORMATS = {
    "cvusa": {"ground": ((512, 93), (1232, 224)), "aerial": (256, 750), "elevation": (-27.5, 38.0)},
    "cvact": {"ground": ((512, 256), (1664, 832)), "aerial": (256, 1200), "elevation": (-90.0, 90.0)},
    "vigor": {"ground": ((512, 256), (2048, 1024)), "aerial": (256, 640), "elevation": (-90.0, 90.0)},
}
GROUND, AERIAL, OFFSET = 0, 1, 2  # which generator of a camera's seed


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
        CityError: a size that cannot be, or a folder that cannot be used.
    """
    from .vigor import write_vigor

    arguments = {"layout": layout, "seed": seed, "native": native}
    jobs = jobs or _cores()
    if layout == "vigor":
        arguments |= {"cities": cities, "panoramas": panoramas, "tiles": tiles}
        _check(arguments, jitter_metres, jitter_degrees)
        if jitter_metres or jitter_degrees:
            raise CityError(
                "--jitter-metres and --jitter-degrees are for cvusa and cvact: VIGOR's cameras stand off centre."
            )
        return write_vigor(out, arguments, jobs, FORMATS[layout])
    if layout not in FORMATS:
        raise CityError(f"There is no layout {layout!r}: choose cvusa, cvact or vigor.")
    counts = {"train": train, "test": test} if layout == "cvusa" else {"train": train, "val": val, "test": test}
    arguments |= {**counts, "jitter_metres": jitter_metres, "jitter_degrees": jitter_degrees}
    _check(arguments, jitter_metres, jitter_degrees)
    return _write_pairs(layout, Path(out), arguments, counts, jobs)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(arguments, metres, degrees):
    least = {"val": 0, "test": 0, "panoramas": 2}  # half of a city's panoramas are for training
    for name in ("train", "val", "test", "cities", "panoramas", "tiles"):
        value = arguments.get(name)
        if value is not None and value < least.get(name, 1):
            raise CityError(f"--{name} is {value}: it must be at least {least.get(name, 1)}.")
    if arguments["seed"] < 0:
        raise CityError(f"--seed is {arguments['seed']}: it must not be negative.")
    if not 0 <= metres <= TILE / 4:
        raise CityError(f"--jitter-metres is {metres}: it must lie between 0 and {TILE / 4:g}, a quarter of a tile.")
    if not 0 <= degrees <= 180:
        raise CityError(f"--jitter-degrees is {degrees}: it must lie between 0 and 180.")


def _write_pairs(layout, out, arguments, counts, jobs):
    form, native = FORMATS[layout], arguments["native"]
    open_folder(out, arguments)
    seed, style = arguments["seed"], TOWN if layout == "cvusa" else CANBERRA
    city = City(seed, 0, style)
    places = choose_places(city, counts, TILE, arguments["jitter_metres"])
    cameras, shots = [], defaultdict(list)
    for split, chosen in places.items():
        for place in chosen:
            n = len(cameras)
            rng = np.random.default_rng((seed, 0, OFFSET, n))
            away = arguments["jitter_metres"] * np.sqrt(rng.random())
            angle = rng.uniform(0, 2 * np.pi)
            tile_x, tile_y = place.x + away * np.cos(angle), place.y + away * np.sin(angle)
            heading = arguments["jitter_degrees"] * rng.uniform(-1, 1)
            ground, aerial = _paths(layout, split, seed, n)
            size = form["ground"][native], (form["aerial"][native],) * 2
            shots[place.ward] += [
                Shot(
                    ground,
                    "ground",
                    place.x,
                    place.y,
                    size[0],
                    form["elevation"],
                    (seed, 0, GROUND, n),
                    heading,
                ),
                Shot(aerial, "aerial", tile_x, tile_y, size[1], TILE, (seed, 0, AERIAL, n)),
            ]
            cameras.append(
                {
                    "split": split,
                    "ground": ground,
                    "aerial": aerial,
                    "x": round(place.x, 3),
                    "y": round(place.y, 3),
                }
                | {"tile_x": round(tile_x, 3), "tile_y": round(tile_y, 3), "heading": round(heading, 3)}
            )
    cell = 0.125 if native else 0.25
    regions = [Region(seed, 0, style, ward_box(a, b), cell, tuple(s)) for (a, b), s in shots.items()]
    render_all(out, regions, jobs)
    if layout == "cvusa":
        _write_cvusa_lists(out, cameras)
    else:
        from .cvact import write_mat

        write_mat(out, cameras)
    record = {"metres_per_pixel": TILE / form["aerial"][native], "tile_metres": TILE, "cameras": cameras}
    close_folder(out, arguments, record)
    return out


def _paths(layout, split, seed, n):
    if layout == "cvusa":
        return f"streetview/panos/{n + 1:07d}.jpg", f"bingmap/19/{n + 1:07d}.jpg"
    folder = "ANU_data_test" if split == "test" else "ANU_data_small"
    name = identifier(seed, 0, 77, n)
    return f"{folder}/streetview/{name}_grdView.jpg", f"{folder}/satview_polish/{name}_satView_polish.jpg"


def _write_cvusa_lists(out, cameras):
    (out / "splits").mkdir(exist_ok=True)
    for split, name in (("train", "train-19zl.csv"), ("test", "val-19zl.csv")):
        lines = [
            f"{c['aerial']},{c['ground']},annotations/{Path(c['ground']).stem}.png"
            for c in cameras
            if c["split"] == split
        ]
        write_text(out / "splits" / name, "\n".join(lines) + "\n" if lines else "")
