"""Triton kernels of the 7 x 7 depthwise convolution, channels last, and their PyTorch operators.

cuDNN's take three to four times as long as the memory they move. Here a thread owns one channel of one column and goes
down the image: it holds the 49 weights and seven running sums, so an input is read seven times and not 49. Sums are
float32 for any format of inputs and outputs, and without atomics: equal inputs give equal bits.
"""

import torch
import triton
import triton.language as tl

TAPS = 49
COLUMNS, CHANNELS, WARPS = 4, 32, 4  # of one program: one thread for each channel of each column
PROGRAMS = 1024  # of the weights' gradient, about; each sums some images
SIZES = ["N", "H", "W", "IMAGES"]  # not compiled in


@triton.jit
def _column(at, w, j: tl.constexpr, W, C, inside):
    """The values of column w + j - 3, zero outside the image."""
    mask = inside & (w + (j - 3) >= 0) & (w + (j - 3) < W)
    return tl.load(at + (j - 3) * C, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES[1:3])
def _convolve(x, taps, bias, y, H, W, C, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """y (N, H, W, C): x convolved with taps (49, C)."""
    w = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    here = tl.program_id(2).to(tl.int64) * H * W * C + w * C + c
    inside = (w < W) & (c < C)
    weights = ()
    for k in tl.static_range(49):
        weights = weights + (tl.load(taps + k * C + w * 0 + c, mask=c < C, other=0.0),)  # noqa: RUF005
    start = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + c, mask=c < C, other=0.0)
    sums = (start,) * 7  # of the output rows row + 3 .. row - 3
    at, out = x + here, y + here - 3 * W * C
    for row in range(H):
        for j in tl.static_range(7):
            value = _column(at, w, j, W, C, inside)
            new = ()
            for i in tl.static_range(7):
                new = new + (sums[i] + value * weights[i * 7 + j],)  # noqa: RUF005
            sums = new
        if row >= 3:
            tl.store(out, sums[6].to(y.dtype.element_ty), mask=inside)
        sums = (start, sums[0], sums[1], sums[2], sums[3], sums[4], sums[5])
        at += W * C
        out += W * C
    for i in tl.static_range(3):
        if H - 3 + i >= 0:
            tl.store(out, sums[6 - i].to(y.dtype.element_ty), mask=inside)
        out += W * C


@triton.jit(do_not_specialize=SIZES)
def _sum_gradients(x, grad, parts, N, H, W, C, IMAGES, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """parts (programs, 50, C): each program's share of the gradients of the 49 taps and of the bias."""
    w = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (w < W) & (c < C)
    total = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    sums = (total,) * 49
    first = tl.program_id(2) * IMAGES
    here = first.to(tl.int64) * H * W * C + w * C + c
    at, image = x + here, grad + here
    for _ in range(tl.minimum(IMAGES, N - first)):
        # The gradient's rows row + 3 .. row - 3. Each starts as a zero of its own: Triton takes a variable for constant
        # where a loop's first pass assigns it a value that it has already.
        g6, g5 = tl.zeros((COLUMNS, CHANNELS), tl.float32), tl.zeros((COLUMNS, CHANNELS), tl.float32)
        g4, g3 = tl.zeros((COLUMNS, CHANNELS), tl.float32), tl.zeros((COLUMNS, CHANNELS), tl.float32)
        g2 = tl.load(image, mask=inside, other=0.0).to(tl.float32)
        g1 = tl.load(image + W * C, mask=inside & (w * 0 + 1 < H), other=0.0).to(tl.float32)
        g0 = tl.load(image + 2 * W * C, mask=inside & (w * 0 + 2 < H), other=0.0).to(tl.float32)
        below = image + 3 * W * C
        for row in range(H):
            g6, g5, g4, g3, g2, g1 = g5, g4, g3, g2, g1, g0
            g0 = tl.load(below, mask=inside & (w * 0 + row + 3 < H), other=0.0).to(tl.float32)
            rows = (g0, g1, g2, g3, g4, g5, g6)
            new = ()
            for j in tl.static_range(7):
                value = _column(at, w, j, W, C, inside)
                for i in tl.static_range(7):
                    new = new + (sums[j * 7 + i] + value * rows[i],)  # noqa: RUF005
            sums = new
            total += g3
            at += W * C
            below += W * C
        image += H * W * C
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    out = parts + (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * 50 * C + channel
    for k in tl.static_range(49):
        tl.store(out + (k % 7 * 7 + k // 7) * C, tl.sum(sums[k], 0), mask=channel < C)
    tl.store(out + 49 * C, tl.sum(total, 0), mask=channel < C)


def _launch_convolve(x, taps, bias, dtype):
    n, c, h, w = x.shape
    y = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
    grid = (triton.cdiv(w, COLUMNS), triton.cdiv(c, CHANNELS), n)
    more = (bias is not None, COLUMNS, CHANNELS)
    _convolve[grid](x, taps, taps if bias is None else bias, y, h, w, c, *more, num_warps=WARPS)
    return y


def _launch_sum_gradients(x, grad):
    n, c, h, w = x.shape
    across, wide = triton.cdiv(w, COLUMNS), triton.cdiv(c, CHANNELS)
    images = max(1, n * across * wide // PROGRAMS)
    chunks = triton.cdiv(n, images)
    parts = torch.empty(chunks * across, TAPS + 1, c, device=x.device)
    grid = (across, wide, chunks)
    _sum_gradients[grid](x, grad, parts, n, h, w, c, images, COLUMNS, CHANNELS, num_warps=WARPS)
    return parts.sum(dim=0)


@torch.library.custom_op("frgeo::depthwise", mutates_args=())
def depthwise(x: torch.Tensor, taps: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A 7 x 7 depthwise convolution with stride 1 and padding 3.

    Args:
        x: (N, C, H, W), channels last in memory.  taps: (49, C) float32, contiguous.  bias: (C,) float32.
        dtype: of the result, (N, C, H, W), channels last.
    """
    return _launch_convolve(x, taps, bias, dtype)


@depthwise.register_fake
def _(x, taps, bias, dtype):
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


@torch.library.custom_op("frgeo::depthwise_backward", mutates_args=())
def depthwise_backward(grad: torch.Tensor, x: torch.Tensor, taps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x, in its format, and of taps and bias together, (50, C) float32."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    # Correlation becomes convolution: the taps in opposite order.
    return _launch_convolve(grad, taps.flip(0), None, x.dtype), _launch_sum_gradients(x, grad)


@depthwise_backward.register_fake
def _(grad, x, taps):
    return torch.empty_like(x, memory_format=torch.channels_last), taps.new_empty(TAPS + 1, taps.shape[1])


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx, grad):
    to_x, to_rest = depthwise_backward(grad, *ctx.saved_tensors)
    return to_x, to_rest[:TAPS], to_rest[TAPS], None


depthwise.register_autograd(_backward, setup_context=_keep)
