"""The network: regions, descriptors, pretrained weights, and its faster ways against the plain one."""

import re

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parity import parity_convnext
from torch import nn
from torch._dynamo import lookup_backend

from criterion import WBLoss
from model import FeatureRecombination, FRGeo
from model.depthwise import DepthwiseConv2d
from utils.options import UserError
from utils.paper import TRANSGEO_ARCH

SIZES = {"ground_size": (32, 128), "aerial_size": (64, 64)}


def small(**kwargs):
    torch.manual_seed(0)
    return FRGeo(**{"arch": "test_convnext", **SIZES, **kwargs})


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


@pytest.mark.parametrize(
    ("view", "regions", "shape", "told"),
    [
        ("ground", 4, (4, 3), "fewer than the 4 columns"), ("ground", 8, (4, 7), "8 columns"),
        ("aerial", 4, (1, 8), "use a larger"), ("aerial", 4, (8, 1), "use a larger"),
        ("ground", 3, (8, 8), "regions is 3"), ("map", 4, (8, 8), "view is 'map'"),
    ],
)  # fmt: skip
def test_regions_that_cannot_be_are_refused(view, regions, shape, told):
    with pytest.raises(ValueError, match=told):
        FeatureRecombination(view, regions)(torch.zeros(1, 2, *shape))


WIDTHS = {"test_convnext": 64, "test_vit": 64, "resnet10t": 512, "convnextv2_atto": 320, "deit_tiny_patch16_224": 192}


@pytest.mark.parametrize(("arch", "width"), WIDTHS.items())
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


CELLS = [(1, 0), (0, 0), (0, 1), (1, 1)]  # of a map of 2 x 2, south west first, clockwise


@pytest.mark.parametrize(("pool", "regions"), [("gap", [CELLS]), ("frm", [[cell] for cell in CELLS])])
def test_a_descriptor_is_the_normalised_means_of_the_regions_in_order(pool, regions):
    model = small(pool=pool).eval()
    x, backbone = torch.randn(2, 3, 64, 64), model.reference_net.backbone
    cells = backbone(x)  # (2, 64, 2, 2)
    means = [torch.stack([cells[:, :, r, c] for r, c in region]).mean(0) for region in regions]
    assert model.dim == 64 * len(regions)
    torch.testing.assert_close(model.reference_net(x), torch.cat([backbone.norm(mean) for mean in means], dim=1))


def test_networks_that_cannot_be_are_told():
    for error, told, wrong in (
        (UserError, "no network of this name", {"arch": "convnext_tinny"}),
        (UserError, "has no layer scale", {"arch": "resnet10t", "layer_scale": 0.25}),
        (ValueError, "pool", {"pool": "max"}),
        (ValueError, "dataset", {"dataset": "cvusa2"}),
        (ValueError, "one region, not 4", {"pool": "gap", "regions": 4}),
    ):
        with pytest.raises(error, match=told):
            small(**wrong)


def test_pretrained_file_in_either_key_style(tmp_path):
    """timm's names and Facebook's give the same network; a classifier in the file is left out."""
    torch.manual_seed(5)
    donor = timm.create_model("convnext_atto", num_classes=10)
    with torch.no_grad():
        for p in donor.parameters():
            p.copy_(torch.randn_like(p) * 0.1)
    state = donor.state_dict()
    facebook = {}
    for key, value in state.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", key)
        key = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
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
    with pytest.raises(UserError, match="does not exist"):
        small(pretrained=tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        small(pretrained=tmp_path / "text.pth")


def test_layer_scale_is_set_where_there_is_one():
    gammas = [p for name, p in small(layer_scale=0.25).named_parameters() if name.endswith("gamma")]
    assert len(gammas) > 4 and all(bool((p == 0.25).all()) for p in gammas)


def test_weights_that_cannot_be_fetched_name_the_way_out_without_retries(monkeypatch):
    def refuse(address, timeout):
        raise OSError(f"no route to {address[0]}")

    monkeypatch.setattr("model.backbone.getproxies", dict)
    monkeypatch.setattr("model.backbone.socket.create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    told = r"convnext_tiny\.fb_in1k .*no route to.*convnext_tiny_1k_224_ema\.pth.*--pretrained PATH.*--pretrained none"
    with pytest.raises(UserError, match=told):
        small(arch="convnext_tiny", pretrained=True)


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
    model.optimize(grad_checkpointing=True)
    for a, b in zip(plain, gradients(model, images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("amp", [False, True])
def test_compiled_encoders_give_the_same_gradients_and_keys(amp):
    model, graphs = small(arch=parity_convnext.__name__), []
    keys, images, target = list(model.state_dict()), torch.randn(4, 3, 32, 128), torch.randn(4, 512)

    def gradient():
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            q = model.query_net(images)
        WBLoss()(q, target)[0].backward()
        return torch.cat([p.grad.flatten() for p in model.query_net.parameters()])

    def backend(graph, inputs):  # traced and split like inductor's, without minutes of C++
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    plain = gradient()
    model.optimize(compiled=True, backend=backend)
    assert (gradient() - plain).norm() < (0.05 if amp else 1e-5) * plain.norm()
    assert graphs and list(model.state_dict()) == keys


def test_bfloat16_gradients_are_near_those_of_float32():
    model = small(layer_scale=0.5)
    assert sum(type(m) is DepthwiseConv2d for m in model.modules()) > 4
    images = torch.randn(4, 3, 32, 128), torch.randn(4, 3, 64, 64)
    plain = torch.cat([g.flatten() for g in gradients(model, images)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = torch.cat([g.flatten() for g in gradients(model, images)])
    assert 1e-4 < (half - plain).norm() / plain.norm() < 0.05


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
