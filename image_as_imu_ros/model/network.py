"""
Gray image in, distribution of unsigned displacements per cell out: the compact network.

`DisplacementNetwork` is what it shares with the networks around timm's backbones.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from image_as_imu_ros.geometry.displacement_bins import BINS, STRIDE_PX, bin_displacements
from image_as_imu_ros.model.length_critic import LengthCritic
from image_as_imu_ros.model.weights_files import COMPACT

LAGS_PX = (1, 2, 4, 8, 16, 32)
DIRECTIONS = 8
WIDTHS = (32, 64, 96, 128)
"""Channels of the shipped compact network at strides 4, 8, 16 and 32."""


def structure_offsets() -> list[tuple[int, int, int]]:
    """Distinct (lag, dx, dy) of the structure functions, px; directions cover half a turn."""
    offsets = []
    for lag in LAGS_PX:
        for k in range(DIRECTIONS):
            angle = math.pi * k / DIRECTIONS
            offset = (lag, round(lag * math.cos(angle)), round(lag * math.sin(angle)))
            if offset not in offsets:
                offsets.append(offset)
    return offsets


class DirectionalStructure(nn.Module):
    """
    Log mean squared differences of a gray image at several lags and directions.

    Motion blur is smooth along the motion up to its length and unchanged across it, which is
    what these local statistics show. Each is averaged over 4x4 px, centred between the two
    compared pixels. The last channel is their mean; the others are relative to it, so that they
    do not depend on contrast.
    """

    channels = len(structure_offsets()) + 1

    def forward(self, gray: Tensor) -> Tensor:
        """
        Compute the features.

        :param gray: (B, 1, H, W), 0 to 1, H and W multiples of 4
        :returns: (B, channels, H / 4, W / 4)
        """
        height, width = gray.shape[-2:]
        margin = max(LAGS_PX) // 2 + 1
        padded = functional.pad(gray, (margin,) * 4, mode='replicate')
        # every other pixel is enough for long lags; even and odd columns, each side by side
        columns = {1: [padded], 2: [padded[..., k::2].contiguous() for k in range(2)]}
        sums = {1: [], 2: []}
        for lag, dx, dy in structure_offsets():
            step = 2 if lag >= 8 else 1
            x, y = margin - dx // 2, margin - dy // 2
            first, second = (
                columns[step][left % step][..., top:top + height:step,
                                           left // step:left // step + width // step]
                for left, top in ((x, y), (x + dx, y + dy)))
            sums[step].append(sum_rows((second - first).square_(), 4 // step))
        squares = [sum_columns(torch.cat(sums[step], dim=1), 4 // step) * (step * step / 16)
                   for step in (1, 2)]
        logs = torch.cat(squares, dim=1).add_(1e-6).log_()
        mean = logs.mean(dim=1, keepdim=True)
        return torch.cat([logs - mean, 0.5 * mean + 3.0], dim=1)


class DerivativeCorrelation(nn.Module):
    """
    Local correlation of an image's directional derivative with itself, at several lags.

    A derivative along the motion shows each detail twice, at both ends of its blur and with
    opposite signs: the correlation dips where the lag is the length of the blur. Each lag is
    looked at in a pyramid level that resolves it, relative to the energy of the derivative in
    a window about as wide as the lag.
    """

    LEVELS = ((1, (3, 4, 6, 8), 3), (2, (5, 7, 9, 11), 3), (4, (7, 9, 11, 14), 5))
    """Reduction, lags in px of the reduced image, and window in cells."""
    NOISE_FLOOR = 3e-5
    MATCH = (-0.17, 0.24, -0.11, 0.09, -0.02, 0.06, 0.11, 0.19, 0.30, 0.45, 0.41, -0.30, -1.20,
             -0.09, 0.41, -0.02, 0.04, 0.0, -0.09, -0.02)
    """
    What a correlation along a displacement says for it, by the logarithm of lag over length, in
    steps of MATCH_STEP from MATCH_START on. Training starts here.
    """
    MATCH_START, MATCH_STEP = -2.4, 0.2
    STEPS = ((1, 0), (1, 0), (1, 1), (0, 1), (0, 1), (0, 1), (-1, 1), (1, 0))
    """Between the pixels of each direction's derivative, px; of either sign, which cancels."""

    channels = DIRECTIONS * sum(len(lags) for _, lags, _ in LEVELS)

    def forward(self, gray: Tensor) -> Tensor:
        """
        Compute the features.

        :param gray: (B, 1, H, W), 0 to 1, H and W multiples of 8
        :returns: (B, channels, H / 8, W / 8), direction by direction
        """
        features = []
        for reduction, lags, window in self.LEVELS:
            image = functional.avg_pool2d(gray, reduction) if reduction > 1 else gray
            height, width = image.shape[-2:]
            margin = max(lags) // 2 + 2
            padded = functional.pad(image, (margin,) * 4, mode='replicate')
            skip = 2 if reduction == 1 else 1  # every other row is enough there
            cell = STRIDE_PX // reduction
            slopes = {step: slope(padded, *step) for step in set(self.STEPS)}
            energies = {
                step: sum_rows(each[..., margin:margin + height:skip,
                                    margin:margin + width].square(), cell // skip)
                for step, each in slopes.items()}
            products = []
            for k, (dx, dy) in enumerate(self.STEPS):
                cos, sin = math.cos(math.pi * k / DIRECTIONS), math.sin(math.pi * k / DIRECTIONS)
                for lag in lags:
                    ox, oy = round(lag * cos), round(lag * sin)
                    x, y = margin - ox // 2 - (round(cos) < 0), margin - oy // 2
                    products.append(sum_rows(
                        slopes[dx, dy][..., y:y + height:skip, x:x + width]
                        * slopes[dx, dy][..., y + oy:y + oy + height:skip,
                                         x + ox:x + ox + width], cell // skip))
            share = skip / cell ** 2
            product = sum_columns(torch.cat(products, dim=1), cell) * share
            energy = sum_columns(torch.cat([energies[step] for step in self.STEPS], dim=1), cell)
            energy = functional.avg_pool2d(energy * share, window, 1, window // 2,
                                           count_include_pad=False) + self.NOISE_FLOOR
            features.append((product.unflatten(1, (DIRECTIONS, -1)) / energy[:, :, None])
                            .clamp_(-2.0, 2.0))
        return torch.cat(features, dim=2).flatten(1, 2)

    @classmethod
    def lags_px(cls) -> Tensor:
        """Lags of the features of one direction, px."""
        return torch.tensor([float(reduction * lag) for reduction, lags, _ in cls.LEVELS
                             for lag in lags])

    def matched_filter(self) -> Tensor:
        """Weights of the features for each bin's displacement to start from, (BINS, channels)."""
        match = torch.zeros(ANGLES, RATIOS)
        match[0] = torch.tensor(self.MATCH)
        indices, shares = filter_table(torch.from_numpy(bin_displacements()[1:]))
        weights = (match.flatten()[indices] * shares).sum(dim=-1)
        return functional.pad(weights.flatten(1), (0, 0, 1, 0))


def slope(image: Tensor, dx: int, dy: int) -> Tensor:
    """Difference of pixels dx (-1 to 1) and dy (0 or 1) apart, (..., H - dy, W - |dx|)."""
    height, width = image.shape[-2] - dy, image.shape[-1] - abs(dx)
    right, left = max(dx, 0), max(-dx, 0)
    return image[..., dy:dy + height, right:right + width] \
        - image[..., :height, left:left + width]


def sum_rows(values: Tensor, count: int) -> Tensor:
    """Add up groups of so many rows, (..., H / count, W): first, as that runs along memory."""
    return values.unflatten(-2, (-1, count)).sum(dim=-2)


def sum_columns(values: Tensor, count: int) -> Tensor:
    """Add up groups of so many columns, (..., H, W / count)."""
    while count > 1:
        values, count = values[..., ::2] + values[..., 1::2], count // 2
    return values


ANGLES = DIRECTIONS // 2 + 1
RATIOS = len(DerivativeCorrelation.MATCH)


def filter_table(displacements: Tensor) -> tuple[Tensor, Tensor]:
    """
    Where a displacement looks up the filter for each feature, and how much.

    :param displacements: (N, 2), px
    :returns: indices and weights, (N, DIRECTIONS, lags, 4), into ANGLES x RATIOS
    """
    lags = DerivativeCorrelation.lags_px()
    length = displacements.norm(dim=-1)
    place = ((lags / (length[:, None] + 1.0)).log() - DerivativeCorrelation.MATCH_START) \
        / DerivativeCorrelation.MATCH_STEP
    place = place.clamp(0, RATIOS - 1.001)[:, None, :]
    turn = torch.atan2(displacements[:, 1], displacements[:, 0])[:, None] \
        * (DIRECTIONS / math.pi) - torch.arange(DIRECTIONS)
    turn = ((turn + DIRECTIONS / 2) % DIRECTIONS - DIRECTIONS / 2).abs()[:, :, None]
    ratio, angle = place.long(), turn.long().clamp(max=ANGLES - 2)
    along, across = place - ratio, turn - angle
    indices = torch.stack([angle * RATIOS + ratio, angle * RATIOS + ratio + 1,
                           (angle + 1) * RATIOS + ratio, (angle + 1) * RATIOS + ratio + 1], -1)
    weights = torch.stack([(1 - across) * (1 - along), (1 - across) * along,
                           across * (1 - along), across * along], -1)
    return indices, weights


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                                    nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Refine features of any shape (B, channels, H, W)."""
        return functional.relu(x + self.second(self.first(x)))


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class DisplacementNetwork(nn.Module):
    """
    Fixed front ends, a decoder to stride 8 and the matched filter, around an encoder.

    A subclass adds the encoder, then calls `add_decoder`. The critic judges what the solver makes
    of the output; `forward` does without, and training leaves it alone.
    """

    architecture: str

    def __init__(self) -> None:
        super().__init__()
        self.structure, self.correlation = DirectionalStructure(), DerivativeCorrelation()

    def add_decoder(self, channels: tuple[int, int, int], widths: tuple[int, int]) -> None:
        """
        Add what follows the encoder.

        :param channels: of the encoder's features at strides 8, 16 and 32
        :param widths: of the decoder at strides 8 and 16
        """
        (c8, c16, c32), (w8, w16) = channels, widths
        self.up16 = nn.Sequential(conv(c32 + c16, w16), ResidualBlock(w16))
        self.up8 = nn.Sequential(conv(w16 + c8, w8), ResidualBlock(w8))
        self.head = nn.Sequential(nn.Conv2d(w8, 2 * w8, 1), nn.ReLU(inplace=True),
                                  nn.Conv2d(2 * w8, BINS, 1))
        self.reliability = nn.Conv2d(2 * w8, 2, 1)
        nn.init.zeros_(self.reliability.weight)
        nn.init.zeros_(self.reliability.bias)  # at first all cells count alike
        self.template = nn.Conv2d(DerivativeCorrelation.channels, BINS, 1, bias=False)
        self.template.weight.data[..., 0, 0] = self.correlation.matched_filter()
        self.critic = LengthCritic().requires_grad_(False)

    def encode(self, structure: Tensor, gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Features at strides 8, 16 and 32.

        :param structure: of `DirectionalStructure`
        :param gray: the image, as of `forward`
        """
        raise NotImplementedError

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """
        Predict the displacement over the exposure.

        :param gray: (B, 1, H, W), 0 to 1 as the camera encodes it, H and W multiples of 8
        :returns: logits of each cell's own displacement, and what it votes for in the sum over
            the image, log-probability up to a constant; both (B, H / 8, W / 8, BINS)
        """
        return self.judge(*self.front_ends(gray), gray)

    def judge(self, structure: Tensor, correlation: Tensor, gray: Tensor) -> tuple[Tensor, Tensor]:
        """
        What `forward` makes of the front ends' features.

        A cell's vote is what it knows itself and what the matched filter says, which is noise in
        one cell and telling in the sum, each as much as it can be relied on there.
        """
        seen = self.head[:-1](self.decode(structure, gray)).movedim(1, -1)
        own, reliability = (
            functional.linear(seen, layer.weight[..., 0, 0], layer.bias)
            for layer in (self.head[-1], self.reliability))
        matched = functional.linear(correlation.movedim(1, -1), self.template.weight[..., 0, 0])
        share = functional.softplus(reliability.float(), beta=math.log(2.0))
        return own, share[..., :1] * own + share[..., 1:] * matched

    def front_ends(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Directional structure and derivative correlation of images as of `forward`."""
        with torch.no_grad(), torch.autocast(gray.device.type, enabled=False):
            return (self.structure(gray).contiguous(memory_format=torch.channels_last),
                    self.correlation(gray))

    def decode(self, structure: Tensor, gray: Tensor) -> Tensor:
        """Features at stride 8 that tell the distributions, of images and their structure."""
        f8, f16, f32 = self.encode(structure, gray)
        f16 = self.up16(torch.cat([functional.interpolate(f32, size=f16.shape[-2:]), f16], dim=1))
        return self.up8(torch.cat([functional.interpolate(f16, size=f8.shape[-2:]), f8], dim=1))

    def fused(self) -> DisplacementNetwork:
        """The same function with batch norms folded into the convolutions, for inference."""
        network = copy.deepcopy(self).eval()
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential) and len(module) > 1 \
                    and isinstance(module[0], nn.Conv2d) and isinstance(module[1], nn.BatchNorm2d):
                module[0] = fuse_conv_bn_eval(module[0], module[1])
                module[1] = nn.Identity()
        return network


class CompactNetwork(DisplacementNetwork):
    """
    U-Net at strides 4 to 32 over the directional structure features.

    :param widths: channels at strides 4, 8, 16 and 32
    """

    architecture = COMPACT

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        w4, w8, w16, w32 = widths
        self.stage4 = nn.Sequential(nn.BatchNorm2d(DirectionalStructure.channels),
                                    conv(DirectionalStructure.channels, w4), conv(w4, w4))
        self.stage8 = nn.Sequential(conv(w4, w8, 2), ResidualBlock(w8))
        self.stage16 = nn.Sequential(conv(w8, w16, 2), ResidualBlock(w16), ResidualBlock(w16))
        self.stage32 = nn.Sequential(conv(w16, w32, 2), ResidualBlock(w32), ResidualBlock(w32))
        self.add_decoder((w8, w16, w32), (w8, w16))

    def encode(self, structure: Tensor, gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16 and 32, of the structure alone."""
        f8 = self.stage8(self.stage4(structure))
        f16 = self.stage16(f8)
        return f8, f16, self.stage32(f16)


class CellDistributions(nn.Module):
    """
    A network as inference uses it: images in, log-probabilities out, of the cells' votes.

    :param network: with its batch norms folded, as `fused` gives it
    :param half: whether to compute in bfloat16 where that is exact enough
    """

    def __init__(self, network: DisplacementNetwork, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_precision = half

    def forward(self, gray: Tensor) -> Tensor:
        """
        Predict the displacement over the exposure.

        :param gray: (B, 1, H, W), 0 to 1 as the camera encodes it, H and W multiples of 8
        :returns: log-probabilities of the bins, (B, H / 8, W / 8, BINS), float32
        """
        return self.distributions(*self.network.front_ends(gray), gray)

    def distributions(self, structure: Tensor, correlation: Tensor, gray: Tensor) -> Tensor:
        """What `forward` makes of the front ends' features."""
        with torch.autocast(gray.device.type, torch.bfloat16, enabled=self.half_precision):
            _, votes = self.network.judge(structure, correlation, gray)
        return torch.log_softmax(votes.float(), dim=-1)


class MethodOf(nn.Module):
    """One method of a module, as a module of its own, which exporting wants."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.owner, self.name = owner, name

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Call the method."""
        return getattr(self.owner, self.name)(*tensors)


def traced(function: Callable[[Tensor], Any]) -> torch.jit.ScriptModule | torch.jit.ScriptFunction:
    """
    The same function of images for the CPU in one call, for any size and number of them.

    It leaves Python's interpreter lock alone, so that another thread can go on with the image
    before: run step by step, the two take twice as long.

    :param function: a module, or a function without weights
    """
    with warnings.catch_warnings(), torch.no_grad():
        # torch.export, the successor, needs a C++ compiler to make code as quick
        warnings.simplefilter('ignore', FutureWarning)
        # unchecked: running it twice more to compare doubles the time to start
        if not isinstance(function, nn.Module):
            return torch.jit.trace(function, example_images(), check_trace=False)
        return torch.jit.freeze(torch.jit.trace(function.eval(), example_images(),
                                                check_trace=False))


def example_images() -> Tensor:
    """One small image to trace or export a network with, (1, 1, H, W)."""
    return torch.zeros(1, 1, 8 * STRIDE_PX, 8 * STRIDE_PX)
