from pathlib import Path
from types import SimpleNamespace

import make_data
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from dataset import CVACT, CVUSA, VIGOR, Pairs, build_datasets
from dataset.transforms import crop_field_of_view, fov_angle, read_image, turn_of, turn_pair
from utils.errors import UserError
from utils.images import IMAGENET_MEAN, IMAGENET_STD

LAYOUTS = {"cvusa": CVUSA, "cvact": CVACT, "vigor": VIGOR, "pairs": Pairs}


def reference_tensor(path, size, crop_middle=False):
    """The recipe of all three benchmarks, step by step."""
    image = Image.open(path).convert("RGB")
    if crop_middle:
        h = image.height
        image = image.crop((0, h // 4, image.width, h // 4 * 3))
    image = F.to_tensor(F.resize(image, list(size), F.InterpolationMode.BILINEAR, antialias=True))
    return (image - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_are_the_files_the_lists_name(roots, name):
    train = LAYOUTS[name](roots[name], "train")
    sizes = ((320, 640), (320, 320)) if name == "vigor" else ((128, 512), (256, 256))
    for i in (0, len(train) - 1):
        pair = train[i]
        assert pair.index == i
        torch.testing.assert_close(pair.ground, reference_tensor(train.ground[i], sizes[0], name == "cvact"))
        tile = train.aerial[train.labels[i]]
        torch.testing.assert_close(pair.aerial, reference_tensor(tile, sizes[1]))
    assert pair.ground.shape == (3, *sizes[0])


@pytest.mark.parametrize("name", ["cvusa", "cvact", "pairs"])
def test_one_to_one_layouts_match_by_name(roots, name):
    val = LAYOUTS[name](roots[name], "val", view="ground")
    assert len(val) == make_data.TEST and val.missing == 0 and val.semi_positives is None
    digits = [
        ["".join(c for c in path.rsplit("/", 1)[1] if c.isdigit()) for path in p] for p in (val.ground, val.aerial)
    ]
    assert digits[0] == digits[1]
    np.testing.assert_array_equal(val.labels, np.arange(make_data.TEST))


def test_cvact_indices_count_from_one(roots):
    train, val = CVACT(roots["cvact"], "train"), CVACT(roots["cvact"], "val")
    assert train.ground[0].endswith(f"{'x' * 20}00_grdView.jpg")
    assert val.ground[0].endswith(f"{make_data.TRAIN:02d}_grdView.jpg")
    np.testing.assert_array_equal(val.utm[0], [(make_data.TRAIN + 1) * 10, (make_data.TRAIN + 1) * 20])


@pytest.mark.parametrize("mat_inside", [False, True])
@pytest.mark.parametrize("cell", [False, True])
def test_cvact_lists_in_both_places_and_both_styles(tmp_path, cell, mat_inside):
    make_data.write_cvact(tmp_path / "CVACT", train=3, val=2, cell=cell, mat_inside=mat_inside)
    for root in (tmp_path, tmp_path / "CVACT", tmp_path / "CVACT" / "ANU_data_small"):
        data = CVACT(root, "val")
        assert len(data) == 2 and data.missing == 0
    with pytest.raises(UserError, match="ANU_data_test"):
        CVACT(tmp_path / "CVACT", "test")


def test_missing_files_are_left_out_and_counted(tmp_path):
    make_data.write_cvact(tmp_path, train=6, val=5)
    images = tmp_path / "ANU_data_small"
    name = "x" * 20
    (images / "streetview" / f"{name}07_grdView.jpg").unlink()
    (images / "satview_polish" / f"{name}09_satView_polish.jpg").unlink()
    val = CVACT(tmp_path, "val", view="ground")
    assert val.missing == 2 and len(val) == 3 and len(val.as_view("aerial")) == 3 and len(val.utm) == 3
    assert [int(path[-14:-12]) for path in val.ground] == [6, 8, 10]
    np.testing.assert_array_equal(val.labels, [0, 1, 2])
    np.testing.assert_array_equal(val.utm[:, 0], [70, 90, 110])
    (images / "streetview" / f"{name}07_grdView.jpg").symlink_to(tmp_path / "gone.jpg")
    (images / "satview_polish" / f"{name}09_satView_polish.jpg").mkdir()
    assert CVACT(tmp_path, "val", view="ground").missing == 2
    assert val[-1].index == len(val) - 1


def test_vigor_labels_point_at_the_covering_tiles(roots):
    for cross, split, cities in (
        (False, "train", make_data.CITIES),
        (False, "test", make_data.CITIES),
        (True, "train", make_data.CITIES[:2]),
        (True, "test", make_data.CITIES[2:]),
    ):
        data = VIGOR(roots["vigor"], split, cross=cross)
        assert len(data.aerial) == len(cities) * make_data.GRID**2
        per_city = 30 + make_data.TEST if cross else {"train": 30, "test": make_data.TEST}[split]
        assert len(data.ground) == len(cities) * per_city
        assert [path.split("/")[-3] for path in data.aerial[:: make_data.GRID**2]] == list(cities)
        for panorama, tiles, deltas in zip(data.ground, data.tiles, data.deltas, strict=True):
            city, position = panorama.split("/")[-3], panorama.rsplit("/", 1)[1].split(",")[1:3]
            for tile, delta in zip(tiles, deltas, strict=True):
                assert data.aerial[tile].split("/")[-3] == city
                lat, lng = data.aerial[tile][:-4].split("_")[-2:]
                # names carry the grid node the camera was drawn around; offsets stay inside the tile
                assert abs(float(lat) - float(position[0])) < 0.0005 and abs(float(lng) - float(position[1])) < 0.0005
                assert np.abs(delta).max() <= 320


def test_vigor_reads_both_layouts_and_both_label_versions(tmp_path):
    make_data.write_vigor(tmp_path / "a", train=4, test=3)
    make_data.write_vigor(
        tmp_path / "b", train=4, test=3, layout="views", suffix="__corrected", splits="splits__corrected"
    )
    a = VIGOR(tmp_path / "a", "test", view="ground")
    b = VIGOR(tmp_path / "b", "test", view="ground", labels="corrected")
    assert a.missing == b.missing == 0 and len(a) == len(b) == 12
    np.testing.assert_array_equal(a.tiles, b.tiles)
    with pytest.raises(UserError, match="give --vigor-labels corrected"):
        VIGOR(tmp_path / "b", "test")
    with pytest.raises(UserError, match="give --vigor-labels original"):
        VIGOR(tmp_path / "a", "test", labels="corrected")


def test_vigor_tiles_that_are_missing_leave_the_gallery(tmp_path):
    make_data.write_vigor(tmp_path, train=4, test=3)
    whole = VIGOR(tmp_path, "test", view="ground")
    tile = whole.tiles[0, 0]
    names = [whole.aerial[t] for t in whole.tiles[1] if t != tile]
    (tmp_path / whole.aerial[tile]).unlink()
    part = VIGOR(tmp_path, "test", view="ground")
    gone = int((whole.labels == tile).sum())
    assert part.missing == gone and len(part) == len(whole) - gone and len(part.aerial) == len(whole.aerial) - 1
    assert part.missing_tiles == 1 and whole.missing_tiles == 0
    shown = [part.aerial[t] for t in part.tiles[part.ground.index(whole.ground[1])] if t >= 0]
    assert shown == names


def test_lists_with_a_byte_order_mark_and_loose_spaces_are_read(tmp_path):
    make_data.write_vigor(tmp_path, train=4, test=3)
    whole = VIGOR(tmp_path, "test")
    for path in tmp_path.glob("splits/*/*.txt"):
        lines = path.read_text().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + "".join(line.replace(" ", " \t") + " \r\n" for line in lines).encode())
    loose = VIGOR(tmp_path, "test")
    assert loose.missing == loose.missing_tiles == 0 and loose.ground == whole.ground and loose.aerial == whole.aerial
    np.testing.assert_array_equal(loose.tiles, whole.tiles)


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "F"])
def test_grey_images_of_more_than_8_bits(tmp_path, kind):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    path = tmp_path / "grey.tif"
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}[kind]
    Image.fromarray((grey.astype(np.uint16) * 257).astype(dtype)).save(path)
    if kind in ("I", "F"):
        with pytest.raises(UserError, match="8 bits"):
            read_image(path)
    else:
        np.testing.assert_array_equal(np.array(read_image(path)), np.repeat(grey[:, :, None], 3, axis=2))


def test_cvact_is_found_from_inside_and_by_either_list(tmp_path, monkeypatch):
    make_data.write_cvact(tmp_path, train=3, val=3)
    monkeypatch.chdir(tmp_path / "ANU_data_small")
    assert len(CVACT(".", "val")) == 3
    lists = next(tmp_path.rglob("ACT_data.mat"))
    (tmp_path / "ANU_data_test").mkdir(exist_ok=True)
    lists.rename(tmp_path / "ANU_data_test" / lists.name)
    assert len(CVACT(tmp_path, "val")) == 3


def test_damaged_lists_are_told(tmp_path):
    make_data.write_cvusa(tmp_path / "cvusa", train=2, val=2)
    (tmp_path / "cvusa/splits/val-19zl.csv").write_text("only one column\n")
    with pytest.raises(UserError, match=r"val-19zl\.csv line 1"):
        CVUSA(tmp_path / "cvusa", "val")
    make_data.write_vigor(tmp_path / "vigor", train=2, test=2)
    path = tmp_path / "vigor/splits/Seattle/same_area_balanced_test.txt"
    good = path.read_text()
    path.write_text(good + "one two three\n")
    with pytest.raises(UserError, match="line 3 has 3 columns"):
        VIGOR(tmp_path / "vigor", "test")
    path.write_text(good.replace("satellite_", "sat_", 1))
    with pytest.raises(UserError, match=r"satellite_list\.txt lacks"):
        VIGOR(tmp_path / "vigor", "test")
    make_data.write_cvact(tmp_path / "cvact", train=2, val=2)
    (tmp_path / "cvact/ACT_data.mat").write_bytes(b"not a mat file at all" * 20)
    with pytest.raises(UserError, match="cannot be read as CVACT's lists"):
        CVACT(tmp_path / "cvact", "val")
    (tmp_path / "cvact/ACT_data.mat").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as CVACT's lists"):
        CVACT(tmp_path / "cvact", "val")


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_roots_show_the_expected_tree_and_what_was_found(tmp_path, name):
    split = LAYOUTS[name].splits[1]
    with pytest.raises(UserError, match="does not exist") as error:
        LAYOUTS[name](tmp_path / "nowhere", split)
    assert LAYOUTS[name].tree in str(error.value)
    with pytest.raises(UserError, match="it holds nothing"):
        LAYOUTS[name](tmp_path, split)
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UserError, match="it holds holiday/"):
        LAYOUTS[name](tmp_path, split)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        LAYOUTS[name](tmp_path / "file", split)


def test_a_copy_without_any_image_is_refused(tmp_path):
    make_data.write_cvusa(tmp_path, train=2, val=2)
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="none of the pairs"):
        CVUSA(tmp_path, "train")
    assert len(CVUSA(tmp_path, "train", check_files=False)) == 2


def test_a_damaged_image_is_named(tmp_path):
    make_data.write_cvusa(tmp_path, train=2, val=2)
    data = CVUSA(tmp_path, "val")
    path = data.ground[1]
    with open(path, "rb") as file:
        start = file.read(400)
    with open(path, "wb") as file:
        file.write(start)
    assert data[0].ground.shape == (3, 128, 512)
    with pytest.raises(UserError, match=path):
        data[1]


def test_an_image_too_low_to_be_cropped_is_named(tmp_path):
    make_data.write_cvact(tmp_path, train=2, val=2)
    path = CVACT(tmp_path, "val").ground[0]
    make_data.write_image(Path(path), (64, 3), 0)
    for fast in (False, True):
        with pytest.raises(UserError, match="only 64 x 3 pixels"):
            CVACT(tmp_path, "val", fast_decode=fast)[0]


def test_own_pairs_are_named_once_and_have_one_image_a_view(tmp_path):
    make_data.write_pairs(tmp_path, train=3, val=2)
    ids = (tmp_path / "val.txt").read_text().split()
    (tmp_path / "val.txt").write_text("\n".join([*ids, ids[0]]))
    with pytest.raises(UserError, match=f"names {ids[0]} more than once"):
        Pairs(tmp_path, "val")
    (tmp_path / "val.txt").write_text("\n".join(ids))
    make_data.write_image(tmp_path / "aerial" / f"{ids[1]}.webp", (64, 64), 0)
    with pytest.raises(UserError, match=r"holds both .*keep one"):
        Pairs(tmp_path, "val")


def test_one_evaluation_split_has_two_names_and_an_empty_one_is_told(roots, tmp_path):
    assert CVUSA(roots["cvusa"], "test").ground == CVUSA(roots["cvusa"], "val").ground
    for cross in (False, True):
        val, test = (VIGOR(roots["vigor"], split, cross=cross) for split in ("val", "test"))
        assert val.split == "test" and val.ground == test.ground and val.aerial == test.aerial
    make_data.write_vigor(tmp_path)
    for path in tmp_path.rglob("same_area_balanced_test.txt"):
        path.write_text("")
    with pytest.raises(UserError, match="name no pairs of split test"):
        VIGOR(tmp_path, "test")


def test_fields_of_view_are_fixed_in_evaluation_and_change_in_training(roots):
    kwargs = {"ground_size": (32, 128), "fov": 90, "seed": 5}
    val = CVUSA(roots["cvusa"], "val", view="ground", **kwargs)
    whole = CVUSA(roots["cvusa"], "val", view="ground", ground_size=(32, 128))
    assert val[2].image.shape == (3, 32, 32)
    assert torch.equal(val[2].image, val[2].image)
    assert torch.equal(val[2].image, crop_field_of_view(whole[2].image, 90, fov_angle(5, 2)))
    train = CVUSA(roots["cvusa"], "train", **kwargs)
    seen = []
    for epoch in range(4):
        train.set_epoch(epoch)
        seen.append(train[0].ground)
        assert torch.equal(seen[-1], train[0].ground)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_a_field_of_view_goes_around_the_seam():
    columns = torch.arange(360.0).expand(3, 2, 360)
    view = crop_field_of_view(columns, 90, 30)
    assert view.shape == (3, 2, 90)
    assert view[0, 0].tolist() == [*range(330, 360), *range(60)]


def test_orientation_is_a_choice_of_its_own(roots):
    kwargs = {"ground_size": (32, 128), "seed": 5}
    whole = CVUSA(roots["cvusa"], "val", "ground", **kwargs)
    for fov in (90, 180):
        ahead = CVUSA(roots["cvusa"], "val", "ground", fov=fov, orientation="aligned", **kwargs)[2].image
        width = 128 * fov // 360
        assert torch.equal(ahead, whole[2].image[..., 64 - width // 2 : 64 + width // 2])  # north in the middle
    turned = CVUSA(roots["cvusa"], "val", "ground", orientation="unknown", **kwargs)
    assert torch.equal(turned[2].image, whole[2].image.roll(int(128 * fov_angle(5, 2) / 360), -1))
    assert torch.equal(turned[2].image, turned[2].image)
    train = CVUSA(roots["cvusa"], "train", orientation="unknown", **kwargs)
    before = train[0].ground
    train.set_epoch(1)
    assert not torch.equal(train[0].ground, before)
    with pytest.raises(ValueError, match="orientation"):
        CVUSA(roots["cvusa"], "val", orientation="north")


@pytest.mark.parametrize("cross", [False, True])
def test_build_datasets_gives_what_a_run_needs(roots, cross):
    args = SimpleNamespace(
        dataset="vigor", data_root=roots["vigor"], cross=cross, vigor_labels="original", ground_size=(32, 64),
        aerial_size=(32, 32), fov=0, augment=False, seed=1, evaluate=False,
    )  # fmt: skip
    train, query, reference = build_datasets(args)
    assert train[0].ground.shape == (3, 32, 64) and query[0].image.shape == (3, 32, 64)
    assert reference[0].image.shape == (3, 32, 32) and len(reference) == len(query.aerial)
    assert query.semi_positives.shape == (len(query), 3)
    args.evaluate = True
    assert build_datasets(args)[0] is None


def seen_from_the_centre(aerial, width, radius):
    """The colours at `radius` pixels from the centre in `width` directions, south first, then west, north, east."""
    azimuth = np.pi + 2 * np.pi * (np.arange(width) + 0.5) / width  # from north, clockwise
    centre = aerial.shape[-1] / 2
    rows = np.floor(centre - radius * np.cos(azimuth)).astype(int)
    columns = np.floor(centre + radius * np.sin(azimuth)).astype(int)
    return aerial[..., rows, columns]


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_pairs_stay_aligned_pixel_for_pixel(turns, mirror):
    aerial = torch.randn(3, 64, 64)
    ground = torch.stack([seen_from_the_centre(aerial, 48, radius) for radius in (9.3, 17.7, 30.1)], dim=-2)
    turned_ground, turned_aerial = turn_pair(ground, aerial, turns, mirror)
    for row, radius in enumerate((9.3, 17.7, 30.1)):
        assert torch.equal(turned_ground[:, row], seen_from_the_centre(turned_aerial, 48, radius))
    assert torch.equal(turned_aerial, aerial) == (turns == 0 and not mirror)


def test_a_clockwise_turn_brings_north_to_east():
    ground, aerial = torch.zeros(3, 4, 16), torch.zeros(3, 9, 9)
    ground[..., 8], aerial[:, 0, 4] = 1, 1  # north: the centre column, the top row
    turned_ground, turned_aerial = turn_pair(ground, aerial, 1, False)
    assert turned_ground[..., 12].all() and turned_aerial[:, 4, 8].all()


def test_augmentation_is_for_training_pairs_and_changes_with_the_epoch(roots):
    kwargs = {"ground_size": (32, 128), "aerial_size": (64, 64), "seed": 4}
    plain, train = CVUSA(roots["cvusa"], "train", **kwargs), CVUSA(roots["cvusa"], "train", augment=True, **kwargs)
    draws = set()
    for epoch in range(20):
        train.set_epoch(epoch)
        draw = turn_of(4, 3, epoch)
        expected = turn_pair(plain[3].ground, plain[3].aerial, *draw)
        assert torch.equal(train[3].ground, expected[0]) and torch.equal(train[3].aerial, expected[1])
        draws.add(draw)
    assert len(draws) > 4
    val = CVUSA(roots["cvusa"], "val", view="aerial", augment=True, **kwargs)
    assert torch.equal(val[0].image, CVUSA(roots["cvusa"], "val", view="aerial", **kwargs)[0].image)
