"""FRGeo: a ground and an aerial encoder whose descriptors list the same compass quadrants in one order."""

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import nn

from model.backbone import Backbone
from model.convnext import FoldedBlock
from model.depthwise import DepthwiseConv2d
from model.recombination import FeatureRecombination
from utils.options import UserError
from utils.paper import INPUT_SIZES

POOLS = ("frm", "gap")


class Encoder(nn.Module):
    """Backbone, region averages, final LayerNorm shared by the regions, concatenation.

    Shapes: (B, 3, H, W) float -> (B, regions * width), un-normalised.

    Raises:
        ValueError: images of `image_size` give a feature map too small for the regions.
    """

    def __init__(self, backbone, pooling, image_size):
        super().__init__()
        pooling(torch.zeros(1, *backbone.map_shape(image_size)))
        self.backbone = backbone
        self.pooling = pooling
        self.regions = pooling.regions
        self.dim = self.regions * backbone.width

    def forward(self, images):
        regions = self.pooling(self.backbone(images))  # (B, R, C)
        return self.backbone.norm(regions).flatten(1)  # (B, R * C)


class FRGeo(nn.Module):
    """The two encoders of the paper (its method section); 55.64 M parameters with ConvNeXt-T.

    Args:
        dataset: names the paper's input sizes ("cvusa", "cvact", "vigor").
        arch: a timm network that yields a feature map.
        pretrained: False, True (ImageNet), or the path of a weights file for one encoder.
        pool: "frm" (four compass quadrants) or "gap" (one global average, the baseline).
        share: one set of weights for both views.
        ground_size, aerial_size: (H, W) in pixels where they differ from the paper's.
        layer_scale: value that random weights' layer scale starts with; None for the network's own.
        regions: regions of "frm" (default: 4, the paper's; 1, 2 or 8 for ablations).

    Attributes:
        query_net, reference_net: (B, 3, H, W) float -> (B, dim) un-normalised descriptors of the ground panorama
            and of the aerial image.
        dim: numbers in a descriptor: the regions, 4 (FRM) or 1 (GAP), times the backbone's width.

    Raises:
        UserError: an unknown arch, or weights that cannot be had or do not fit.
        ValueError: an unknown dataset, pool or number of regions, or images too small for them.
    """

    def __init__(
        self,
        dataset="cvusa",
        arch="convnext_tiny",
        pretrained=False,
        pool="frm",
        share=False,
        ground_size=None,
        aerial_size=None,
        layer_scale=None,
        regions=None,
    ):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; expected one of {', '.join(POOLS)}")
        regions = regions or (4 if pool == "frm" else 1)
        if pool == "gap" and regions != 1:
            raise ValueError(f"pool 'gap' has one region, not {regions}; expected pool 'frm' or regions 1")
        if dataset not in INPUT_SIZES:
            raise ValueError(f"dataset is {dataset!r}; expected one of {', '.join(INPUT_SIZES)}")
        self.ground_size = tuple(ground_size or INPUT_SIZES[dataset].ground)
        self.aerial_size = tuple(aerial_size or INPUT_SIZES[dataset].aerial)
        ground = Backbone(arch, self.ground_size, pretrained, share, layer_scale)
        aerial = ground if share else Backbone(arch, self.aerial_size, pretrained, layer_scale=layer_scale)
        self.query_net = Encoder(ground, FeatureRecombination("ground", regions), self.ground_size)
        self.reference_net = Encoder(aerial, FeatureRecombination("aerial", regions), self.aerial_size)
        self.dim = self.query_net.dim

    def forward(self, im_q, im_k):
        """(B, 3, Hg, Wg) ground and (B, 3, Ha, Wa) aerial images -> two (B, dim) descriptor sets."""
        return self.query_net(im_q), self.reference_net(im_k)

    def optimize(self, grad_checkpointing=False, compiled=False, backend="inductor", fast_gpu=False):
        """Recompute activations to save memory, compile for speed, or run a GPU's faster ways; the function stays.

        Compiled are the blocks of a ConvNeXt, which are alike and so quick to compile, else whole encoders. With
        `fast_gpu` depthwise convolutions are Triton's and ConvNeXt's blocks `model.convnext.FoldedBlock`s.

        Raises:
            UserError: the network cannot recompute its activations.
        """
        for encoder in dict.fromkeys((self.query_net, self.reference_net)):
            if grad_checkpointing:
                encoder.backbone.checkpoint_gradients()
            blocks = [module for module in encoder.modules() if isinstance(module, ConvNeXtBlock)]
            if compiled:
                for part in blocks or [encoder]:
                    part.compile(backend=backend)
            if fast_gpu:
                for module in encoder.modules():
                    if isinstance(module, DepthwiseConv2d):
                        module.use_triton()
                    elif isinstance(module, FoldedBlock):
                        module.folded = True


def build_model(args, pretrained=False):
    """The model that parsed options describe, its `--dim` checked.

    Raises:
        UserError: `--dim` differs from the model's width, or an input is too small for the regions.
    """
    height, width = args.ground_size or INPUT_SIZES[args.dataset].ground
    try:
        model = FRGeo(
            dataset=args.dataset,
            arch=args.arch,
            pretrained=pretrained,
            pool=args.pool,
            share=args.share,
            ground_size=(height, width * (args.fov or 360) // 360),
            aerial_size=args.aerial_size,
            layer_scale=args.layer_scale,
            regions=args.regions,
        )
    except ValueError as error:
        raise UserError(f"{error} (--ground-size, --fov, --aerial-size, --regions)") from error
    if args.dim is not None and args.dim != model.dim:
        raise UserError(
            f"--dim {args.dim} does not fit: --arch {args.arch} with {model.query_net.regions} region(s) gives "
            f"{model.dim} numbers; pass --dim {model.dim} or omit it"
        )
    return model
