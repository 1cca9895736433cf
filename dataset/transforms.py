"""From an image file to the float tensor that a network sees."""

import numpy as np
import PIL
import torch
from PIL import Image, features
from torch.utils.data import default_collate

from utils.options import UserError, scarcity

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCHES = 8  # in the height of an image, for `drop_patches`
MEAN_PIXEL = (255 * torch.tensor(IMAGENET_MEAN)).round().to(torch.uint8)[:, None, None]


class ImageTransform:
    """An image file to the pixels of a network's input: crop, then resize (bilinear, antialiased).

    Args:
        size: (H, W) in pixels; both sides given, so the aspect is not kept.
        crop: function of the PIL image, applied first; None for none.
        fast: let the JPEG decoder scale down by 2, 4 or 8 where the result is still at least as large as `size`.
            The pixels differ then by a few grey levels: the decoder averages blocks before the resize does.

    Attributes:
        tag: a text that differs where the pixels may (used as the key of a cache).
    """

    def __init__(self, size, crop=None, fast=False):
        self.size, self.crop, self.fast = tuple(size), crop, fast
        codec = features.version("libjpeg_turbo") or features.version("jpg")
        how = f"{'x'.join(map(str, self.size))} {crop.__qualname__ if crop else 'whole'}{' fast' if fast else ''}"
        self.tag = f"{how}; Pillow {PIL.__version__}, JPEG {codec}"

    def pixels(self, path):
        """(H, W, 3) uint8 array of an image file. Errors as `read_image`."""
        image = read_image(path, self._draft if self.fast else None)
        if self.crop:
            whole, image = image.size, self.crop(image)
            if 0 in image.size:
                raise UserError(f"{path} has only {whole[0]} x {whole[1]} pixels; replace the file or remove it")
        return np.array(image.resize(self.size[::-1], Image.Resampling.BILINEAR))

    def _draft(self, image):
        """Ask the decoder for the smallest size that leaves the resize nothing to enlarge."""
        used = self.crop(Image.new("1", image.size)) if self.crop else image
        height, width = self.size
        if used.height:
            image.draft("RGB", (-(-width * image.width // used.width), -(-height * image.height // used.height)))


class ImageFiles:
    """The (H, W, 3) uint8 pixels of a list of image files after an `ImageTransform`."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def pixels(self, i):
        """(H, W, 3) uint8 of image `i`. Errors as `read_image`."""
        return self.transform.pixels(self.paths[i])


def read_image(path, prepare=None):
    """An RGB image; `prepare` is given the opened image before it is decoded.

    Raises:
        UserError: no such file, or not an image that can be read to its end.
    """
    try:
        with Image.open(path) as image:
            if prepare:
                prepare(image)
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
                return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError("its 32-bit numbers are not colours; save it with 8 bits per channel")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if scarcity(error):  # not the file's fault
            raise
        raise UserError(f"{path} cannot be read as an image ({error}); replace the file or remove it") from error


def image_size(path):
    """(width, height) in pixels from the head of an image file; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def crop_middle_half(image):
    """Rows H/4 .. H/4*3 (integer quotients) of a PIL image: CVACT's full sphere without zenith and nadir."""
    quarter = image.height // 4
    return image.crop((0, quarter, image.width, quarter * 3))


def crop_field_of_view(image, fov, angle):
    """A panorama seen by a camera of `fov` degrees that is turned by `angle` degrees.

    (3, H, W) -> (3, H, W * fov // 360): columns from -angle onwards, around the seam.
    """
    width = image.shape[-1]
    shift = int(width * angle / 360)
    return image.roll(shift, dims=-1)[..., : width * fov // 360]


def crop_to_north(image, fov):
    """The middle `fov` degrees of a north-aligned panorama: (3, H, W) -> (3, H, W * fov // 360), centred on north."""
    width = image.shape[-1] * fov // 360
    start = (image.shape[-1] - width) // 2
    return image[..., start : start + width]


def turn_pair(ground, aerial, turns, mirror):
    """The same place with the compass turned: both views stay aligned, pixel for pixel.

    Args:
        ground: (..., W) panorama, W a multiple of 4.  aerial: (..., S, S) image.
        turns: quarter turns of the world, clockwise seen from above.  mirror: swap east and west, before turning.
    """
    if mirror:
        ground, aerial = ground.flip(-1), aerial.flip(-1)
    return ground.roll(turns * (ground.shape[-1] // 4), dims=-1), aerial.rot90(-turns, (-2, -1))


def turn_of(seed, index, epoch):
    """Quarter turns 0 .. 3 and whether to mirror, another draw in every epoch."""
    number = int(np.random.default_rng((seed, index, epoch, 1)).integers(8))
    return number % 4, number >= 4


def jitter_colours(image, strength, generator):
    """A (3, H, W) uint8 image with brightness, contrast and saturation each times a factor of 1 - s .. 1 + s."""
    from torchvision.transforms.v2 import functional as change

    factors = generator.uniform(1 - strength, 1 + strength, 3).tolist()
    for adjust, factor in zip(
        (change.adjust_brightness, change.adjust_contrast, change.adjust_saturation), factors, strict=True
    ):
        image = adjust(image, factor)
    return image


def drop_patches(image, share, generator):
    """A (3, H, W) uint8 image, each square patch (H / 8 a side) made ImageNet's mean grey with probability `share`."""
    height, width = image.shape[-2:]
    side = max(1, height // PATCHES)
    dropped = torch.from_numpy(generator.random((-(-height // side), -(-width // side))) < share)
    dropped = dropped.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
    return torch.where(dropped, MEAN_PIXEL, image)


def fov_angle(seed, index, epoch=None):
    """Whole degrees 0 .. 359: another in every training epoch; without an epoch, fixed for (seed, index)."""
    key = (seed, index) if epoch is None else (seed, index, epoch + 1)
    return int(np.random.default_rng(key).integers(360))


def normalise(pixels):
    """[0, 1], minus the ImageNet mean, over its standard deviation: the same numbers as torchvision's transforms.

    (3, H, W) or (B, 3, H, W) uint8 on any device -> float32 of that shape, channels last in memory.
    """
    width = pixels.shape[-1]
    values = pixels.movedim(-3, -1).contiguous().float()  # (..., H, W, 3)
    # Rows of W * 3 numbers, since a last dimension of 3 is slow. Divisors are tensors, since a GPU multiplies by the
    # reciprocal of a plain number, which rounds differently.
    rows = values.view(-1, width * 3)
    mean, std, white = (rows.new_tensor(v).repeat(width) for v in (IMAGENET_MEAN, IMAGENET_STD, (255.0,) * 3))
    rows.div_(white).sub_(mean).div_(std)
    return values.movedim(-1, -3)


def to_device(images, device):
    """A batch on the device, channels last, normalised if it still holds uint8 pixels."""
    images = images.to(device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = normalise(images)
    return images.contiguous(memory_format=torch.channels_last)


def collate(samples):
    """A batch of named tuples of images and indices: (B, 3, H, W) tensors, channels last in memory, and (B,) int64."""
    columns = zip(*samples, strict=True)
    return type(samples[0])(*(_stack(column) for column in columns))


def _stack(column):
    """In a loader process straight into the memory that it shares with its parent, which so hears of a lack of it."""
    if isinstance(column[0], torch.Tensor):
        return default_collate([image.movedim(0, -1) for image in column]).movedim(-1, 1)
    return default_collate(column)
