"""Metres between queries and what they retrieve, and tiles that lie near."""

import json

import make_data
import numpy as np
import pytest
import torch
from make_data import flags
from scipy.io import loadmat, savemat

import train
from dataset import CVACT, CVUSA, VIGOR
from utils.geodesy import Positions, describe_errors, distances, neighbours
from utils.metrics import rank_queries

TWO = ["--multiprocessing-distributed", "--nprocs", "2"]
METRES = ("median error (m)", "mean error (m)", "within 25 m", "within 50 m", "within 100 m")


def test_known_distances():
    paris, london, sydney = (48.8566, 2.3522), (51.5074, -0.1278), (-33.8688, 151.2093)
    a, b = np.array([paris, paris, paris, (0, 179.5)]), np.array([london, sydney, paris, (0, -179.5)])
    found = distances(a, b, "degrees")
    np.testing.assert_allclose(found, [343_560, 16_960_700, 0, 111_195], rtol=1e-3)
    np.testing.assert_allclose(distances(b, a, "degrees"), found)
    assert distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]), "metres") == [5.0]
    with pytest.raises(ValueError, match="kind is 'feet'"):
        distances(a, b, "feet")


def test_small_distances_agree_with_the_flat_map():
    rng = np.random.default_rng(0)
    a = rng.uniform((24, -125), (50, -66), (100, 2))
    north, east = rng.uniform(-100, 100, (2, 100))
    metre = 180 / np.pi / 6_371_008.8
    b = a + np.stack([north * metre, east * metre / np.cos(np.radians(a[:, 0]))], axis=1)
    np.testing.assert_allclose(distances(a, b, "degrees"), np.hypot(north, east), rtol=1e-4)


def test_errors_are_described_as_plain_computation_does():
    errors = np.array([0.0, 25.0, 26.0, 99.0, 1000.0])
    assert describe_errors(errors) == dict(zip(METRES, (26.0, 230.0, 40.0, 60.0, 80.0), strict=True))


@pytest.mark.parametrize("rows", [(0, 40), (13, 29), (7, 7)])
def test_neighbours_are_all_within_the_radius(monkeypatch, rows):
    monkeypatch.setattr("utils.geodesy.BLOCK", 11)
    rng = np.random.default_rng(1)
    query, gallery = rng.uniform(0, 30, (40, 2)), rng.uniform(0, 30, (60, 2))
    found = set()
    for i, j in neighbours(Positions(query, gallery, "metres"), 5, *rows):
        assert i.dtype == j.dtype == np.int64
        found |= set(zip(i.tolist(), j.tolist(), strict=True))
    apart = np.linalg.norm(query[slice(*rows), None] - gallery, axis=2)
    assert found == set(zip(*(x.tolist() for x in np.nonzero(apart <= 5)), strict=True))


@pytest.mark.parametrize("semi", [False, True])
def test_rank_of_the_best_tile_that_lies_near(semi):
    rng = np.random.default_rng(2)
    query, gallery = rng.standard_normal((50, 8)), rng.standard_normal((90, 8))
    labels, others = rng.integers(0, 90, 50), rng.integers(0, 90, (50, 3)) if semi else None
    near = rng.random((50, 90)) < 0.05
    i, j = np.nonzero(near[10:45])
    blocks = [(i[:20], j[:20]), (i[20:], j[20:])]
    found = rank_queries(query, gallery, labels, others, rows=(10, 45), near=blocks, chunk=16)
    near[np.arange(50), labels] = True
    q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    s = q @ r.T
    best = np.where(near, s, -np.inf).max(axis=1)
    np.testing.assert_array_equal(found.near, (s > best[:, None] + 1e-12).sum(axis=1)[10:45])
    plain = rank_queries(query, gallery, labels, others, rows=(10, 45))
    assert plain.near is None
    for a, b in zip(plain[:3], found[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def similarities(folder):
    q, r = (np.load(folder / f"{name}_global_descriptor.npy").astype(float) for name in ("grd", "sat"))
    return (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (r / np.linalg.norm(r, axis=1, keepdims=True)).T


@pytest.fixture
def cvact(tmp_path):
    """A copy with a test split: cameras on a map so small that some stand within 5 m of each other."""
    root = make_data.write_cvact(tmp_path / "cvact", train=12, val=30)
    lists = loadmat(root / "ACT_data.mat", simplify_cells=True)
    lists["utm"] = np.random.default_rng(5).uniform((693_000, 6_090_000), (693_025, 6_090_025), (42, 2))
    savemat(root / "ACT_data.mat", {k: v for k, v in lists.items() if not k.startswith("__")})
    (root / "ANU_data_small").rename(root / "ANU_data_test")
    (root / "ANU_data_test" / "streetview" / f"{'x' * 20}20_grdView.jpg").unlink()
    return root


def random_weights(path, dataset):
    """A checkpoint of the tests' small network, never trained."""
    from model import FRGeo

    torch.manual_seed(0)
    model = FRGeo(dataset, arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64), layer_scale=0.5)
    torch.save({"state_dict": model.state_dict()}, path)
    return ["-e", "--weights", str(path)]


def test_cvact_test_is_scored_both_ways(cvact, tmp_path):
    weights = random_weights(tmp_path / "w.pth", "cvact")
    run = ["--eval-split", "test", *weights]
    found = train.main(flags(cvact, tmp_path / "one", *run, dataset="cvact"))
    assert train.main(flags(cvact, tmp_path / "two", *run, *TWO, dataset="cvact")) == found
    again = ["-e", "--eval-split", "test", "--descriptors", str(tmp_path / "one")]
    assert train.main(flags(cvact, tmp_path / "again", *again, dataset="cvact")) == found
    record = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert record["split"] == "test" and record["missing_pairs"] == 1 and record["queries"] == 29
    utm = CVACT(cvact, "test").utm
    s = similarities(tmp_path / "one")
    apart = np.linalg.norm(utm[:, None] - utm, axis=2)
    best = np.where(apart <= 5, s, -np.inf).max(axis=1)
    for name, score in (("R@{}", np.diag(s)), ("R@{} (5 m)", best)):
        rank = (s > score[:, None] + 1e-12).sum(axis=1)
        for k in (1, 5, 10):
            assert found[name.format(k)] == pytest.approx(100 * np.mean(rank < k))
    assert found["R@5 (5 m)"] > found["R@5"]
    errors = apart[np.arange(29), s.argmax(axis=1)]
    assert found["median error (m)"] == pytest.approx(np.median(errors))
    assert found["within 25 m"] == pytest.approx(100 * np.mean(errors <= 25))


def test_val_is_scored_by_exact_pair_alone_and_coordinates_that_are_missing_leave_metres_out(roots, tmp_path):
    weights = random_weights(tmp_path / "w.pth", "cvact")
    found = train.main(flags(roots["cvact"], tmp_path / "r", *weights, dataset="cvact"))
    assert set(METRES) <= set(found) and "R@1 (5 m)" not in found
    data = CVACT(roots["cvact"], "val")
    data.utm = data.utm.copy()
    data.utm[0, 0] = np.nan
    assert data.positions is None


def test_vigor_errors_are_metres_between_the_coordinates_in_the_names(roots, tmp_path):
    weights = random_weights(tmp_path / "w.pth", "vigor")
    found = train.main(flags(roots["vigor"], tmp_path / "one", *weights, dataset="vigor"))
    assert train.main(flags(roots["vigor"], tmp_path / "two", *weights, *TWO, dataset="vigor")) == found
    data = VIGOR(roots["vigor"], "test")
    top = similarities(tmp_path / "one").argmax(axis=1)
    errors = []
    for panorama, tile in zip(data.ground, (data.aerial[t] for t in top), strict=True):
        lat, lng = map(float, panorama.split(",")[1:3])
        north, east = map(float, tile[: -len(".png")].split("_")[-2:])
        metre = np.pi / 180 * 6_371_008.8
        errors.append(np.hypot((north - lat) * metre, (east - lng) * metre * np.cos(np.radians(lat))))
    assert found["mean error (m)"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert found["within 100 m"] == pytest.approx(100 * np.mean(np.array(errors) <= 100))
    query, gallery, _ = data.positions
    assert np.linalg.norm((query - gallery[data.labels]) * 111_195, axis=1).max() < 60  # its own tile is near


def test_vigor_names_of_another_style_leave_metres_out(roots):
    data = VIGOR(roots["vigor"], "test")
    data.aerial = [path.replace("satellite_", "tile-") for path in data.aerial]
    assert data.positions is None


def locations(style, count):
    """all.csv of pairs 1 .. count in one of the styles it might have."""
    rng = np.random.default_rng(7)
    lat, lng = rng.uniform(30, 45, count), rng.uniform(-120, -70, count)
    lines = {
        "bare": [f"{a},{b}" for a, b in zip(lat, lng, strict=True)],
        "swapped": [f"{b},{a}" for a, b in zip(lat, lng, strict=True)],
        "named": ["id,zoom,lon,lat"] + [f"{i + 1},30,{lng[i]},{lat[i]}" for i in range(count)],
        "paths": [f"streetview/panos/{i + 1:07d}.jpg, {lat[i]}, {lng[i]}" for i in range(count)][::-1],
    }[style]
    return "\n".join(lines) + "\n", lat, lng


@pytest.fixture
def numbered(tmp_path):
    """A CVUSA copy whose pairs are numbered from 1, as the real ones."""
    root = make_data.write_cvusa(tmp_path / "cvusa", train=9, val=8)
    for old in range(16, -1, -1):
        for folder in ("bingmap/19", "streetview/panos"):
            (root / folder / f"{old:07d}.jpg").rename(root / folder / f"{old + 1:07d}.jpg")
    for split, ids in (("train", range(1, 10)), ("val", range(10, 18))):
        lines = [f"bingmap/19/{i:07d}.jpg,streetview/panos/{i:07d}.jpg,x.png\n" for i in ids]
        (root / "splits" / f"{split}-19zl.csv").write_text("".join(lines))
    (root / "split_locations").mkdir()
    return root


@pytest.mark.parametrize("style", ["bare", "swapped", "named", "paths"])
def test_cvusa_coordinates_are_found_in_any_style(numbered, style):
    text, lat, lng = locations(style, 17)
    (numbered / "split_locations" / "all.csv").write_text(text)
    (numbered / "streetview/panos/0000012.jpg").unlink()
    data = CVUSA(numbered, "val")
    query, gallery, kind = data.positions
    kept = [9, 10, *range(12, 17)]
    np.testing.assert_allclose(query, np.stack([lat, lng], axis=1)[kept])
    np.testing.assert_array_equal(query, gallery)
    assert kind == "degrees"


@pytest.mark.parametrize(
    "text",
    ["", "lat,lng\n", "a,b\nc,d\n", "1,2\n3\n", "41.5,-87.25\n" * 16, "1.5,-87.25\n" * 17, "\x00"],
)
def test_cvusa_coordinates_that_cannot_be_told_leave_metres_out(numbered, text):
    assert CVUSA(numbered, "val").positions is None
    (numbered / "split_locations" / "all.csv").write_text(text)
    assert CVUSA(numbered, "val").positions is None


def test_metres_of_cvusa_reach_metrics_json(numbered, tmp_path):
    (numbered / "split_locations" / "all.csv").write_text(locations("bare", 17)[0])
    train.main(flags(numbered, tmp_path / "r", *random_weights(tmp_path / "w.pth", "cvusa")))
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert set(METRES) <= set(record) and "median error (m)" in (tmp_path / "r" / "log.txt").read_text()


def test_vigor_cities_make_up_training_and_gallery(roots, tmp_path):
    common = ["--op", "adamw", "--lr", "1e-3", "-b", "8", "--epochs", "1", "--vigor-cities", "Seattle", "Chicago"]
    train.main(flags(roots["vigor"], tmp_path / "two", *common, dataset="vigor"))
    record = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert record["dataset"] == "vigor_Seattle_Chicago" and record["queries"] == 2 * make_data.TEST
    assert record["gallery"] == 2 * make_data.GRID**2
    other = ["-e", "--vigor-cities", "NewYork", "--weights", str(tmp_path / "two" / "checkpoint.pth.tar")]
    train.main(flags(roots["vigor"], tmp_path / "other", *other, dataset="vigor"))
    record = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert (record["queries"], record["gallery"]) == (make_data.TEST, make_data.GRID**2)
    assert VIGOR(roots["vigor"], "test", area=("NewYork",)).aerial[0].split("/")[-3] == "NewYork"
