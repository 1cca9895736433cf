"""The procedural city: geometry of the two views, the three layouts, the same bytes for a seed, and mistakes."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from make_data import heed_ctrl_c
from PIL import Image
from scipy.io import loadmat

from dataset import CVACT, CVUSA, VIGOR
from dataset.city import City, region_raster, render_aerial, render_ground, write_city
from dataset.city.blocks import PLAIN, Block, Building
from dataset.city.layouts import TILE
from dataset.city.map import choose_places
from dataset.city.raster import rasterise
from dataset.city.render import write_image
from dataset.city.style import SURFACE, TOWN
from scripts import check_data
from scripts.make_city import main
from utils.options import UserError

REPO = Path(__file__).parent.parent
NAMES = ("NewYork", "Seattle")
MAGENTA, GREY = (0.85, 0.1, 0.75), (0.6, 0.6, 0.6)
STRIPS = ((-1, -1), (-1, 1), (1, 1), (1, -1))  # signs of east and north: SW, NW, NE, SE


def stage(*buildings, ground="lawn", cell=0.25):
    """A plain of 320 x 320 m around (0, 0) with nothing on it but the buildings."""
    corners = np.array([[-160, -160], [160, -160], [160, 160], [-160, 160]])
    block = Block("square", corners, SURFACE[ground], buildings=list(buildings))
    return rasterise([block], [], (-160, -160, 160, 160), cell)


def landmark(x, y, height=12.0, half=6.0):
    return Building(x, y, half, half, 0.0, height, height, MAGENTA, MAGENTA, PLAIN)


def ground_view(raster, size, elevation=(-27.5, 38.0), heading=0.0):
    return render_ground(raster, 0, 0, size, elevation, np.random.default_rng(0), heading)


def aerial_view(raster, x=0.0, y=0.0, side=TILE, size=128):
    return render_aerial(raster, x, y, side, size, np.random.default_rng(1))


def opened(*path):
    """The width and height of an image."""
    return Image.open(Path(*path)).size


def magenta(image):
    """Pixels of the landmark's colour, whatever the light: red and blue well above green."""
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    return np.minimum(red, blue) > 1.6 * green + 10


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("elevation", [(-27.5, 38.0), (-90.0, 90.0)])
@pytest.mark.parametrize("strip", range(4))
def test_a_building_appears_in_its_compass_strip_and_quadrant(strip, elevation):
    east, north = STRIPS[strip]
    raster = stage(landmark(18 * east, 18 * north))
    columns = magenta(ground_view(raster, (256, 128), elevation)).sum(0).reshape(4, 64).sum(1)
    assert columns.sum() > 50 and columns[strip] == columns.sum()
    aerial = magenta(aerial_view(raster))
    quadrant = aerial[64 * (north < 0) :][:64, 64 * (east > 0) :][:, :64]
    assert quadrant.sum() > 100 and quadrant.sum() == aerial.sum()


def test_south_is_in_column_zero_and_a_turned_camera_shifts_the_columns():
    raster = stage(landmark(0, -20))
    south, east = (magenta(ground_view(raster, (360, 90), heading=heading)).any(0) for heading in (0, 90))
    assert south[[0, -1]].all() and not south[90:270].any()
    assert east[265:275].all() and not east[:180].any()  # facing east, the south lies to the right


def test_roofs_are_seen_from_above_and_walls_from_the_street():
    raster = stage(Building(0, 22, 8, 8, 0.3, 14, 14, MAGENTA, (0.1, 0.8, 0.1), PLAIN), ground="sidewalk")
    ground, aerial = ground_view(raster, (256, 128)), aerial_view(raster)
    green = [image[..., 1] > 1.8 * np.maximum(image[..., 0], image[..., 2]).astype(float) for image in (ground, aerial)]
    assert magenta(ground).sum() > 200 and not green[0].any()
    assert green[1].sum() > 200 and magenta(aerial).sum() < 30


def test_what_stands_behind_a_wall_is_hidden():
    wall = Building(0, 12, 12, 2, 0, 15, 15, GREY, GREY, PLAIN)
    assert magenta(ground_view(stage(landmark(0, 40)), (256, 64))).any()
    assert not magenta(ground_view(stage(landmark(0, 40), wall), (256, 64))).any()


@pytest.mark.parametrize("x, y", [(10.25, -7.875), (-20.0, 13.75)])
def test_the_aerial_image_puts_a_point_on_its_pixel(x, y):
    raster = stage(landmark(x, y, height=0.3, half=2.0), cell=0.125)
    for cx, cy in ((0.0, 0.0), (3.21, -1.43)):
        rows, cols = np.nonzero(magenta(aerial_view(raster, cx, cy, 640 * 0.114, 640)))
        assert abs(rows.mean() + 0.5 - (320 - (y - cy) / 0.114)) < 0.5
        assert abs(cols.mean() + 0.5 - (320 + (x - cx) / 0.114)) < 0.5


def test_a_wall_has_its_distance_s_height_in_the_panorama():
    raster = stage(landmark(0, 26, height=10, half=6))  # wall 20 m to the north, 7.5 m above the camera
    rows = np.flatnonzero(magenta(ground_view(raster, (360, 180), (-90, 90)))[:, 180])
    assert abs(rows[0] - (90 - np.rad2deg(np.arctan(7.5 / 20)))) <= 1.5
    assert abs(rows[-1] - (90 + np.rad2deg(np.arctan(2.5 / 20)))) <= 1.5


def test_the_map_is_one_whatever_region_draws_it():
    a = region_raster(City(5, 0, TOWN), (0, 0, 40, 40), 0.5)
    b = region_raster(City(5, 0, TOWN), (20, 0, 60, 40), 0.5)
    shift = int((b.west - a.west) / 0.5)
    for name in ("height", "surface", "canopy"):
        first, second = getattr(a, name)[:, shift:], getattr(b, name)[:, :-shift]
        assert np.mean(first[60:-60, 60:-60] != second[60:-60, 60:-60]) < 1e-3
    assert len(np.unique(a.surface)) > 6 and a.height.max() > 500 and a.canopy.max() > 300


@pytest.mark.parametrize("away", [0.0, 18.0])
def test_no_test_tile_overlaps_a_training_tile(away):
    places = choose_places(City(0, 0, TOWN), {"train": 300, "test": 100}, TILE, away)
    train, test = (np.array([place[:2] for place in places[split]]) for split in ("train", "test"))
    assert len(train) == 300 and len(test) == 100
    apart = lambda a, b: np.abs(a[:, None] - b[None]).max(2)  # noqa: E731
    assert apart(train, test).min() >= TILE + 2 * away
    assert (apart(train, train) + 1e9 * np.eye(len(train))).min() >= TILE / 2


NINE = {"seed": 3, "train": 6, "test": 3}


@pytest.fixture(scope="module")
def cvusa(tmp_path_factory):
    return write_city("cvusa", tmp_path_factory.mktemp("city") / "cvusa", **NINE, jobs=2)


@pytest.fixture(scope="module")
def vigor(tmp_path_factory):
    return write_city("vigor", tmp_path_factory.mktemp("city") / "vigor", cities=2, panoramas=12, tiles=16, jobs=2)


SMALL = {
    "cvusa": {"seed": 1, "train": 1, "test": 0},
    "cvact": {"train": 1, "val": 0, "test": 0, "jitter_metres": 9.0, "jitter_degrees": 40.0},
    "vigor": {"cities": 1, "panoramas": 2, "tiles": 4},
}
# Layout, the first camera's position, mean colour of its panorama and of an aerial image: no digests of bytes, because
# the last digit of a sine, and with it a pixel, may depend on the processor.
GOLDEN_IMAGES = [
    ("cvusa", (372.756, 228.617), (156.3, 158.3, 157.1), (151.8, 138.8, 125.0)),
    ("cvact", (293.488, 191.271), (91.7, 87.7, 85.5), (141.4, 149.3, 117.3)),
    ("vigor", (14.6661, 23.0173), (96.2, 88.3, 122.1), (89.5, 100.7, 86.1)),
]
# Kind of block: how many of 144, their buildings, trees and patches, and the metres of all these together.
GOLDEN_BLOCKS = {
    "halls": (12, 102, 29, 64, 1369.7), "park": (6, 1, 111, 42, 3373.8), "rows": (32, 559, 526, 84, 14839.2),
    "school": (5, 8, 39, 16, 951.4), "houses": (29, 267, 346, 225, 10324.8), "wood": (5, 0, 249, 5, 2566.9),
    "field": (9, 12, 95, 9, 1974.8), "square": (10, 25, 186, 12, 2748.9), "towers": (24, 130, 506, 102, 11716.3),
    "store": (3, 16, 7, 54, 665.1), "lake": (9, 2, 48, 18, 2319.5),
}  # fmt: skip


@pytest.mark.parametrize("layout, place, ground, aerial", GOLDEN_IMAGES, ids=SMALL)
def test_a_seed_makes_the_images_that_it_always_made(layout, place, ground, aerial, tmp_path):
    write_city(layout, tmp_path, **SMALL[layout], jobs=1)
    camera = json.loads((tmp_path / "city.json").read_text())["cameras"][0]
    assert (camera["x"], camera["y"]) == pytest.approx(place, abs=0.01)
    tile = camera.get("aerial") or min((tmp_path / "NewYork" / "satellite").iterdir())
    for image, colour in ((camera["ground"], ground), (tile, aerial)):
        assert np.asarray(Image.open(tmp_path / image)).mean((0, 1)) == pytest.approx(colour, abs=1)


def test_a_seed_makes_the_map_that_it_always_made():
    city, found = City(0, 0, TOWN), {}
    for block in (city.block(i, j) for i in range(12) for j in range(12)):
        metres = [np.ptp(polygon, 0).sum() for polygon, _ in block.patches + block.hedges]
        metres += [building.eaves for building in block.buildings] + [tree[2] for tree in block.trees]
        numbers = np.array([1, len(block.buildings), len(block.trees), len(block.patches), sum(metres)])
        found[block.kind] = found.get(block.kind, 0) + numbers
    assert found.keys() == GOLDEN_BLOCKS.keys()
    for kind, numbers in found.items():
        assert numbers == pytest.approx(np.array(GOLDEN_BLOCKS[kind]), abs=0.1), kind
    raster = region_raster(city, (0, 0, 40, 40), 0.5)
    assert [grid.mean() for grid in (raster.height, raster.canopy, raster.surface)] == pytest.approx(
        [97.6, 22.8, 6.85], rel=1e-3
    )


def test_the_bytes_depend_neither_on_the_jobs_nor_on_an_interruption(cvusa, tmp_path):
    again = write_city("cvusa", tmp_path / "again", **NINE, jobs=1)
    assert files_of(again) == files_of(cvusa)
    (again / "city.json").rename(again / "city.unfinished.json")
    (again / "splits" / "val-19zl.csv").unlink()
    for number in (2, 5, 7):
        (again / "bingmap" / "19" / f"{number:07d}.jpg").unlink()
    untouched = (again / "bingmap" / "19" / "0000001.jpg").stat().st_mtime_ns
    write_city("cvusa", again, **NINE, jobs=2)
    assert files_of(again) == files_of(cvusa)
    assert (again / "bingmap" / "19" / "0000001.jpg").stat().st_mtime_ns == untouched


def test_a_finished_city_is_kept_and_other_arguments_are_refused(cvusa):
    before = files_of(cvusa)
    write_city("cvusa", cvusa, **NINE, jobs=1)
    with pytest.raises(UserError, match="made with train 6, not 11"):
        write_city("cvusa", cvusa, **NINE | {"train": 11})
    assert files_of(cvusa) == before


def test_the_same_cvact_is_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    made = []
    for name, clock in (("a", 0), ("b", 10**9)):
        monkeypatch.setattr(time, "asctime", lambda clock=clock: time.strftime("%c", time.gmtime(clock)))
        made.append(files_of(write_city("cvact", tmp_path / name, **SMALL["cvact"], jobs=1)))
    assert made[0] == made[1]


def test_cvusa_lists_name_the_files(cvusa):
    for split, count in (("train", 6), ("val", 3)):
        lines = (cvusa / "splits" / f"{split}-19zl.csv").read_text().splitlines()
        assert len(lines) == count == len(CVUSA(cvusa, split))
        for aerial, ground, _ in (line.split(",") for line in lines):
            assert Path(aerial).stem == Path(ground).stem
            assert (opened(cvusa, aerial), opened(cvusa, ground)) == ((256, 256), (512, 93))


def test_cvact_mat_indexes_the_images(tmp_path):
    root = write_city("cvact", tmp_path / "cvact", train=3, val=1, test=2, jobs=2, jitter_metres=3, jitter_degrees=10)
    content = loadmat(root / "ACT_data.mat")
    for struct, field, split, count in (
        ("trainSet", "trainInd", "train", 3), ("valSet", "valInd", "val", 1), ("valSetAll", "valInd", "test", 2),
    ):  # fmt: skip
        index = content[struct][field][0][0].ravel().astype(int)
        assert len(index) == count == len(CVACT(root, split)) and index.min() >= 1
        base = root / f"ANU_data_{'test' if split == 'test' else 'small'}"
        for name in content["panoIds"][index - 1]:
            assert opened(base, "streetview", f"{name}_grdView.jpg") == (512, 256)
            assert opened(base, "satview_polish", f"{name}_satView_polish.jpg") == (256, 256)
    cameras = json.loads((root / "city.json").read_text())["cameras"]
    away = [np.hypot(c["x"] - c["tile_x"], c["y"] - c["tile_y"]) for c in cameras]
    assert 0 < max(away) <= 3.001 and 0 < max(abs(c["heading"]) for c in cameras) <= 10
    places = np.array([(c["x"], c["y"]) for c in cameras])
    np.testing.assert_allclose(content["utm"] - content["utm"][0], places - places[0], atol=0.01)


@pytest.mark.parametrize("city", NAMES)
def test_vigor_labels_are_exact_to_half_a_pixel_and_lists_agree(vigor, city):
    record, metres = json.loads((vigor / "city.json").read_text()), 6371000 * np.pi / 180
    labels, corrected = vigor / "splits" / city, vigor / "splits__corrected" / city
    tiles = (labels / "satellite_list.txt").read_text().split()
    assert sorted(tiles) == sorted(os.listdir(vigor / city / "satellite")) and len(set(tiles)) == 16
    text = (labels / "pano_label_balanced.txt").read_text()
    halves = [(labels / f"same_area_balanced_{s}.txt").read_text().splitlines() for s in ("train", "test")]
    assert len(halves[0]) == len(halves[1]) == 6 and sorted(halves[0] + halves[1]) == sorted(text.splitlines())
    for folder in (labels, corrected):
        assert (folder / "pano_label_balanced__corrected.txt").read_text() == text
    assert (corrected / "satellite_list.txt").read_text().split() == tiles
    cameras = {Path(c["ground"]).name: np.array([c["y"], c["x"]]) for c in record["cameras"] if c["city"] == city}
    rows = [line.split(" ") for line in text.splitlines()]
    assert {len(row) for row in rows} == {13} and len({row[1] for row in rows}) >= 6
    for name, *row in rows:
        assert opened(vigor, city, "panorama", name) == (512, 256)
        assert opened(vigor, city, "satellite", row[0]) == (256, 256)
        degrees = np.array(name.split(",")[1:3], dtype=float)
        assert len({row[k] for k in (0, 3, 6, 9)}) == 4
        for k in (0, 3, 6, 9):
            # The camera's row is 320 + down, its column 320 - left: as rendered, and as the names' degrees say.
            offset = np.array(row[k + 1 : k + 3], dtype=float)
            assert abs(offset).max() <= (160 if k == 0 else 320)
            centre = np.array(record["tiles"][city][tiles.index(row[k])])[::-1]
            assert abs((centre - cameras[name]) / 0.114 - offset).max() <= 0.51
            north_east = np.array(row[k].removesuffix(".png").split("_")[1:], dtype=float)
            scale = metres / 0.114 * np.array([1, np.cos(np.deg2rad(north_east[0]))])
            assert (abs((north_east - degrees) * scale - offset) <= (0.51, 0.6)).all()


@pytest.mark.parametrize("layout, ground, aerial", [
    ("cvusa", (1232, 224), (750, 750)), ("cvact", (1664, 832), (1200, 1200)), ("vigor", (2048, 1024), (640, 640)),
])  # fmt: skip
def test_native_sizes(layout, ground, aerial, tmp_path):
    write_city(layout, tmp_path, **SMALL[layout], jobs=1, native=True)
    images = [Image.open(path) for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png")]
    assert {image.size for image in images} == {ground, aerial}
    assert {image.format for image in images if image.size == aerial} == {"PNG" if layout == "vigor" else "JPEG"}


IMPOSSIBLE = {
    "vigor --tiles 9 --panoramas 500": "--panoramas 500 do not fit on --tiles 9",
    "vigor --tiles 1 --panoramas 2": "do not fit",
    "vigor --panoramas 1": "--panoramas is 1; expected at least 2",
    "vigor --cities 5": "--cities is 5; expected at most 4",
    "vigor --jitter-degrees 5": "belong to cvusa and cvact",
    "cvusa --train 0": "--train: '0' is not",
    "cvact --test -4": "--test: '-4' is not",
    "cvusa --seed -1": "--seed: '-1' is not",
    "cvusa --jobs 0": "--jobs: '0' is not",
    "cvusa --jitter-metres 60": "--jitter-metres is 60.0; expected 0 to 18",
    "cvusa --jitter-degrees 200": "--jitter-degrees is 200.0; expected 0 to 180",
}


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_sizes_that_are_not_possible_are_refused(options, tmp_path, refused):
    assert IMPOSSIBLE[options] in refused(main, "--out", tmp_path / "city", "--layout", *options.split())
    assert not (tmp_path / "city").exists()


def test_folders_that_cannot_be_used_are_refused(tmp_path, refused):
    small = ["--layout", "cvusa", "--train", "1", "--test", "0", "--out"]
    (tmp_path / "thesis.tex").write_text("draft")
    assert "holds no city but thesis.tex" in refused(main, *small, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert "thesis.tex is a file; pass a folder" in refused(main, *small, tmp_path / "thesis.tex")
    assert "cannot be written (Not a directory)" in refused(main, *small, tmp_path / "thesis.tex" / "city")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "city.json").write_text("[]")
    assert "is not the record of a city" in refused(main, *small, tmp_path / "broken")


@pytest.mark.parametrize("room", [0, 4])
def test_a_full_disk_leaves_nothing_that_looks_complete(room, tmp_path, refused, monkeypatch):
    left = iter(range(room))

    def fill_up(source, target):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.replace(source, target)

    options = ["--layout", "cvusa", "--out", str(tmp_path / "c"), "--train", "2", "--test", "1", "--jobs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fill_up)
        assert "; free some space" in refused(main, *options)
    files = files_of(tmp_path / "c")
    assert len(files) == room and not any(name.endswith(("city.json", ".csv", ".partial")) for name in files)
    for name in (name for name in files if name.endswith(".jpg")):
        Image.open(tmp_path / "c" / name).load()
    (tmp_path / "c" / "city.unfinished.json.partial").touch()  # of a process that was killed
    main(options)
    assert "city.json" in files_of(tmp_path / "c")


def test_an_image_that_only_half_fits_is_not_kept(tmp_path):
    """Pillow alone takes no notice where the last of its writes falls short."""
    limits, image = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1"),
    )
    write_image(tmp_path / "whole.jpg", image)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "whole.jpg").stat().st_size - 10, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            write_image(tmp_path / "half.jpg", image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["whole.jpg"]


@pytest.mark.parametrize("stop, code, message", [
    ("Ctrl-C", 130, "interrupted; run the same command again"), ("kill", 2, "continue with --jobs 1"),
])  # fmt: skip
def test_a_stopped_command_leaves_the_images_not_begun(stop, code, message, tmp_path):
    options = ["--layout", "cvact", "--train", "300", "--val", "0", "--test", "0", "--jobs", "2", "--out", "city"]
    run = subprocess.Popen(
        [sys.executable, REPO / "scripts" / "make_city.py", *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.rglob("*.jpg")):
        time.sleep(0.05)
    if stop == "Ctrl-C":
        os.killpg(run.pid, signal.SIGINT)
    else:  # the out-of-memory killer takes a worker
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    error = run.communicate(timeout=120)[1]
    assert run.returncode == code and message in error and error.count("\n") == 1
    assert 1 <= len(list(tmp_path.rglob("*.jpg"))) < 100


def test_check_data_looks_at_the_cities_that_are_there(vigor, tmp_path, capsys, refused):
    root = tmp_path / "city"
    shutil.copytree(vigor, root)
    for labels in ("original", "corrected"):
        check_data.main(["--dataset", "vigor", "--data-root", str(root), "--labels", labels])
        told = capsys.readouterr().out
        assert "train: 12 panoramas of NewYork, Seattle, 32 tiles, 0 left out" in told
        assert "100.00 % within 6 px" in told and "lacks" in told
        assert "cross-area train: 24 panoramas, 32 tiles, 0 left out" in told and "cross-area test: " in told
    data = VIGOR(root, "train", area=NAMES)
    lost = root / data.aerial[data.tiles[0, 2]]
    lost.unlink()
    check_data.main(["--dataset", "vigor", "--data-root", str(root)])
    told = capsys.readouterr().out
    assert "100.00 % within 6 px" in told and f"not there: {lost}" in told
    (root / "city.json").write_text("{}")
    for dataset, message in (("vigor", "city.json cannot be read"), ("cvusa", "is not a CVUSA folder")):
        assert message in refused(check_data.main, "--dataset", dataset, "--data-root", root)
