"""Depthwise convolutions, each computed in the way that is fastest on its device."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d`; the same function everywhere, in other ways.

    Under bfloat16 autocast on a CPU the weight gradient is summed in float32: oneDNN takes a third longer for it in
    bfloat16, and it is most of the convolution's backward pass. On a GPU, 7 x 7 convolutions with `triton` set run
    kernels of our own (`model.depthwise_gpu`); float32 without them runs channels first, since cuDNN's backward pass
    takes twice as long with channels last.
    """

    triton = False

    def forward(self, x):
        device = x.device.type
        if device not in ("cpu", "cuda"):
            return super().forward(x)
        mixed = torch.is_autocast_enabled(device)
        kind = torch.get_autocast_dtype(device) if mixed else x.dtype
        if device == "cpu" and mixed:
            return _Depthwise.apply(x.to(kind), self.weight, self.bias, self.stride, self.padding, self.dilation)
        if self.triton:
            x, taps = x.contiguous(memory_format=torch.channels_last), self.weight.flatten(1).T.contiguous()
            with torch.autocast(device, enabled=False):
                return torch.ops.frgeo.depthwise(x, taps, self.bias, kind)
        if device == "cuda" and kind == torch.float32 and x.is_contiguous(memory_format=torch.channels_last):
            # A (C, 1, h, w) weight counts as channels last too, and one such operand is enough for cuDNN's choice.
            weight = self.weight.flatten().view(self.weight.shape)
            y = self._conv_forward(x.contiguous(), weight, self.bias)
            return y.contiguous(memory_format=torch.channels_last)
        return super().forward(x)

    @classmethod
    def adopt(cls, network):
        """Turn a network's own depthwise convolutions into these; parameters and their names stay."""
        for module in network.modules():
            if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
                continue
            if 1 < module.groups == module.in_channels == module.out_channels:
                module.__class__ = cls

    def use_triton(self):
        """Run Triton's kernels where they know the shape."""
        import model.depthwise_gpu  # noqa: F401 (registers the operator)

        known = {"kernel_size": (7, 7), "stride": (1, 1), "padding": (3, 3), "dilation": (1, 1)}
        self.triton = self.bias is not None and all(getattr(self, name) == value for name, value in known.items())


@cache
def triton_fails(device):
    """Why Triton cannot compile and run the kernels on that GPU, or None if it can."""
    try:
        from model.depthwise_gpu import depthwise

        x, taps, bias = (torch.randn(shape, device=device) for shape in ((1, 16, 8, 8), (49, 16), (16,)))
        weight = taps.T.reshape(16, 1, 7, 7)
        off = depthwise(x.contiguous(memory_format=torch.channels_last), taps, bias, torch.float32)
        off -= F.conv2d(x.double(), weight.double(), bias.double(), padding=3, groups=16)
        return None if float(off.abs().max()) < 1e-3 else "Triton's results are wrong"
    except Exception as error:  # no Triton, no C compiler, a GPU that is too old: each raises its own
        first = (str(error).strip().splitlines() or [""])[0]
        return f"Triton does not work here ({type(error).__name__}: {first})"


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
