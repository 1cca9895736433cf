"""ConvNeXt's block with fewer passes over memory, for GPUs."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.convnext import ConvNeXtBlock
from torch import nn


class FoldedBlock(ConvNeXtBlock):
    """timm's block, which computes the same function in fewer passes where `folded` is set.

    LayerNorm's weight and bias become part of the first linear layer and the layer scale part of the second: both are
    sums over channels, so scaling the layer's weights is scaling its inputs or outputs. Statistics are taken in float32
    of activations in the precision of autocast; the residual path stays float32.
    """

    folded = False

    def forward(self, x):
        if not self.folded or torch.compiler.is_compiling():  # the compiler fuses these passes itself
            return super().forward(x)
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        norm, first, second = self.norm, self.mlp.fc1, self.mlp.fc2
        with torch.autocast(x.device.type, enabled=False):
            y = F.layer_norm(y.to(kind), norm.normalized_shape, eps=norm.eps)
            bias = torch.addmv(first.bias, first.weight, norm.bias)
            y = _Linear.apply(y, _Scaled.apply(first.weight, norm.weight, kind), bias.to(kind))
            weight = _Scaled.apply(second.weight, self.gamma[:, None], kind)
            y = _Linear.apply(self.mlp.act(y), weight, (second.bias * self.gamma).to(kind))
            wide = torch.promote_types(x.dtype, torch.float32)
            return x.to(wide) + y.permute(0, 3, 1, 2)

    @classmethod
    def adopt(cls, network):
        """Turn a ConvNeXt's own blocks into these; parameters and their names stay."""
        for module in network.modules():
            if type(module) is not ConvNeXtBlock or module.use_conv_mlp or module.gamma is None:
                continue
            plain = type(module.mlp) is Mlp and isinstance(module.norm, nn.LayerNorm)
            if plain and isinstance(module.shortcut, nn.Identity) and isinstance(module.drop_path, nn.Identity):
                module.__class__ = cls


class _Scaled(torch.autograd.Function):
    """weight (O, I) * scale, (I,) or (O, 1), rounded to a format in the same pass."""

    @staticmethod
    def forward(ctx, weight, scale, dtype):
        ctx.save_for_backward(weight, scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def backward(ctx, grad):
        weight, scale = ctx.saved_tensors
        return grad * scale, (grad * weight).sum_to_size(scale.shape), None


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias, the gradient of a bias in half precision by a matrix product: several times as fast."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, x = grad.flatten(0, -2), x.flatten(0, -2)
        to_bias = rows.sum(0) if grad.dtype.itemsize > 2 else (rows.new_ones(1, len(rows)) @ rows)[0]
        return grad @ weight, rows.T @ x, to_bias
