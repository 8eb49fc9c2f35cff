"""Operations on the values of an image's pixels: where a pixel stands changes nothing in them.

Each takes and gives uint8 [3,H,W], and does what Pillow's operation of the same name does, to within one of 255 levels
where a rounding differs. None knows a generator: what is drawn at random is drawn by the caller.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

Pixels = UInt8[Tensor, "3 H W"]


def blended(image: Pixels, other: Tensor, factor: float) -> Pixels:
    """other + factor * (image - other), cut to 0 … 255: the image at 1, the other at 0, away from it beyond 1."""
    base = other.to(torch.float32)
    return torch.lerp(base, image.to(torch.float32), factor).clamp(0, 255).to(torch.uint8)


def grey(image: Pixels) -> UInt8[Tensor, "1 H W"]:
    """Luma by ITU-R 601: 0.299 R + 0.587 G + 0.114 B, rounded."""
    shares = torch.tensor([19595, 38470, 7471], dtype=torch.int32).reshape(3, 1, 1)  # of 65536
    return (((image * shares).sum(0, keepdim=True) + 0x8000) >> 16).to(torch.uint8)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Towards black below 1, away from it above."""
    return blended(image, torch.zeros_like(image), factor)


def saturation(image: Pixels, factor: float) -> Pixels:
    """Towards the image in grey below 1, away from it above. RandAugment calls it Color."""
    return blended(image, grey(image).expand_as(image), factor)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Towards the mean grey of the image below 1, away from it above."""
    mean = torch.floor(grey(image).to(torch.float64).mean() + 0.5)
    return blended(image, mean.expand(image.shape), factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Towards the image smoothed by 3 x 3 neighbours (the centre counts 5 of 13) below 1, away from it above; the outer
    pixels stay."""
    if min(image.shape[1:]) < 3:
        return image
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 5
    smooth = image.clone()
    found = functional.conv2d(image.to(torch.float32).unsqueeze(1), kernel / 13)[:, 0]
    smooth[:, 1:-1, 1:-1] = (found + 0.5).clamp(0, 255).to(torch.uint8)
    return blended(image, smooth, factor)


def posterize(image: Pixels, bits: int) -> Pixels:
    """The highest bits of each value; the others become 0."""
    return image & (256 - (1 << (8 - bits)))


def solarize(image: Pixels, threshold: float) -> Pixels:
    """Values from the threshold on are inverted."""
    return torch.where(image.int() >= threshold, 255 - image, image)  # 256 is no uint8


def autocontrast(image: Pixels) -> Pixels:
    """Each channel stretched to 0 … 255; one of a single value stays."""
    values = image.to(torch.float64).flatten(1)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    scale = 255.0 / (high - low).clamp(min=1)
    stretched = (values * scale - low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8).reshape(image.shape)


def equalize(image: Pixels) -> Pixels:
    """Each channel mapped so that its values are about equally frequent.

    With counts h, s = (sum h - h of the highest value that occurs) div 255: v -> (s div 2 + sum of h below v) div s. A
    channel with s = 0 stays.
    """
    out = image.clone()
    for channel, values in enumerate(image.long()):
        counts = torch.bincount(values.flatten(), minlength=256)
        step = int((counts.sum() - counts[values.max()]) // 255)
        if step:
            table = ((counts.cumsum(0) - counts + step // 2) // step).clamp(max=255).to(torch.uint8)
            out[channel] = table[values]
    return out


def hue(image: Pixels, turn: float) -> Pixels:
    """The hue turned by a share of the circle, -0.5 … 0.5; saturation and value of HSV stay."""
    pixels = image.to(torch.float32) / 255
    high, low = pixels.amax(0), pixels.amin(0)
    spread = (high - low).clamp(min=1e-12)
    red, green, blue = ((high - channel) / spread for channel in pixels)
    sector = torch.where(
        pixels[0] == high, blue - green, torch.where(pixels[1] == high, 2 + red - blue, 4 + green - red)
    )
    sector = torch.where(high == low, torch.zeros_like(sector), sector)
    angle = (sector / 6 + turn) % 1.0
    # HSV -> RGB: each channel is v - v·s·max(0, min(k, 4 - k, 1)), k = (n + 6·hue) mod 6, n = 5, 3, 1
    channels = []
    for offset in (5, 3, 1):
        k = (offset + 6 * angle) % 6
        channels.append(high - (high - low) * torch.minimum(k, 4 - k).clamp(0, 1))
    return (torch.stack(channels) * 255).round().clamp(0, 255).to(torch.uint8)
