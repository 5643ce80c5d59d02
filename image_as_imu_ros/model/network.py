"""
Gray image in, distribution of unsigned displacements per cell out: the compact network.

`DisplacementNetwork` is what it shares with the networks around timm's backbones.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from image_as_imu_ros.geometry.displacement_bins import BINS, STRIDE_PX, bin_displacements
from image_as_imu_ros.model.compiled_front_ends import (
    DIRECTIONS,
    LEAST_SQUARE,
    LEVELS,
    MAX_CORRELATION,
    NOISE_FLOOR,
    STEPS,
    STRUCTURE_MARGIN_PX,
    STRUCTURE_STRIDE_PX,
    correlated_pairs,
    derivative_correlation,
    directional_structure,
    slope,
    structure_offsets,
    structure_step,
)
from image_as_imu_ros.model.length_critic import LengthCritic
from image_as_imu_ros.model.weights_files import COMPACT

WIDTHS = (32, 64, 96, 128)
"""Channels of the shipped compact network at strides 4, 8, 16 and 32."""
WHOLE = (0, 0, 0, 0, 0)
"""Ranks of whole convolutions there and of a whole last layer."""
BLOCK = 16
"""Channels in multiples of which processors compute convolutions quickest."""


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
        margin, cell = STRUCTURE_MARGIN_PX, STRUCTURE_STRIDE_PX
        padded = functional.pad(gray, (margin,) * 4, mode='replicate')
        # even and odd columns, each side by side
        columns = {1: [padded], 2: [padded[..., k::2].contiguous() for k in range(2)]}
        sums = {1: [], 2: []}
        for lag, dx, dy in structure_offsets():
            step = structure_step(lag)
            x, y = margin - dx // 2, margin - dy // 2
            first, second = (
                columns[step][left % step][..., top:top + height:step,
                                           left // step:left // step + width // step]
                for left, top in ((x, y), (x + dx, y + dy)))
            sums[step].append(sum_rows((second - first).square_(), cell // step))
        squares = [sum_columns(torch.cat(sums[step], dim=1), cell // step) * (step / cell) ** 2
                   for step in (1, 2)]
        logs = torch.cat(squares, dim=1).add_(LEAST_SQUARE).log_()
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

    MATCH = (-0.17, 0.24, -0.11, 0.09, -0.02, 0.06, 0.11, 0.19, 0.30, 0.45, 0.41, -0.30, -1.20,
             -0.09, 0.41, -0.02, 0.04, 0.0, -0.09, -0.02)
    """
    What a correlation along a displacement says for it, by the logarithm of lag over length, in
    steps of MATCH_STEP from MATCH_START on. Training starts here.
    """
    MATCH_START, MATCH_STEP = -2.4, 0.2

    channels = DIRECTIONS * sum(len(level.lags_px) for level in LEVELS)

    def forward(self, gray: Tensor) -> Tensor:
        """
        Compute the features.

        :param gray: (B, 1, H, W), 0 to 1, H and W multiples of 8
        :returns: (B, channels, H / 8, W / 8), direction by direction
        """
        features = []
        for level in LEVELS:
            image = functional.avg_pool2d(gray, level.reduction) if level.reduction > 1 else gray
            height, width = image.shape[-2:]
            margin, cell, skip = level.margin_px, level.cell_px, level.skip
            padded = functional.pad(image, (margin,) * 4, mode='replicate')
            slopes = {step: slope(padded, *step) for step in set(STEPS)}
            energies = {
                step: sum_rows(each[..., margin:margin + height:skip,
                                    margin:margin + width].square(), cell // skip)
                for step, each in slopes.items()}
            products = [
                sum_rows(slopes[STEPS[k]][..., y:y + height:skip, x:x + width]
                         * slopes[STEPS[k]][..., y + dy:y + dy + height:skip,
                                            x + dx:x + dx + width], cell // skip)
                for k, x, y, dx, dy in correlated_pairs(level)]
            share = skip / cell ** 2
            product = sum_columns(torch.cat(products, dim=1), cell) * share
            energy = sum_columns(torch.cat([energies[step] for step in STEPS], dim=1), cell)
            energy = functional.avg_pool2d(energy * share, level.window, 1, level.window // 2,
                                           count_include_pad=False) + NOISE_FLOOR
            features.append((product.unflatten(1, (DIRECTIONS, -1)) / energy[:, :, None])
                            .clamp_(-MAX_CORRELATION, MAX_CORRELATION))
        return torch.cat(features, dim=2).flatten(1, 2)

    @staticmethod
    def lags_px() -> Tensor:
        """Lags of the features of one direction, px."""
        return torch.tensor([float(level.reduction * lag) for level in LEVELS
                             for lag in level.lags_px])

    def matched_filter(self) -> Tensor:
        """Weights of the features for each bin's displacement to start from, (BINS, channels)."""
        match = torch.zeros(ANGLES, RATIOS)
        match[0] = torch.tensor(self.MATCH)
        indices, shares = filter_table(torch.from_numpy(bin_displacements()[1:]))
        weights = (match.flatten()[indices] * shares).sum(dim=-1)
        return functional.pad(weights.flatten(1), (0, 0, 1, 0))


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


class LowRank(nn.Sequential):
    """
    A convolution to few channels, and from those to all.

    :param size: of its kernel, px
    :param bias: whether it adds one
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, rank: int,
                 size: int = 3, bias: bool = False) -> None:
        super().__init__(
            nn.Conv2d(channels_in, rank, size, stride, padding=size // 2, bias=False),
            nn.Conv2d(rank, channels_out, 1, bias=bias))
        self.shape = (channels_out, channels_in, size, size)

    @torch.no_grad()
    def approximate(self, weight: Tensor) -> None:
        """
        Become the nearest to a whole convolution of the weight, of `shape`.

        Source: Eckart and Young (1936), doi:10.1007/BF02288367.
        """
        first, second = self
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        shares = s[:first.out_channels].sqrt()
        first.weight.copy_((shares[:, None] * v[:len(shares)]).view_as(first.weight))
        second.weight.copy_((u[:, :len(shares)] * shares).view_as(second.weight))


def convolution(channels_in: int, channels_out: int, stride: int = 1,
                rank: int = 0) -> list[nn.Module]:
    """3x3 convolution, of a rank unless that is 0, and batch norm."""
    return [LowRank(channels_in, channels_out, stride, rank) if rank else
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out)]


def conv(channels_in: int, channels_out: int, stride: int = 1, rank: int = 0) -> nn.Sequential:
    """3x3 convolution, of a rank unless that is 0, batch norm, ReLU."""
    return nn.Sequential(*convolution(channels_in, channels_out, stride, rank),
                         nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, channels: int, rank: int = 0) -> None:
        super().__init__()
        self.first = conv(channels, channels, rank=rank)
        self.second = nn.Sequential(*convolution(channels, channels, rank=rank))

    def forward(self, x: Tensor) -> Tensor:
        """Refine features of any shape (B, channels, H, W)."""
        return functional.relu(x + self.second(self.first(x)))


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

    def add_decoder(self, channels: tuple[int, int, int], widths: tuple[int, int],
                    ranks: tuple[int, int, int] = (0, 0, 0)) -> None:
        """
        Add what follows the encoder.

        :param channels: of the encoder's features at strides 8, 16 and 32
        :param widths: of the decoder at strides 8 and 16
        :param ranks: of its convolutions there and of its last layer; 0 leaves them whole
        """
        (c8, c16, c32), (w8, w16), (r8, r16, last) = channels, widths, ranks
        self.up16 = nn.Sequential(conv(c32 + c16, w16, rank=r16), ResidualBlock(w16, r16))
        self.up8 = nn.Sequential(conv(w16 + c8, w8, rank=r8), ResidualBlock(w8, r8))
        self.head = nn.Sequential(nn.Conv2d(w8, 2 * w8, 1), nn.ReLU(inplace=True),
                                  LowRank(2 * w8, BINS, 1, last, size=1, bias=True) if last
                                  else nn.Conv2d(2 * w8, BINS, 1))
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
        reliability = _linear(seen, self.reliability)
        share = functional.softplus(reliability.float(), beta=math.log(2.0))
        last = self.head[-1]
        if isinstance(last, LowRank):
            seen, last = _linear(seen, last[0]), last[1]
        # shares weigh what the last products are of, which is less than what they make
        weight = torch.cat([last.weight[..., 0, 0], self.template.weight[..., 0, 0],
                            last.bias[:, None]], dim=1)
        weighed = torch.cat([share[..., :1] * seen, share[..., 1:] * correlation.movedim(1, -1),
                             share[..., :1]], dim=-1)
        return _linear(seen, last), functional.linear(weighed, weight)

    def front_ends(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """
        Directional structure and derivative correlation of images as of `forward`.

        On the CPU they are compiled, and so not to be traced; torch's compiler and exporter follow
        their layers.
        """
        if gray.device.type == 'cpu' and not torch.compiler.is_compiling() \
                and not torch.onnx.is_in_onnx_export():
            images = gray[:, 0].numpy()
            return (torch.from_numpy(directional_structure(images)),
                    torch.from_numpy(derivative_correlation(images)))
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
                    and isinstance(module[1], nn.BatchNorm2d):
                owner, last = (module[0], 1) if isinstance(module[0], LowRank) else (module, 0)
                owner[last] = fuse_conv_bn_eval(owner[last], module[1])
                module[1] = nn.Identity()
        return network


def _linear(values: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply a 1x1 convolution to values whose channels come last."""
    return functional.linear(values, layer.weight[..., 0, 0], layer.bias)


class CompactNetwork(DisplacementNetwork):
    """
    U-Net at strides 4 to 32 over the directional structure features.

    :param widths: channels at strides 4, 8, 16 and 32
    :param ranks: of the convolutions that end there, and of the last layer; 0 leaves them whole
    """

    architecture = COMPACT

    def __init__(self, widths: tuple[int, int, int, int] = WIDTHS,
                 ranks: tuple[int, int, int, int, int] = WHOLE) -> None:
        super().__init__()
        (w4, w8, w16, w32), (r4, r8, r16, r32, last) = widths, ranks
        self.stage4 = nn.Sequential(nn.BatchNorm2d(DirectionalStructure.channels),
                                    conv(DirectionalStructure.channels, w4, rank=r4),
                                    conv(w4, w4, rank=r4))
        self.stage8 = nn.Sequential(conv(w4, w8, 2, r8), ResidualBlock(w8, r8))
        self.stage16 = nn.Sequential(conv(w8, w16, 2, r16), ResidualBlock(w16, r16),
                                     ResidualBlock(w16, r16))
        self.stage32 = nn.Sequential(conv(w16, w32, 2, r32), ResidualBlock(w32, r32),
                                     ResidualBlock(w32, r32))
        self.add_decoder((w8, w16, w32), (w8, w16), (r8, r16, last))

    def encode(self, structure: Tensor, gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16 and 32, of the structure alone."""
        f8 = self.stage8(self.stage4(structure))
        f16 = self.stage16(f8)
        return f8, f16, self.stage32(f16)

    def fused(self) -> CompactNetwork:
        """As of `DisplacementNetwork`, the structure padded to whole blocks of channels."""
        network = super().fused()
        convolution = network.stage4[1][0]
        first = convolution[0] if isinstance(convolution, LowRank) else convolution
        spare = (0, 0, 0, 0, 0, -first.in_channels % BLOCK)
        first.weight.data = functional.pad(first.weight.data, spare)
        first.in_channels += spare[-1]
        network.stage4.insert(1, nn.ConstantPad3d(spare, 0.0))
        return network


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


def traced(distributions: CellDistributions) -> torch.jit.ScriptModule:
    """
    `CellDistributions.distributions` for the CPU in one call, of any size and number of images.

    It leaves Python's interpreter lock alone, so that another thread can go on with the image
    before: run step by step, the two take twice as long.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # torch.export, the successor, needs a C++ compiler to make code as quick
        warnings.simplefilter('ignore', FutureWarning)
        # unchecked: running it twice more to compare doubles the time to start
        return torch.jit.freeze(torch.jit.trace(
            MethodOf(distributions, 'distributions').eval(),
            example_features(distributions.network, 'cpu'), check_trace=False))


def example_images() -> Tensor:
    """One small image to trace or export a network with, (1, 1, H, W)."""
    return torch.zeros(1, 1, 8 * STRIDE_PX, 8 * STRIDE_PX)


def example_features(network: DisplacementNetwork, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of `CellDistributions.distributions` to trace or export it with."""
    gray = example_images().to(device)
    return *network.front_ends(gray), gray
