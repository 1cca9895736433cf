"""A timm network as a feature-map encoder: (B, 3, H, W) -> (B, C, h, w), and its final LayerNorm apart.

The final norm leaves the network because FRM averages first and normalises afterwards.
"""

import socket
import sys
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from model.convnext import FoldedBlock
from model.depthwise import DepthwiseConv2d
from utils.checkpoint import describe_misfits
from utils.options import UserError, scarcity
from utils.paper import TRANSGEO_ARCH

# The ImageNet-1k weights that the published models start from.
IMAGENET_TAGS = {"convnext_tiny": "convnext_tiny.fb_in1k", TRANSGEO_ARCH: f"{TRANSGEO_ARCH}.fb_in1k"}
FACEBOOK_FILES = {
    "convnext_tiny": "https://dl.fbaipublicfiles.com/convnext/convnext_tiny_1k_224_ema.pth",
    TRANSGEO_ARCH: "https://dl.fbaipublicfiles.com/deit/deit_small_distilled_patch16_224-649709d9.pth",
}
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
NORM_EPS = 1e-6


class Backbone(nn.Module):
    """A timm network without its head, giving its last feature map before any final norm.

    Args:
        arch: timm name; anything with `forward_intermediates` (ConvNeXt, ViT, DeiT, Swin, ResNet, ...).
        image_size: (H, W) in pixels; used by networks whose position embedding has a size.
        pretrained: False, True ("imagenet"), or the path of a file in timm's or Facebook's key style.
        any_size: let a position embedding follow the input (one network for both views).
        layer_scale: value that random weights' layer scale starts with; None for the network's own.

    Shapes: (B, 3, H, W) -> (B, width, h, w).

    Attributes:
        width: channels of the feature map.  norm: the network's final LayerNorm, to be applied by the caller.
    """

    def __init__(self, arch, image_size, pretrained=False, any_size=False, layer_scale=None):
        super().__init__()
        net = _create(arch, image_size, pretrained, any_size, layer_scale)
        norm = _final_norm(net)
        DepthwiseConv2d.adopt(net)
        FoldedBlock.adopt(net)
        net.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
        for name in ("head", "fc_norm", "head_drop", "attn_pool"):
            if isinstance(getattr(net, name, None), nn.Module):
                setattr(net, name, nn.Identity())
        self.net = net
        self.width = self.map_shape(image_size)[0]
        self.norm = nn.LayerNorm(self.width, eps=NORM_EPS)
        if norm is not None and norm.weight.shape == self.norm.weight.shape:
            self.norm.eps = norm.eps
            self.norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})

    def forward(self, images):
        return self.net.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]

    def checkpoint_gradients(self):
        """Recompute activations in the backward pass instead of keeping them.

        Raises:
            UserError: timm does not offer it for this network.
        """
        try:
            self.net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            name = type(self.net).__name__
            raise UserError(f"--grad-checkpointing: timm does not support it for {name}; omit it") from error

    @torch.no_grad()
    def map_shape(self, image_size):
        """(C, h, w) of the map of one image of that size, found by running the network on zeros.

        Raises:
            ValueError: the network cannot take images of that size.
        """
        was_training = self.net.training
        self.net.eval()
        try:
            return tuple(self(torch.zeros(1, 3, *image_size)).shape[1:])
        except (RuntimeError, AssertionError) as error:
            height, width = image_size
            raise ValueError(f"images of {height} x {width} cannot pass through the network: {error}") from error
        finally:
            self.net.train(was_training)


def _create(arch, image_size, pretrained, any_size, layer_scale):
    """A timm network without classifier, with random or pretrained weights."""
    name = arch.split(".")[0]
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        hint = f"similar names: {', '.join(similar)}" if similar else "timm.list_models() lists the names"
        raise UserError(f"--arch {arch}: timm {timm.__version__} has no network of this name; {hint}")
    # Networks with a position embedding need the image size; the others refuse the argument (TypeError).
    sized = {"img_size": tuple(image_size)}
    for kwargs in ([{**sized, "dynamic_img_size": True}] if any_size else []) + [sized, {}]:
        try:
            net = timm.create_model(arch, pretrained=False, num_classes=0, **kwargs)
            break
        except TypeError as error:
            if not kwargs:
                raise _unbuildable(arch, image_size, error) from error
        except (RuntimeError, AssertionError, ValueError) as error:
            raise _unbuildable(arch, image_size, error) from error
    if not (hasattr(net, "forward_intermediates") and hasattr(net, "prune_intermediate_layers")):
        raise UserError(
            f"--arch {arch} gives no feature map in timm {timm.__version__} (it lacks forward_intermediates); pass a "
            "ConvNeXt, ViT, DeiT, Swin or ResNet"
        )
    if layer_scale is not None:
        scales = [p for key, p in net.named_parameters() if key.rsplit(".", 1)[-1] == "gamma" and p.ndim == 1]
        if not scales:
            raise UserError(f"--layer-scale: --arch {arch} has no layer scale; omit it")
        for scale in scales:
            nn.init.constant_(scale, layer_scale)
    if pretrained:
        _load(net, arch, _imagenet_state(arch, kwargs) if pretrained is True else _file_state(net, pretrained))
    return net


def _unbuildable(arch, image_size, error):
    if scarcity(error):  # too little memory
        return error
    return UserError(
        f"--arch {arch} cannot be built for images of {image_size[0]} x {image_size[1]}: {error}; "
        "pass another --ground-size, --aerial-size or --arch"
    )


def _final_norm(net):
    """The norm between the last feature map and the classifier, where the network has one."""
    head = getattr(net, "head", None)
    for owner in (head, net):
        for name in ("norm", "norm_pre", "fc_norm"):
            norm = getattr(owner, name, None)
            if isinstance(norm, nn.LayerNorm):  # timm's LayerNorm2d is one
                return norm
    return None


def _imagenet_state(arch, kwargs):
    """State of timm's ImageNet weights for `arch`. Raises UserError with what to do if they cannot be downloaded."""
    tag = IMAGENET_TAGS.get(arch, arch)
    try:
        _reach_hub(tag)
        return timm.create_model(tag, pretrained=True, num_classes=0, **kwargs).state_dict()
    except Exception as error:  # hub, network, disk and name errors share no base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        source = FACEBOOK_FILES.get(arch)
        where = f"{source} or " if source else ""
        raise UserError(
            f"ImageNet weights {tag} could not be downloaded ({type(error).__name__}: {reason[:160]}); download "
            f"{where}model.safetensors from https://huggingface.co/timm/{tag} on another machine and pass "
            "--pretrained PATH, or start from random weights with --pretrained none"
        ) from error


def _reach_hub(tag):
    """Fail in seconds if the weights are neither cached nor reachable; the hub's own retries take a minute.

    Raises:
        OSError: the hub cannot be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    cached = any(isinstance(try_to_load_from_cache(f"timm/{tag}", name), str) for name in HUB_FILES)
    if cached or constants.HF_HUB_OFFLINE or getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    socket.create_connection((address.hostname, address.port or 443), timeout=10).close()


def _file_state(net, path):
    """State of a local file in timm's or Facebook's key style, in timm's keys."""
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--pretrained {path} does not exist; pass imagenet, none or an existing file") from error
    except Exception as error:  # pickle, zip and safetensors readers each raise their own
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--pretrained {path} cannot be read as weights ({reason}); download it again") from error
    if isinstance(state.get("model"), dict):
        state = state["model"]
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    to_timm = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if to_timm is not None:
        try:
            state = to_timm(state, net)
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"--pretrained {path} does not fit {type(net).__name__} ({error}); pass weights of --arch"
            ) from error
    return state


def _load(net, arch, state):
    """Load strictly, without the classifier."""
    classifier = net.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(h + "." for h in heads))}
    if misfits := describe_misfits(state, net.state_dict()):
        raise UserError(f"the pretrained weights do not fit --arch {arch}: {misfits}; pass weights of this network")
    net.load_state_dict(state)
