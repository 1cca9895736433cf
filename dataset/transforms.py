"""From a stored image to what the network sees."""

import numpy as np
from torchvision import transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_transform(size, crop=None):
    """PIL RGB image -> (3, H, W) float32 tensor: crop, resize, [0, 1], minus ImageNet mean, over std.

    Args:
        size: (H, W) in pixels; both sides given, so the aspect is not kept. Bilinear with antialiasing.
        crop: function of the PIL image, applied first; None for none.
    """
    steps = [
        transforms.Resize(tuple(size), transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return transforms.Compose([transforms.Lambda(crop), *steps] if crop else steps)


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


def fov_angle(seed, index, epoch=None):
    """Whole degrees 0 .. 359: another in every training epoch; without an epoch, fixed for (seed, index)."""
    key = (seed, index) if epoch is None else (seed, index, epoch + 1)
    return int(np.random.default_rng(key).integers(360))
