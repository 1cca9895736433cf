import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from criterion import WBLoss
from model import FeatureRecombination, FRGeo
from model.depthwise import DepthwiseConv2d
from utils.errors import UserError
from utils.paper import TRANSGEO_ARCH

SIZES = {"ground_size": (32, 128), "aerial_size": (64, 64)}


def small(**kwargs):
    torch.manual_seed(0)
    return FRGeo(**{"arch": "test_convnext", **SIZES, **kwargs})


def test_regions_follow_the_compass():
    """A mark in one compass quadrant shows in the same region of both views."""
    ground, aerial = FeatureRecombination("ground"), FeatureRecombination("aerial")
    places = {0: (slice(4, 8), slice(0, 4)), 1: (slice(0, 4), slice(0, 4)), 2: (slice(0, 4), slice(4, 8))}
    places[3] = (slice(4, 8), slice(4, 8))  # SW, NW, NE, SE as (rows, columns) with north up
    for region, (rows, columns) in places.items():
        panorama, tile = torch.zeros(1, 1, 4, 16), torch.zeros(1, 1, 8, 8)
        panorama[..., 4 * region : 4 * region + 4] = 1  # S..W, W..N, N..E, E..S from left to right
        tile[..., rows, columns] = 1
        expected = torch.nn.functional.one_hot(torch.tensor(region), 4).float()[None, :, None]
        assert torch.equal(ground(panorama), expected)
        assert torch.equal(aerial(tile), expected)


@pytest.mark.parametrize("regions", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [16, 22])  # cells in a side of the aerial map
@pytest.mark.parametrize("width", [16, 20])  # of the ground map; 20 is VIGOR's
def test_any_number_of_regions_follows_the_compass(regions, size, width):
    """A wedge of an aerial map, and the columns of a panorama that show it, mark one and the same region."""
    ground, aerial = FeatureRecombination("ground", regions), FeatureRecombination("aerial", regions)
    centre = torch.arange(size) + 0.5 - size / 2
    south, west = centre[:, None].expand(size, size), -centre[None, :].expand(size, size)
    bearing = torch.rad2deg(torch.atan2(west, south)) % 360  # clockwise from south, as panoramas run
    for region in range(regions):
        left, right = 360 / regions * region, 360 / regions * (region + 1)
        tile = ((left < bearing) & (bearing < right)).float()[None, None]
        panorama = torch.zeros(1, 1, 4, width)
        panorama[..., width * region // regions : width * (region + 1) // regions] = 1
        expected = torch.nn.functional.one_hot(torch.tensor(region), regions).float()
        torch.testing.assert_close(ground(panorama)[0, :, 0], expected)
        found = aerial(tile)[0, :, 0]
        assert found.argmax() == region
        assert found[region] > 0.85  # the half cells of a diagonal
        assert found.sum() == found[region]


def test_eight_regions_are_the_quadrants_halved():
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
    four, eight = (FeatureRecombination("aerial", n)(x) for n in (4, 8))
    torch.testing.assert_close((eight[:, 0::2] + eight[:, 1::2]) / 2, four)
    ones = FeatureRecombination("aerial", 8)(torch.ones(1, 1, 7, 10))
    torch.testing.assert_close(ones, torch.ones(1, 8, 1))


@settings(deadline=None, max_examples=60)
@given(h=st.integers(1, 9), w=st.integers(4, 23), view=st.sampled_from(["ground", "aerial"]))
def test_regions_are_plain_averages_with_cuts_at_integer_quotients(h, w, view):
    h = max(h, 2) if view == "aerial" else h
    x = np.random.default_rng(h * 100 + w).standard_normal((2, 3, h, w))
    if view == "ground":
        c = w // 4
        parts = [x[..., :c], x[..., c : 2 * c], x[..., 2 * c : 3 * c], x[..., 3 * c :]]
    else:
        r, c = h // 2, w // 2
        parts = [x[..., r:, :c], x[..., :r, :c], x[..., :r, c:], x[..., r:, c:]]
    expected = np.stack([p.mean((-2, -1)) for p in parts], axis=1)
    np.testing.assert_allclose(FeatureRecombination(view)(torch.from_numpy(x)).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("view", "shape"), [("ground", (4, 3)), ("aerial", (1, 8)), ("aerial", (8, 1))])
def test_a_map_too_small_for_four_regions_is_refused(view, shape):
    with pytest.raises(ValueError, match="use a"):
        FeatureRecombination(view)(torch.zeros(1, 2, *shape))


def test_regions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="regions is 3"):
        FeatureRecombination("ground", 3)
    with pytest.raises(ValueError, match="8 columns"):
        FeatureRecombination("ground", 8)(torch.zeros(1, 2, 4, 7))
    with pytest.raises(ValueError, match="one region, not 4"):
        small(pool="gap", regions=4)


def test_the_view_is_told_not_guessed():
    """A square ground map is still cut into strips."""
    x = torch.randn(1, 2, 8, 8)
    strips = torch.stack([x[..., i : i + 2].mean((-2, -1)) for i in (0, 2, 4, 6)], dim=1)
    torch.testing.assert_close(FeatureRecombination("ground")(x), strips)
    with pytest.raises(ValueError, match="view"):
        FeatureRecombination("map")


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        ("test_convnext", 64),
        ("test_vit", 64),
        ("resnet10t", 512),
        ("convnextv2_atto", 320),
        ("deit_tiny_patch16_224", 192),
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_networks_yield_descriptors_and_use_every_weight(arch, width, share):
    sizes = {"ground_size": (64, 256), "aerial_size": (128, 128)}
    model = small(arch=arch, share=share, **sizes)
    q, k = model(torch.randn(2, 3, 64, 256), torch.randn(2, 3, 128, 128))
    assert q.shape == k.shape == (2, 4 * width) and model.dim == 4 * width
    (q.sum() + (k * torch.randn_like(k)).sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    separate = sum(p.numel() for p in model.query_net.parameters())
    assert sum(p.numel() for p in model.parameters()) == (separate if share else pytest.approx(2 * separate, rel=0.1))


def test_global_average_is_the_mean_over_the_map():
    model = small(pool="gap").eval()
    assert model.dim == 64
    x = torch.randn(2, 3, 32, 128)
    backbone = model.query_net.backbone
    torch.testing.assert_close(model.query_net(x), backbone.norm(backbone(x).mean((-2, -1))))


def test_descriptor_is_the_normalised_regions_in_order():
    model = small().eval()
    x = torch.randn(2, 3, 64, 64)
    backbone = model.reference_net.backbone
    m = backbone(x)  # (2, 64, 2, 2)
    expected = torch.cat([backbone.norm(m[:, :, r, c]) for r, c in ((1, 0), (0, 0), (0, 1), (1, 1))], dim=1)
    torch.testing.assert_close(model.reference_net(x), expected)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="no network of this name"):
        small(arch="convnext_tinny")
    with pytest.raises(ValueError, match="pool"):
        small(pool="max")
    with pytest.raises(ValueError, match="dataset"):
        FRGeo(dataset="cvusa2")


def test_pretrained_file_in_either_key_style(tmp_path):
    """timm's names and Facebook's give the same network; a classifier in the file is left out."""
    import timm

    torch.manual_seed(5)
    donor = timm.create_model("convnext_atto", num_classes=10)
    with torch.no_grad():
        for p in donor.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    state = donor.state_dict()
    facebook = {}
    for key, value in state.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        for i in range(4):
            key = key.replace(f"stages.{i}.blocks.", f"stages.{i}.").replace(
                f"stages.{i}.downsample.", f"downsample_layers.{i}."
            )
        key = key.replace("head.norm", "norm").replace("head.fc", "head")
        facebook[key] = value.reshape(value.shape[:2]) if "pwconv" in key and value.ndim == 4 else value
    torch.save(state, tmp_path / "timm.pth")
    torch.save({"model": facebook}, tmp_path / "facebook.pth")
    a, b = (FRGeo(arch="convnext_atto", pretrained=tmp_path / f, **SIZES) for f in ("timm.pth", "facebook.pth"))
    for (name, p), (_, q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(a.query_net.backbone.norm.weight, state["head.norm.weight"])
    assert torch.equal(a.reference_net.backbone.net.stem[0].weight, state["stem.0.weight"])


def test_deit_at_the_papers_sizes_from_weights_of_224_pixels(tmp_path):
    """TransGeo's stage 1: a position embedding of 14 x 14 is fitted to each view's map; two prefix tokens stay."""
    import timm

    torch.manual_seed(6)
    state = timm.create_model(TRANSGEO_ARCH, num_classes=10).state_dict()
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    torch.save({"model": state}, tmp_path / "deit.pth")
    model = FRGeo("cvusa", arch=TRANSGEO_ARCH, pretrained=tmp_path / "deit.pth").eval()
    assert model.dim == 4 * 384
    prefix, square = state["pos_embed"][0, :2], state["pos_embed"][:, 2:].reshape(1, 14, 14, 384).permute(0, 3, 1, 2)
    images = torch.randn(2, 3, 128, 512), torch.randn(2, 3, 256, 256)
    for encoder, image, grid in zip((model.query_net, model.reference_net), images, ((8, 32), (16, 16)), strict=True):
        net = encoder.backbone.net
        fitted = torch.nn.functional.interpolate(square, grid, mode="bicubic", antialias=True)
        torch.testing.assert_close(net.pos_embed[0, 2:], fitted.flatten(2)[0].T)
        assert torch.equal(net.pos_embed[0, :2], prefix)
        assert torch.equal(net.blocks[11].mlp.fc2.weight, state["blocks.11.mlp.fc2.weight"])
        assert torch.equal(encoder.backbone.norm.weight, state["norm.weight"])
        with torch.no_grad():
            feature_map = encoder.backbone(image)
            found = encoder(image)
        assert feature_map.shape == (2, 384, *grid)
        regions = FeatureRecombination("ground" if grid == (8, 32) else "aerial")(feature_map)
        torch.testing.assert_close(found, encoder.backbone.norm(regions).flatten(1))
        assert found.std() > 0 and not torch.equal(found[:, :384], found[:, 384:768])


def test_pretrained_files_that_do_not_fit_are_told(tmp_path):
    torch.save({"stem.0.weight": torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="missing"):
        small(pretrained=tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="no such file"):
        small(pretrained=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        small(pretrained=tmp_path / "text.pth")


def test_weights_that_cannot_be_fetched_name_the_way_out(monkeypatch):
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, **kwargs)

    monkeypatch.setattr("model.backbone.timm.create_model", offline)
    monkeypatch.setattr("model.backbone._reach_hub", lambda tag: None)
    with pytest.raises(UserError, match=r"convnext_tiny\.fb_in1k.*convnext_tiny_1k_224_ema\.pth.*--pretrained PATH"):
        FRGeo(pretrained=True)


def test_layer_scale_is_set_where_there_is_one():
    gammas = [p for name, p in small(layer_scale=0.25).named_parameters() if name.endswith("gamma")]
    assert len(gammas) > 4 and all(bool((p == 0.25).all()) for p in gammas)
    with pytest.raises(UserError, match="has no layer scale"):
        small(arch="resnet10t", layer_scale=0.25)


def test_an_unreachable_hub_is_told_without_retries(monkeypatch):
    def refuse(address, timeout):
        raise OSError(f"no route to {address[0]}")

    monkeypatch.setattr("model.backbone.getproxies", dict)
    monkeypatch.setattr("model.backbone.socket.create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"no route to.*--pretrained none"):
        small(arch="convnext_atto", pretrained=True)


def gradients(model, images):
    model.zero_grad()
    q, k = model(*images)
    WBLoss()(q, k)[0].backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("arch", ["test_convnext", "test_vit", "test_resnet"])
def test_recomputed_activations_give_the_same_gradients(arch):
    torch.manual_seed(0)
    model = FRGeo(arch=arch, ground_size=(64, 256), aerial_size=(128, 128)).eval()
    images = torch.randn(4, 3, 64, 256), torch.randn(4, 3, 128, 128)
    plain = gradients(model, images)
    model.tune(grad_checkpointing=True)
    for a, b in zip(plain, gradients(model, images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_compiled_encoders_give_the_same_gradients_and_keys():
    torch.manual_seed(0)
    model = FRGeo(arch="test_convnext", ground_size=(32, 128), aerial_size=(64, 64))
    keys = list(model.state_dict())
    images = torch.randn(4, 3, 32, 128), torch.randn(4, 3, 64, 64)
    plain = gradients(model, images)
    model.tune(compiled=True, backend="aot_eager")  # traced and split like inductor's, without minutes of C++
    for a, b in zip(plain, gradients(model, images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert list(model.state_dict()) == keys


def test_bfloat16_gradients_are_near_those_of_float32():
    model = small(layer_scale=0.5)
    assert sum(type(m) is DepthwiseConv2d for m in model.modules()) > 4
    images = torch.randn(4, 3, 32, 128), torch.randn(4, 3, 64, 64)
    plain = torch.cat([g.flatten() for g in gradients(model, images)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.cat([g.flatten() for g in gradients(model, images)])
        model.tune(compiled=True, backend="aot_eager")
        compiled = torch.cat([g.flatten() for g in gradients(model, images)])
    assert 1e-4 < (half - plain).norm() / plain.norm() < 0.05
    assert (compiled - half).norm() / plain.norm() < 0.05


@pytest.mark.parametrize("options", [{"padding": 3}, {"stride": 2, "bias": False, "dilation": 2}])
def test_depthwise_weight_gradients_are_summed_in_float32(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 7, groups=8, **options)
    net = nn.Sequential(conv)
    DepthwiseConv2d.adopt(net)
    x = torch.randn(5, 8, 16, 20).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    grad = torch.randn_like(y)
    y.backward(grad)
    # float64, from what bfloat16 leaves of inputs, weights and gradients
    other = nn.Conv2d(8, 8, 7, groups=8, **options).double()
    other.load_state_dict({name: value.bfloat16().double() for name, value in conv.state_dict().items()})
    exact = x.detach().double().requires_grad_()
    true = other(exact)
    true.backward(grad.double())
    torch.testing.assert_close(y.double(), true, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-2, atol=1e-2)
    for a, b in zip(conv.parameters(), other.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-5, atol=1e-5)
