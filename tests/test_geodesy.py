"""Metres between queries and what they retrieve, and places that lie near."""

import make_data
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import flags, record
from scipy.io import loadmat, savemat

import train
from dataset import CVACT, CVUSA, VIGOR
from model import FRGeo
from scripts import score_descriptors
from utils.geodesy import Positions, describe_errors, distances, nearest_places, neighbours

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


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 99), st.sampled_from(["degrees", "metres"]))
def test_nearest_places_are_those_of_all_distances(n, count, seed, kind):
    rng = np.random.default_rng(seed)
    places = np.array([40.7, -74.0]) + rng.uniform(-0.05, 0.05, (n, 2))
    places[rng.integers(n)] = places[rng.integers(n)]  # two in one spot
    found = nearest_places(places, kind, count)
    assert found.shape == (n, min(count, n - 1))
    for i in range(n):
        metres = distances(np.repeat(places[i : i + 1], n, 0), places, kind)
        assert i not in found[i]
        np.testing.assert_allclose(metres[found[i]], np.sort(np.delete(metres, i))[: found.shape[1]], atol=1e-6)


def test_many_places_in_one_spot_have_other_neighbours():
    assert all(i not in row for i, row in enumerate(nearest_places(np.zeros((30, 2)), "metres", 4)))


# Metres of evaluations.


@pytest.fixture
def evaluated(tmp_path):
    """evaluated(root, dataset, *more): the metrics of a network that was never trained, and all similarities."""

    def run(root, dataset, *more):
        torch.manual_seed(0)
        model = FRGeo(dataset, arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64), layer_scale=0.5)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
        weights = ["-e", "--weights", str(tmp_path / "w.pth")]
        metrics = train.main(flags(root, tmp_path / "run", *weights, *more, dataset=dataset))
        q, r = (np.load(tmp_path / "run" / f"{name}_global_descriptor.npy").astype(float) for name in ("grd", "sat"))
        return metrics, (q / np.linalg.norm(q, axis=1)[:, None]) @ (r / np.linalg.norm(r, axis=1)[:, None]).T

    return run


def test_cvact_test_is_scored_both_ways(evaluated, tmp_path):
    """A copy with a test split: cameras on a map so small that some stand within 5 m of each other."""
    root = make_data.write_cvact(tmp_path / "cvact", train=12, val=30)
    lists = loadmat(root / "ACT_data.mat", simplify_cells=True)
    lists["utm"] = np.random.default_rng(5).uniform((693_000, 6_090_000), (693_025, 6_090_025), (42, 2))
    savemat(root / "ACT_data.mat", {k: v for k, v in lists.items() if not k.startswith("__")})
    (root / "ANU_data_small").rename(root / "ANU_data_test")
    (root / "ANU_data_test" / "streetview" / f"{'x' * 20}20_grdView.jpg").unlink()
    found, s = evaluated(root, "cvact", "--eval-split", "test")
    assert score_descriptors.main([str(tmp_path / "run")]) == found
    expected = {"split": "test", "missing_pairs": 1, "queries": 29}
    assert record(tmp_path / "run") | expected == record(tmp_path / "run")
    utm = CVACT(root, "test").utm
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


def test_vigor_errors_are_metres_between_the_coordinates_in_the_names(roots, evaluated):
    found, s = evaluated(roots["vigor"], "vigor")
    data, errors = VIGOR(roots["vigor"], "test"), []
    for panorama, tile in zip(data.ground, (data.aerial[t] for t in s.argmax(axis=1)), strict=True):
        lat, lng = map(float, panorama.split(",")[1:3])
        north, east = map(float, tile[: -len(".png")].split("_")[-2:])
        metre = np.pi / 180 * 6_371_008.8
        errors.append(np.hypot((north - lat) * metre, (east - lng) * metre * np.cos(np.radians(lat))))
    assert found["mean error (m)"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert found["within 100 m"] == pytest.approx(100 * np.mean(np.array(errors) <= 100))
    query, gallery, _ = data.positions
    assert np.linalg.norm((query - gallery[data.labels]) * 111_195, axis=1).max() < 60  # its own tile is near


def test_coordinates_that_are_missing_or_of_another_style_leave_metres_out(roots):
    whole, data = CVACT(roots["cvact"], "val"), CVACT(roots["cvact"], "val")
    assert whole.positions is not None and whole.near_metres is None
    data.utm = np.where(data.utm == data.utm[0], np.nan, data.utm)
    assert data.positions is None
    data = VIGOR(roots["vigor"], "test")
    data.aerial = [path.replace("satellite_", "tile-") for path in data.aerial]
    assert data.positions is None


# split_locations/all.csv of CVUSA.


@pytest.fixture
def numbered(tmp_path):
    """A CVUSA copy whose pairs are numbered from 1, as the real ones."""
    root = make_data.write_cvusa(tmp_path / "cvusa", train=9, val=8, first=1)
    (root / "split_locations").mkdir()
    return root


@pytest.mark.parametrize("style", ["bare", "swapped", "named", "paths"])
def test_cvusa_coordinates_are_found_in_any_style(numbered, evaluated, tmp_path, style):
    rng = np.random.default_rng(7)
    lat, lng = rng.uniform(30, 45, 17), rng.uniform(-120, -70, 17)
    places = list(enumerate(zip(lat, lng, strict=True), start=1))
    lines = {
        "bare": [f"{a},{b}" for _, (a, b) in places],
        "swapped": [f"{b},{a}" for _, (a, b) in places],
        "named": ["id,zoom,lon,lat"] + [f"{i},30,{b},{a}" for i, (a, b) in places],
        "paths": [f"streetview/panos/{i:07d}.jpg, {a}, {b}" for i, (a, b) in places][::-1],
    }[style]
    (numbered / "split_locations" / "all.csv").write_text("\n".join(lines) + "\n")
    (numbered / "streetview/panos/0000012.jpg").unlink()
    query, gallery, kind = CVUSA(numbered, "val").positions
    np.testing.assert_allclose(query, np.stack([lat, lng], axis=1)[[9, 10, *range(12, 17)]])
    np.testing.assert_array_equal(query, gallery)
    assert kind == "degrees"
    if style == "bare":
        evaluated(numbered, "cvusa")
        assert set(METRES) <= record(tmp_path / "run").keys()
        assert "median error (m)" in (tmp_path / "run" / "log.txt").read_text()


BAD = ["", "lat,lng\n", "a,b\nc,d\n", "1,2\n3\n", "41.5,-87.25\n" * 16, "1.5,-87.25\n" * 17, "\x00"]


@pytest.mark.parametrize("text", BAD)
def test_cvusa_coordinates_that_cannot_be_told_leave_metres_out(numbered, text):
    assert CVUSA(numbered, "val").positions is None
    (numbered / "split_locations" / "all.csv").write_text(text)
    assert CVUSA(numbered, "val").positions is None
