"""The procedural city: geometry of the two views, the three layouts, and what is told when something goes wrong."""

import errno
import json
import os
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

from dataset import VIGOR
from dataset.city import (
    Building,
    City,
    CityError,
    landmark,
    region_raster,
    render_aerial,
    render_ground,
    stage_raster,
    write_city,
)
from dataset.city.layouts import TILE
from dataset.city.places import choose_places
from dataset.city.style import TOWN
from dataset.city.writing import write_image
from scripts import check_data
from scripts.make_city import main

REPO = Path(__file__).parent.parent
DIRECTIONS = {"south-west": (-1, -1), "north-west": (-1, 1), "north-east": (1, 1), "south-east": (1, -1)}  # strips 1..4


def magenta(image):
    """Pixels of the landmark's colour, whatever the light: red and blue well above green."""
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    return np.minimum(red, blue) > 1.6 * green + 10


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("elevation", [(-27.5, 38.0), (-90.0, 90.0)])
@pytest.mark.parametrize("strip", range(4))
def test_a_building_appears_in_its_compass_strip_and_quadrant(strip, elevation):
    east, north = list(DIRECTIONS.values())[strip]
    stage = stage_raster([landmark(18 * east, 18 * north)])
    ground = render_ground(stage, 0, 0, (256, 128), elevation, np.random.default_rng(0), traffic=False)
    columns = magenta(ground).sum(0).reshape(4, 64).sum(1)
    assert columns.sum() > 50 and columns[strip] == columns.sum()
    aerial = magenta(render_aerial(stage, 0, 0, TILE, 128, np.random.default_rng(1), traffic=False))
    quadrant = aerial[64 * (north < 0) :][:64, 64 * (east > 0) :][:, :64]
    assert quadrant.sum() > 100 and quadrant.sum() == aerial.sum()


def test_south_is_in_column_zero_and_a_turned_camera_shifts_the_columns():
    stage = stage_raster([landmark(0, -20)])
    view = lambda heading: magenta(  # noqa: E731
        render_ground(stage, 0, 0, (360, 90), (-30, 40), np.random.default_rng(0), heading, traffic=False)
    ).any(0)
    assert view(0)[[0, -1]].all() and not view(0)[90:270].any()
    assert view(90)[265:275].all() and not view(90)[:180].any()  # facing east, the south lies to the right


def test_roofs_are_seen_from_above_and_walls_from_the_street():
    tower = Building(0, 22, 8, 8, 0.3, 14, 14, wall=(0.9, 0.1, 0.8), roof=(0.1, 0.8, 0.1), kind=4)
    stage = stage_raster([tower], ground="sidewalk")
    green = lambda image: image[..., 1] > 1.8 * np.maximum(image[..., 0], image[..., 2]).astype(float)  # noqa: E731
    ground = render_ground(stage, 0, 0, (256, 128), (-27.5, 38), np.random.default_rng(0), traffic=False)
    aerial = render_aerial(stage, 0, 0, TILE, 128, np.random.default_rng(0), traffic=False)
    assert magenta(ground).sum() > 200 and not green(ground).any()
    assert green(aerial).sum() > 200 and magenta(aerial).sum() < 30


def test_what_stands_behind_a_wall_is_hidden():
    near = Building(0, 12, 12, 2, 0, 15, 15, wall=(0.6, 0.6, 0.6), roof=(0.6, 0.6, 0.6), kind=4)
    render = lambda *things: render_ground(  # noqa: E731
        stage_raster(things), 0, 0, (256, 64), (-27.5, 38), np.random.default_rng(0), traffic=False
    )
    assert magenta(render(landmark(0, 40))).any()
    assert not magenta(render(landmark(0, 40), near)).any()


@pytest.mark.parametrize("x, y", [(10.3, -7.9), (-20.05, 13.77)])
def test_the_aerial_image_puts_a_point_on_its_pixel(x, y):
    stage = stage_raster([landmark(x, y, height=0.3, half=2.0)], cell=0.125)
    for cx, cy in ((0.0, 0.0), (3.21, -1.43)):
        image = render_aerial(stage, cx, cy, 640 * 0.114, 640, np.random.default_rng(3), traffic=False)
        rows, cols = np.nonzero(magenta(image))
        assert abs(rows.mean() + 0.5 - (320 - (y - cy) / 0.114)) < 0.7
        assert abs(cols.mean() + 0.5 - (320 + (x - cx) / 0.114)) < 0.7


def test_a_wall_has_its_distance_s_height_in_the_panorama():
    stage = stage_raster([landmark(0, 26, height=10, half=6)])  # wall 20 m to the north, 7.5 m above the camera
    image = render_ground(stage, 0, 0, (360, 180), (-90, 90), np.random.default_rng(0), traffic=False)
    rows = np.flatnonzero(magenta(image)[:, 180])
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


@pytest.fixture(scope="module")
def cvusa(tmp_path_factory):
    return write_city("cvusa", tmp_path_factory.mktemp("city") / "cvusa", seed=3, train=10, test=5, jobs=2)


@pytest.fixture(scope="module")
def vigor(tmp_path_factory):
    return write_city("vigor", tmp_path_factory.mktemp("city") / "vigor", cities=2, panoramas=24, tiles=25, jobs=2)


def test_cvusa_lists_name_the_files(cvusa):
    for name, count in (("train-19zl.csv", 10), ("val-19zl.csv", 5)):
        lines = (cvusa / "splits" / name).read_text().splitlines()
        assert len(lines) == count
        for aerial, ground, _ in (line.split(",") for line in lines):
            assert Path(aerial).stem == Path(ground).stem
            assert Image.open(cvusa / aerial).size == (256, 256)
            assert Image.open(cvusa / ground).size == (512, 93)


def test_no_test_tile_overlaps_a_training_tile(cvusa):
    cameras = json.loads((cvusa / "city.json").read_text())["cameras"]
    train, test = (np.array([[c["x"], c["y"]] for c in cameras if c["split"] == s]) for s in ("train", "test"))
    apart = lambda a, b: np.abs(a[:, None] - b[None]).max(2)  # noqa: E731
    assert apart(train, test).min() >= TILE
    assert (apart(train, train) + 1e9 * np.eye(len(train))).min() >= TILE / 2 - 0.01


def test_the_bytes_do_not_depend_on_the_jobs_nor_on_an_interruption(cvusa, tmp_path):
    again = write_city("cvusa", tmp_path / "again", seed=3, train=10, test=5, jobs=1)
    assert files_of(again) == files_of(cvusa)
    (again / "city.json").rename(again / "city.unfinished.json")
    content = json.loads((again / "city.unfinished.json").read_text())
    (again / "city.unfinished.json").write_text(json.dumps({"arguments": content["arguments"]}))
    (again / "splits" / "val-19zl.csv").unlink()
    for number in (2, 7, 12):
        (again / "bingmap" / "19" / f"{number:07d}.jpg").unlink()
    untouched = (again / "bingmap" / "19" / "0000001.jpg").stat().st_mtime_ns
    write_city("cvusa", again, seed=3, train=10, test=5, jobs=2)
    assert files_of(again) == files_of(cvusa)
    assert (again / "bingmap" / "19" / "0000001.jpg").stat().st_mtime_ns == untouched


def test_the_same_cvact_is_the_same_bytes(tmp_path, monkeypatch):
    made = []
    for name, clock in (("a", 0), ("b", 10**9)):
        monkeypatch.setattr(time, "asctime", lambda clock=clock: time.strftime("%c", time.gmtime(clock)))
        made.append(files_of(write_city("cvact", tmp_path / name, train=2, val=2, test=2, jobs=1)))
    assert made[0] == made[1]


def test_what_a_full_disk_left_does_not_stop_the_same_command(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_city("cvusa", tmp_path / "city", train=1, test=1, jobs=1)
    assert not list((tmp_path / "city").iterdir())
    (tmp_path / "city" / "city.unfinished.json.partial").touch()  # of a process that was killed
    write_city("cvusa", tmp_path / "city", train=1, test=1, jobs=1)


def test_ctrl_c_leaves_the_images_not_begun(tmp_path):
    command = ["--layout", "vigor", "--out", str(tmp_path / "v"), "--cities", "1", "--native", "--jobs", "2"]
    run = subprocess.Popen(
        [sys.executable, str(REPO / "scripts" / "make_city.py"), *command, "--panoramas", "200", "--tiles", "144"],
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "v").rglob("*.jpg")):
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 130 and "Traceback" not in error and "goes on" in error
    assert 1 <= len(list((tmp_path / "v").rglob("*.jpg"))) < 150


def test_another_seed_is_another_city(cvusa, tmp_path):
    other = write_city("cvusa", tmp_path / "other", seed=4, train=2, test=0, jobs=1)
    assert files_of(other)["bingmap/19/0000001.jpg"] != files_of(cvusa)["bingmap/19/0000001.jpg"]


def test_cvact_mat_indexes_the_images(tmp_path):
    root = write_city("cvact", tmp_path / "cvact", train=4, val=3, test=3, jobs=1, jitter_metres=3, jitter_degrees=10)
    content = loadmat(root / "ACT_data.mat")
    assert content["utm"].shape == (10, 2)
    folders = (
        ("trainSet", "trainInd", "small", 4),
        ("valSet", "valInd", "small", 3),
        ("valSetAll", "valInd", "test", 3),
    )
    for struct, field, folder, count in folders:
        index = content[struct][field][0][0].ravel()
        assert len(index) == count and index.min() >= 1
        for k in index.astype(int):
            name = content["panoIds"][k - 1]
            base = root / f"ANU_data_{folder}"
            assert Image.open(base / "streetview" / f"{name}_grdView.jpg").size == (512, 256)
            assert Image.open(base / "satview_polish" / f"{name}_satView_polish.jpg").size == (256, 256)
    cameras = json.loads((root / "city.json").read_text())["cameras"]
    away = [np.hypot(c["x"] - c["tile_x"], c["y"] - c["tile_y"]) for c in cameras]
    assert 0 < max(away) <= 3.001 and 0 < max(abs(c["heading"]) for c in cameras) <= 10
    easting = content["utm"][:, 0] - content["utm"][0, 0]
    assert np.allclose(easting, [c["x"] - cameras[0]["x"] for c in cameras], atol=0.01)


def read_labels(root, city, name, folder="splits"):
    rows = [line.split(" ") for line in (root / folder / city / name).read_text().splitlines()]
    assert all(len(row) == 13 for row in rows)
    return rows


def test_vigor_labels_are_exact_to_half_a_pixel(vigor):
    record = json.loads((vigor / "city.json").read_text())
    for city in ("NewYork", "Seattle"):
        tiles = (vigor / "splits" / city / "satellite_list.txt").read_text().split()
        assert len(tiles) == len(set(tiles)) == 25
        cameras = {c["ground"].split("/")[-1]: c for c in record["cameras"] if c["city"] == city}
        rows = read_labels(vigor, city, "pano_label_balanced.txt")
        assert len(rows) == 24 and len({row[1] for row in rows}) >= 10
        for row in rows:
            x, y = cameras[row[0]]["x"], cameras[row[0]]["y"]
            latitude, longitude = (float(v) for v in row[0].split(",")[1:3])
            assert len({row[k] for k in (1, 4, 7, 10)}) == 4
            for k in (1, 4, 7, 10):
                tile_x, tile_y = record["tiles"][city][tiles.index(row[k])]
                north, east = (float(v) for v in row[k].removesuffix(".png").split("_")[1:])
                down, left = float(row[k + 1]), float(row[k + 2])
                limit = 160 if k == 1 else 320
                assert abs(down) <= limit and abs(left) <= limit
                # The camera's row is 320 + down, its column 320 - left: as rendered, and as the names' degrees say.
                assert abs((tile_y - y) / 0.114 - down) <= 0.51
                assert abs((tile_x - x) / 0.114 - left) <= 0.51
                metres = 6371000 * np.pi / 180
                assert abs((north - latitude) * metres / 0.114 - down) <= 0.51
                assert abs((east - longitude) * metres * np.cos(np.deg2rad(north)) / 0.114 - left) <= 0.6


def test_vigor_lists_and_images_agree(vigor):
    for city in ("NewYork", "Seattle"):
        everything = read_labels(vigor, city, "pano_label_balanced.txt")
        halves = [read_labels(vigor, city, f"same_area_balanced_{split}.txt") for split in ("train", "test")]
        assert len(halves[0]) == len(halves[1]) == 12
        assert sorted(halves[0] + halves[1]) == sorted(everything)
        for folder in ("splits", "splits__corrected"):
            assert read_labels(vigor, city, "pano_label_balanced__corrected.txt", folder) == everything
            assert (vigor / folder / city / "satellite_list.txt").exists()
        for row in everything:
            assert Image.open(vigor / city / "panorama" / row[0]).size == (512, 256)
            assert Image.open(vigor / city / "satellite" / row[1]).size == (256, 256)
        assert len(os.listdir(vigor / city / "satellite")) == 25


def test_native_sizes(tmp_path):
    root = write_city("vigor", tmp_path / "v", cities=1, panoramas=2, tiles=9, jobs=1, native=True)
    assert Image.open(next((root / "NewYork" / "panorama").iterdir())).size == (2048, 1024)
    tile = Image.open(next((root / "NewYork" / "satellite").iterdir()))
    assert tile.size == (640, 640) and tile.format == "PNG"
    root = write_city("cvusa", tmp_path / "c", train=1, test=0, jobs=1, native=True)
    assert Image.open(root / "streetview" / "panos" / "0000001.jpg").size == (1232, 224)
    assert Image.open(root / "bingmap" / "19" / "0000001.jpg").size == (750, 750)


def test_a_finished_city_is_kept_and_other_arguments_are_refused(cvusa):
    before = files_of(cvusa)
    write_city("cvusa", cvusa, seed=3, train=10, test=5, jobs=1)
    assert files_of(cvusa) == before
    with pytest.raises(CityError, match="made with train 10, not 11"):
        write_city("cvusa", cvusa, seed=3, train=11, test=5)
    assert files_of(cvusa) == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--layout", "vigor", "--tiles", "9", "--panoramas", "500"], "--panoramas 500 do not fit on --tiles 9"),
        (["--layout", "vigor", "--tiles", "1", "--panoramas", "2"], "do not fit"),
        (["--layout", "vigor", "--panoramas", "1"], "--panoramas is 1: it must be at least 2"),
        (["--layout", "vigor", "--cities", "5"], "--cities is 5"),
        (["--layout", "cvusa", "--train", "0"], "--train is 0"),
        (["--layout", "cvact", "--test", "-4"], "--test is -4"),
        (["--layout", "cvusa", "--seed", "-1"], "--seed is -1"),
        (["--layout", "cvusa", "--jobs", "0"], "--jobs is 0"),
        (["--layout", "cvusa", "--jitter-metres", "60"], "--jitter-metres is 60"),
        (["--layout", "vigor", "--jitter-degrees", "5"], "for cvusa and cvact"),
    ],
)
def test_sizes_that_cannot_be_are_told_in_one_sentence(options, message, tmp_path, capsys):
    assert main([*options, "--out", str(tmp_path / "city")]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "city").exists()


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("draft")
    assert main(["--layout", "cvusa", "--out", str(tmp_path), "--train", "1", "--test", "0"]) == 2
    assert "holds no city" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert main(["--layout", "cvusa", "--out", str(tmp_path / "thesis.tex")]) == 2
    assert "a file is in the way" in capsys.readouterr().err


def test_an_unwritable_folder_is_told(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["--layout", "cvusa", "--out", str(tmp_path / "x"), "--train", "1", "--test", "0"]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told and told.count("\n") == 1


def test_a_full_disk_leaves_nothing_that_looks_complete(tmp_path, capsys, monkeypatch):
    replace, room = Path.replace, [4]

    def fill_up(source, target):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    options = ["--layout", "cvusa", "--out", str(tmp_path / "c"), "--train", "3", "--test", "1", "--jobs", "1"]
    monkeypatch.setattr(Path, "replace", fill_up)
    assert main(options) == 2
    told = capsys.readouterr().err
    assert "is full" in told and told.count("\n") == 1
    left = files_of(tmp_path / "c")
    assert "city.json" not in left and not any(name.endswith((".csv", ".partial")) for name in left)
    for name in left:
        if name.endswith(".jpg"):
            Image.open(tmp_path / "c" / name).load()
    monkeypatch.setattr(Path, "replace", replace)
    assert main(options) == 0
    assert "city.json" in files_of(tmp_path / "c")


def test_an_image_that_only_half_fits_is_not_kept(tmp_path):
    """Pillow alone takes no notice where the last of its writes falls short."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    write_image(tmp_path / "whole.jpg", pixels)
    size = (tmp_path / "whole.jpg").stat().st_size
    code = (
        "import resource, signal, numpy as np; from pathlib import Path; "
        "from dataset.city.writing import write_image; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size - 10}, {size - 10})); "
        "pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8); "
        f"write_image(Path({str(tmp_path)!r}) / 'half.jpg', pixels)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode != 0 and "OSError" in done.stderr
    assert os.listdir(tmp_path) == ["whole.jpg"]


def test_jittered_test_tiles_overlap_no_training_tile():
    city, away = City(0, 0, TOWN), 18.0
    places = choose_places(city, {"train": 900, "test": 300}, TILE, away)
    train, test = (np.array([(p.x, p.y) for p in places[name]]) for name in ("train", "test"))
    apart = np.abs(train[:, None] - test[None]).max(axis=2)
    assert apart.min() >= TILE + 2 * away


def test_check_data_looks_at_the_cities_that_are_there(tmp_path, capsys):
    write_city("vigor", tmp_path, cities=2, panoramas=6, tiles=25, jobs=1)
    for labels in ("original", "corrected"):
        check_data.main(["--dataset", "vigor", "--data-root", str(tmp_path), "--labels", labels])
        told = capsys.readouterr().out
        assert "train: 6 panoramas of NewYork, Seattle, 50 tiles, 0 left out" in told
        assert "100.00 % within 6 px" in told and "lacks" in told
        assert "cross-area train: 12 panoramas, 50 tiles, 0 left out" in told and "cross-area test: " in told
    data = VIGOR(tmp_path, "train", area=("NewYork", "Seattle"))
    lost = tmp_path / data.aerial[data.tiles[0, 2]]
    lost.unlink()
    check_data.main(["--dataset", "vigor", "--data-root", str(tmp_path)])
    told = capsys.readouterr().out
    assert "100.00 % within 6 px" in told and f"not there: {lost}" in told
    (tmp_path / "city.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--dataset", "vigor", "--data-root", str(tmp_path)])
    assert stop.value.code == 2 and "city.json cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--dataset", "cvusa", "--data-root", str(tmp_path)])
    assert stop.value.code == 2 and "is not a CVUSA folder" in capsys.readouterr().err
