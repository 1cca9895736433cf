"""The layouts on disk, and the way from an image file to what a network sees."""

from pathlib import Path

import make_data
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

import train
from dataset import CVACT, CVUSA, VIGOR, Pairs, transforms
from dataset.base import View
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, collate, normalise, to_device
from utils.options import UserError
from utils.paper import INPUT_SIZES

LAYOUTS = {"cvusa": CVUSA, "cvact": CVACT, "vigor": VIGOR, "pairs": Pairs}
SMALL = {"ground_size": (32, 128), "aerial_size": (64, 64)}
TORCHVISION = Compose([ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])


# What the lists name.


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_are_the_files_the_lists_name(roots, name):
    data, sizes = LAYOUTS[name](roots[name], "train"), INPUT_SIZES[name]
    for i in (0, len(data) - 1):
        images = [Image.open(path).convert("RGB") for path in (data.ground[i], data.aerial[data.labels[i]])]
        if name == "cvact":  # the sphere without zenith and nadir
            width, height = images[0].size
            images[0] = images[0].crop((0, height // 4, width, height // 4 * 3))
        assert data[i].index == i
        for found, image, size in zip(data[i], images, (sizes.ground, sizes.aerial), strict=False):
            expected = TORCHVISION(image.resize(size[::-1], Image.Resampling.BILINEAR))
            assert found.shape == (3, *size)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["cvusa", "cvact", "pairs"])
def test_one_to_one_layouts_match_by_name(roots, name):
    val = LAYOUTS[name](roots[name], "val", view="ground")
    assert len(val) == make_data.TEST and val.missing == 0 and val.semi_positives is None
    ground, aerial = (["".join(filter(str.isdigit, Path(p).name)) for p in paths] for paths in (val.ground, val.aerial))
    assert ground == aerial
    np.testing.assert_array_equal(val.labels, np.arange(make_data.TEST))


@pytest.mark.parametrize(("cell", "mat_inside"), [(False, False), (True, True)])
def test_cvact_lists_count_from_one_in_all_places_and_styles(tmp_path, monkeypatch, cell, mat_inside):
    make_data.write_cvact(tmp_path / "CVACT", train=3, val=2, cell=cell, mat_inside=mat_inside)
    images = tmp_path / "CVACT" / "ANU_data_small"
    monkeypatch.chdir(images)
    for root in (tmp_path, tmp_path / "CVACT", images, "."):
        data, val = CVACT(root, "train"), CVACT(root, "val")
        assert len(data) == 3 and data.ground[0].endswith(f"{'x' * 20}00_grdView.jpg")
        assert len(val) == 2 and val.ground[0].endswith("03_grdView.jpg") and val.missing == 0
        np.testing.assert_array_equal(val.utm[0], [40, 80])
    with pytest.raises(UserError, match="ANU_data_test"):
        CVACT(tmp_path / "CVACT", "test")
    (tmp_path / "CVACT" / "ANU_data_test").mkdir()
    next(tmp_path.rglob("ACT_data.mat")).rename(tmp_path / "CVACT" / "ANU_data_test" / "ACT_data.mat")
    assert len(CVACT(tmp_path / "CVACT", "val")) == 2


def test_missing_files_are_left_out_and_counted(tmp_path):
    make_data.write_cvact(tmp_path, train=6, val=5)
    ground, aerial = (
        tmp_path / "ANU_data_small" / name.format("x" * 20)
        for name in ("streetview/{}07_grdView.jpg", "satview_polish/{}09_satView_polish.jpg")
    )
    ground.unlink()
    aerial.unlink()
    val = CVACT(tmp_path, "val", view="ground")
    assert val.missing == 2 and len(val) == 3 and len(val.as_view("aerial")) == 3
    assert [int(path[-14:-12]) for path in val.ground] == [6, 8, 10]
    np.testing.assert_array_equal(val.labels, [0, 1, 2])
    np.testing.assert_array_equal(val.utm[:, 0], [70, 90, 110])
    ground.symlink_to(tmp_path / "gone.jpg")
    aerial.mkdir()
    assert CVACT(tmp_path, "val", view="ground").missing == 2
    assert val[-1].index == len(val) - 1


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_vigor_labels_point_at_the_covering_tiles(roots, cross, split):
    halves = {"train": make_data.CITIES[:2], "test": make_data.CITIES[2:]}
    cities = halves[split] if cross else make_data.CITIES
    data = VIGOR(roots["vigor"], split, cross=cross)
    assert len(data.aerial) == len(cities) * make_data.GRID**2
    per_city = 30 + make_data.TEST if cross else {"train": 30, "test": make_data.TEST}[split]
    assert len(data.ground) == len(cities) * per_city
    assert [path.split("/")[-3] for path in data.aerial[:: make_data.GRID**2]] == list(cities)
    for panorama, tiles, deltas in zip(data.ground, data.tiles, data.deltas, strict=True):
        position = np.array(panorama.rsplit("/", 1)[1].split(",")[1:3], dtype=float)
        for tile in (data.aerial[t] for t in tiles):
            assert tile.split("/")[-3] == panorama.split("/")[-3]
            # Names carry the grid node that the camera was drawn around; offsets stay inside the tile.
            assert np.abs(np.array(tile[:-4].split("_")[-2:], dtype=float) - position).max() < 0.0005
        assert np.abs(deltas).max() <= 320


def test_vigor_reads_both_layouts_and_both_label_versions(tmp_path):
    make_data.write_vigor(tmp_path / "a", train=4, test=3)
    views = {"layout": "views", "suffix": "__corrected", "splits": "splits__corrected"}
    make_data.write_vigor(tmp_path / "b", train=4, test=3, **views)
    a, b = VIGOR(tmp_path / "a", "test"), VIGOR(tmp_path / "b", "test", labels="corrected")
    assert a.missing == b.missing == 0 and len(a) == len(b) == 12
    np.testing.assert_array_equal(a.tiles, b.tiles)
    for name, labels, other in (("b", "original", "corrected"), ("a", "corrected", "original")):
        with pytest.raises(UserError, match=f"pass --vigor-labels {other}"):
            VIGOR(tmp_path / name, "test", labels=labels)


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
    assert [part.aerial[t] for t in part.tiles[part.ground.index(whole.ground[1])] if t >= 0] == names


def test_vigor_cities_make_up_training_and_gallery(roots, tmp_path):
    def run(name, *more):
        train.main(make_data.flags(roots["vigor"], tmp_path / name, *more, dataset="vigor"))
        record = make_data.record(tmp_path / name)
        return record["dataset"], record["queries"], record["gallery"]

    size = make_data.GRID**2
    two = run("two", *make_data.ADAMW, "--epochs", "1", "--vigor-cities", "Seattle", "Chicago")
    assert two == ("vigor_Seattle_Chicago", 2 * make_data.TEST, 2 * size)
    weights = ["--weights", str(tmp_path / "two" / "checkpoint.pth.tar")]
    assert run("one", "-e", "--vigor-cities", "NewYork", *weights) == ("vigor_NewYork", make_data.TEST, size)
    assert VIGOR(roots["vigor"], "test", area=("NewYork",)).aerial[0].split("/")[-3] == "NewYork"


def test_lists_with_a_byte_order_mark_and_loose_spaces_are_read(tmp_path):
    make_data.write_vigor(tmp_path, train=4, test=3)
    whole = VIGOR(tmp_path, "test")
    for path in tmp_path.glob("splits/*/*.txt"):
        lines = path.read_text().splitlines()
        path.write_bytes(b"\xef\xbb\xbf" + "".join(line.replace(" ", " \t") + " \r\n" for line in lines).encode())
    loose = VIGOR(tmp_path, "test")
    assert loose.missing == loose.missing_tiles == 0 and loose.ground == whole.ground and loose.aerial == whole.aerial
    np.testing.assert_array_equal(loose.tiles, whole.tiles)


def test_one_evaluation_split_has_two_names_and_an_empty_one_is_told(roots, tmp_path):
    assert CVUSA(roots["cvusa"], "test").ground == CVUSA(roots["cvusa"], "val").ground
    for cross in (False, True):
        val, test = (VIGOR(roots["vigor"], split, cross=cross) for split in ("val", "test"))
        assert val.split == "test" and val.ground == test.ground and val.aerial == test.aerial
    make_data.write_vigor(tmp_path, train=4, test=0)
    with pytest.raises(UserError, match=r"same_area_balanced_test\.txt is empty"):
        VIGOR(tmp_path, "test")


# What is wrong with a copy.


@pytest.mark.parametrize("name", LAYOUTS)
def test_wrong_roots_show_the_expected_tree_and_what_was_found(tmp_path, name):
    (tmp_path / "holiday" / "empty").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for root, words in (
        ("nowhere", "does not exist"), ("file", "not a folder"), ("holiday/empty", "it holds nothing"),
        ("holiday", "it holds empty/"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words) as error:
            LAYOUTS[name](tmp_path / root, LAYOUTS[name].splits[1])
        assert LAYOUTS[name].tree in str(error.value)


def test_damaged_lists_are_told(tmp_path):
    def told(words, layout, split, path, content):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            layout(tmp_path / layout.name, split)

    for name in ("cvusa", "cvact", "vigor"):
        make_data.WRITERS[name](tmp_path / name, 2, 2)
    told(r"val-19zl\.csv line 1", CVUSA, "val", tmp_path / "cvusa/splits/val-19zl.csv", b"only one column\n")
    path = tmp_path / "vigor/splits/Seattle/same_area_balanced_test.txt"
    good = path.read_bytes()
    told("line 3 has 3 columns", VIGOR, "test", path, good + b"one two three\n")
    told(r"satellite_list\.txt lacks", VIGOR, "test", path, good.replace(b"satellite_", b"sat_", 1))
    for content in (b"not a mat file at all" * 20, b""):
        told("cannot be read as CVACT's lists", CVACT, "val", tmp_path / "cvact/ACT_data.mat", content)


def test_own_pairs_are_named_once_and_have_one_image_a_view(tmp_path):
    make_data.write_pairs(tmp_path, train=3, val=2)
    lines = (tmp_path / "val.txt").read_text()
    (tmp_path / "val.txt").write_text(lines + "p3")
    with pytest.raises(UserError, match=r"val\.txt line 3 names p3 again, after line 1"):
        Pairs(tmp_path, "val")
    (tmp_path / "val.txt").write_text(lines)
    make_data.write_image(tmp_path / "aerial" / "p4.webp", (64, 64), 0)
    with pytest.raises(UserError, match=r"holds both .*keep one"):
        Pairs(tmp_path, "val")


def test_damaged_low_and_absent_images_are_told(tmp_path):
    make_data.write_cvact(tmp_path, train=2, val=2)
    data = CVACT(tmp_path, "val")
    whole, damaged = map(Path, data.ground)
    damaged.write_bytes(damaged.read_bytes()[:400])
    assert data[0].ground.shape == (3, 128, 512)
    with pytest.raises(UserError, match=f"{damaged} cannot be read"):
        data[1]
    make_data.write_image(whole, (64, 3), 0)
    for fast in (False, True):
        with pytest.raises(UserError, match=f"{whole} has only 64 x 3 pixels"):
            CVACT(tmp_path, "val", fast_decode=fast)[0]
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="none of the pairs"):
        CVACT(tmp_path, "val")
    assert len(CVACT(tmp_path, "val", check_files=False)) == 2


# Pixels.


@pytest.mark.parametrize(("kind", "dtype"), [("I;16", "<u2"), ("I;16B", ">u2"), ("I", np.int32), ("F", np.float32)])
def test_grey_images_of_more_than_8_bits(tmp_path, kind, dtype):
    grey, path = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8), tmp_path / "grey.tif"
    Image.fromarray((grey.astype(np.uint16) * 257).astype(dtype)).save(path)
    if kind in ("I", "F"):
        with pytest.raises(UserError, match="8 bits"):
            transforms.read_image(path)
    else:
        np.testing.assert_array_equal(np.array(transforms.read_image(path)), np.repeat(grey[:, :, None], 3, axis=2))


def test_normalise_gives_torchvisions_numbers():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 14, 3), dtype=np.uint8))
    pixels[0, :, :, :] = torch.arange(252, dtype=torch.uint8).reshape(9, 14, 2).repeat(1, 1, 2)[..., :3]
    expected = torch.stack([TORCHVISION(Image.fromarray(image.numpy())) for image in pixels])
    batch = collate([View(image.movedim(-1, 0), i) for i, image in enumerate(pixels)])
    assert torch.equal(to_device(batch.image, torch.device("cpu")), expected)
    assert torch.equal(normalise(pixels[1].movedim(-1, 0)), expected[1])
    assert to_device(batch.image, torch.device("cpu")).is_contiguous(memory_format=torch.channels_last)


def test_batches_of_loader_processes_are_channels_last(roots):
    data = CVUSA(roots["cvusa"], "train", pixels=True, **SMALL)
    for workers in (0, 1):
        batch = next(iter(DataLoader(data, batch_size=4, num_workers=workers, collate_fn=collate)))
        assert batch.ground.dtype == torch.uint8 and batch.ground.shape == (4, 3, 32, 128)
        assert batch.ground.is_contiguous(memory_format=torch.channels_last)
        assert batch.index.tolist() == [0, 1, 2, 3]


def test_fast_decoding_keeps_the_picture(tmp_path):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8))
    smooth.resize((1024, 512), Image.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    plain, fast = (ImageTransform((64, 128), fast=f).pixels(tmp_path / "a.jpg").astype(int) for f in (False, True))
    assert fast.shape == plain.shape
    assert 0 < np.abs(fast - plain).mean() < 2


# Fields of view, orientations and augmentations.


def test_fields_of_view_are_fixed_in_evaluation_and_change_in_training(roots):
    kwargs = SMALL | {"seed": 5}
    whole = CVUSA(roots["cvusa"], "val", "ground", **kwargs)[2].image
    for fov in (90, 360):
        val = CVUSA(roots["cvusa"], "val", "ground", fov=fov, orientation="unknown", **kwargs)
        for _ in range(2):
            assert torch.equal(val[2].image, transforms.crop_field_of_view(whole, fov, transforms.fov_angle(5, 2)))
        train_set, seen = CVUSA(roots["cvusa"], "train", fov=fov, orientation="unknown", **kwargs), []
        for epoch in range(4):
            train_set.set_epoch(epoch)
            seen.append(train_set[0].ground)
            assert torch.equal(seen[-1], train_set[0].ground)
        assert any(not torch.equal(seen[0], other) for other in seen[1:])
    assert CVUSA(roots["cvusa"], "val", fov=90).orientation == "unknown"
    for fov in (90, 180):
        ahead = CVUSA(roots["cvusa"], "val", "ground", fov=fov, orientation="aligned", **kwargs)[2].image
        width = 128 * fov // 360
        assert torch.equal(ahead, whole[..., 64 - width // 2 : 64 + width // 2])  # north in the middle
    with pytest.raises(ValueError, match="orientation"):
        CVUSA(roots["cvusa"], "val", orientation="north")


def test_a_field_of_view_goes_around_the_seam():
    view = transforms.crop_field_of_view(torch.arange(360.0).expand(3, 2, 360), 90, 30)
    assert view.shape == (3, 2, 90)
    assert view[0, 0].tolist() == [*range(330, 360), *range(60)]


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
    aerial, radii = torch.randn(3, 64, 64), (9.3, 17.7, 30.1)
    ground = torch.stack([seen_from_the_centre(aerial, 48, radius) for radius in radii], dim=-2)
    turned_ground, turned_aerial = transforms.turn_pair(ground, aerial, turns, mirror)
    for row, radius in enumerate(radii):
        assert torch.equal(turned_ground[:, row], seen_from_the_centre(turned_aerial, 48, radius))
    assert torch.equal(turned_aerial, aerial) == (turns == 0 and not mirror)
    if turns == 1 and not mirror:  # clockwise: what was north, the top, is now east, the right
        assert torch.equal(turned_aerial[:, :, -1], aerial[:, 0])


def test_augmentation_is_for_training_pairs_and_changes_with_the_epoch(roots):
    kwargs = SMALL | {"seed": 4}
    plain, turned = (CVUSA(roots["cvusa"], "train", augment=augment, **kwargs) for augment in (False, True))
    draws = set()
    for epoch in range(20):
        turned.set_epoch(epoch)
        draws.add(draw := transforms.turn_of(4, 3, epoch))
        expected = transforms.turn_pair(plain[3].ground, plain[3].aerial, *draw)
        assert torch.equal(turned[3].ground, expected[0]) and torch.equal(turned[3].aerial, expected[1])
    assert len(draws) > 4
    val = CVUSA(roots["cvusa"], "val", view="aerial", augment=True, **kwargs)
    assert torch.equal(val[0].image, CVUSA(roots["cvusa"], "val", view="aerial", **kwargs)[0].image)


def test_jitter_scales_colours_and_leaves_grey_grey():
    image = torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8)
    assert torch.equal(transforms.jitter_colours(image, 0.0, np.random.default_rng(0)), image)
    changed = transforms.jitter_colours(image, 0.4, np.random.default_rng(0))
    assert changed.dtype == torch.uint8 and not torch.equal(changed, image)
    grey = transforms.jitter_colours(torch.full((3, 8, 8), 100, dtype=torch.uint8), 0.3, np.random.default_rng(1))
    assert len(grey.unique()) == 1 and 60 <= int(grey[0, 0, 0]) <= 135


def test_dropped_patches_are_whole_and_of_the_asked_share():
    image = torch.full((3, 128, 512), 7, dtype=torch.uint8)
    dropped = transforms.drop_patches(image, 0.3, np.random.default_rng(0))
    assert torch.equal(image, torch.full_like(image, 7))
    blank = (dropped != 7).all(dim=0)
    assert torch.equal(blank, (dropped != 7).any(dim=0))
    patches = blank.unfold(0, 16, 16).unfold(1, 16, 16).flatten(2)
    assert torch.equal(patches.any(2), patches.all(2))
    assert 0.2 < patches.all(2).float().mean() < 0.4
    torch.testing.assert_close(dropped[:, blank].float().mean(1) / 255, torch.tensor(IMAGENET_MEAN), atol=0.01, rtol=0)


def test_disturbed_pairs_differ_by_epoch_and_not_by_reading_them_again(roots):
    kwargs = SMALL | {"pixels": True, "seed": 4}
    plain = CVUSA(roots["cvusa"], "train", **kwargs)
    data = CVUSA(roots["cvusa"], "train", colour_jitter=0.3, patch_dropout=0.2, **kwargs)
    first = data[3]
    assert torch.equal(first.ground, data[3].ground) and torch.equal(first.aerial, data[3].aerial)
    assert not torch.equal(first.ground, plain[3].ground) and not torch.equal(first.aerial, plain[3].aerial)
    data.set_epoch(1)
    assert not torch.equal(first.ground, data[3].ground)
    assert torch.equal(data.as_view("ground")[3].image, plain.as_view("ground")[3].image)  # evaluation sees it as it is
