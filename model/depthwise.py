"""Depthwise convolutions that train faster in bfloat16 on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` whose weight gradient is summed in float32 under bfloat16 autocast on a CPU.

    oneDNN takes a third longer for it in bfloat16 than in float32, and it is most of the convolution's backward pass.
    Everywhere else this is the plain convolution.
    """

    def forward(self, x):
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            return _Depthwise.apply(x.to(kind), self.weight, self.bias, self.stride, self.padding, self.dilation)
        return super().forward(x)

    @classmethod
    def adopt(cls, network):
        """Turn a network's own depthwise convolutions into these; parameters and their names stay."""
        for module in network.modules():
            if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
                continue
            if 1 < module.groups == module.in_channels == module.out_channels:
                module.__class__ = cls


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.shape = stride, padding, dilation
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x, weight.to(x.dtype), bias if bias is None else bias.to(x.dtype), *ctx.shape, len(weight))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad[:3]
        dx = dweight = dbias = None
        if to_input:
            dx = _gradients(grad, x, weight.to(x.dtype), ctx.shape, (True, False, False))[0]
        if to_weight or to_bias:
            wide = grad.float()
            dbias = wide.sum((0, 2, 3)) if to_bias else None
            if to_weight:
                dweight = _gradients(wide, x.float(), weight, ctx.shape, (False, True, False))[1]
        return dx, dweight, dbias, None, None, None


def _gradients(grad, x, weight, shape, wanted):
    stride, padding, dilation = shape
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], len(weight), wanted
    )
