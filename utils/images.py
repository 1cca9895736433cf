"""Images on their way from uint8 pixels to the float tensors that networks see."""

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pixels):
    """[0, 1], minus the ImageNet mean, over its standard deviation: the same numbers as torchvision's transforms.

    Args:
        pixels: (3, H, W) or (B, 3, H, W) uint8 on any device.

    Returns:
        float32 of that shape, channels last in memory.
    """
    width = pixels.shape[-1]
    values = pixels.movedim(-3, -1).contiguous().float()  # (..., H, W, 3)
    # Rows of W * 3 numbers, for a last dimension of 3 is slow; divisors as tensors, for a GPU multiplies by the
    # reciprocal of a plain number, which rounds otherwise.
    rows = values.view(-1, width * 3)
    mean, std, white = (rows.new_tensor(v).repeat(width) for v in (IMAGENET_MEAN, IMAGENET_STD, (255.0,) * 3))
    rows.div_(white).sub_(mean).div_(std)
    return values.movedim(-1, -3)


def to_device(images, device):
    """A batch on the device, channels last, normalised if it is still uint8 pixels."""
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = normalise(images)
    return images.contiguous(memory_format=torch.channels_last)


def collate(samples):
    """A batch of named tuples of images and indices: (B, 3, H, W) tensors, channels last in memory, and (B,) int64."""
    columns = zip(*samples, strict=True)
    return type(samples[0])(*(_stack(column) for column in columns))


def _stack(column):
    if isinstance(column[0], torch.Tensor):
        return torch.stack([image.movedim(0, -1) for image in column]).movedim(-1, 1)
    return torch.tensor(column)
