"""The compact network: gray image in, distribution of unsigned displacements per cell out."""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from image_as_imu_ros.geometry.displacement_bins import BINS

LAGS_PX = (1, 2, 4, 8, 16, 32)
DIRECTIONS = 8
STRIDE_PX = 8
"""Side of the cells that the network's output describes."""


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
        features = []
        for lag, dx, dy in structure_offsets():
            step = 2 if lag >= 8 else 1
            x, y = margin - dx // 2, margin - dy // 2
            first = padded[..., y:y + height:step, x:x + width:step]
            second = padded[..., y + dy:y + dy + height:step, x + dx:x + dx + width:step]
            features.append(functional.avg_pool2d((second - first).square(), 4 // step))
        logs = torch.cat(features, dim=1).add(1e-6).log()
        mean = logs.mean(dim=1, keepdim=True)
        return torch.cat([logs - mean, 0.5 * mean + 3.0], dim=1)


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


class CompactNetwork(nn.Module):
    """U-Net at strides 4 to 32 over the directional structure features."""

    architecture = 'compact-1'

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 96, 128)) -> None:
        super().__init__()
        w4, w8, w16, w32 = widths
        self.front_end = DirectionalStructure()
        self.stage4 = nn.Sequential(nn.BatchNorm2d(DirectionalStructure.channels),
                                    conv(DirectionalStructure.channels, w4), conv(w4, w4))
        self.stage8 = nn.Sequential(conv(w4, w8, 2), ResidualBlock(w8))
        self.stage16 = nn.Sequential(conv(w8, w16, 2), ResidualBlock(w16), ResidualBlock(w16))
        self.stage32 = nn.Sequential(conv(w16, w32, 2), ResidualBlock(w32), ResidualBlock(w32))
        self.up16 = nn.Sequential(conv(w32 + w16, w16), ResidualBlock(w16))
        self.up8 = nn.Sequential(conv(w16 + w8, w8), ResidualBlock(w8))
        self.head = nn.Sequential(nn.Conv2d(w8, 2 * w8, 1), nn.ReLU(inplace=True),
                                  nn.Conv2d(2 * w8, BINS, 1))

    def forward(self, gray: Tensor) -> Tensor:
        """
        Predict the displacement over the exposure.

        :param gray: (B, 1, H, W), 0 to 1 as the camera encodes it, H and W multiples of 8
        :returns: logits of the bins, (B, BINS, H / 8, W / 8)
        """
        with torch.no_grad(), torch.autocast(gray.device.type, enabled=False):
            features = self.front_end(gray)
        f4 = self.stage4(features.contiguous(memory_format=torch.channels_last))
        f8 = self.stage8(f4)
        f16 = self.stage16(f8)
        f32 = self.stage32(f16)
        f16 = self.up16(torch.cat([functional.interpolate(f32, size=f16.shape[-2:]), f16], dim=1))
        f8 = self.up8(torch.cat([functional.interpolate(f16, size=f8.shape[-2:]), f8], dim=1))
        return self.head(f8)

    def fused(self) -> CompactNetwork:
        """The same function with batch norms folded into the convolutions, for inference."""
        network = copy.deepcopy(self).eval()
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential) and len(module) > 1 \
                    and isinstance(module[0], nn.Conv2d) and isinstance(module[1], nn.BatchNorm2d):
                module[0] = fuse_conv_bn_eval(module[0], module[1])
                module[1] = nn.Identity()
        return network


class CellDistributions(nn.Module):
    """A network as inference uses it: one image in, log-probabilities out."""

    def __init__(self, network: CompactNetwork, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_precision = half

    def forward(self, gray: Tensor) -> Tensor:
        """
        Predict the displacement over the exposure.

        :param gray: (1, 1, H, W), 0 to 1 as the camera encodes it, H and W multiples of 8
        :returns: log-probabilities of the bins, (H / 8, W / 8, BINS), float32
        """
        with torch.autocast(gray.device.type, torch.bfloat16, enabled=self.half_precision):
            logits = self.network(gray)
        return torch.log_softmax(logits.float(), dim=1)[0].movedim(0, -1).contiguous()

    def traced(self) -> torch.jit.ScriptModule:
        """
        The same function for the CPU in one call, for images of any size.

        It leaves Python's interpreter lock alone, so that another thread can go on with the
        image before: run step by step, the two take twice as long.
        """
        with warnings.catch_warnings(), torch.no_grad():
            # torch.export, the successor, needs a C++ compiler to make code as quick
            warnings.simplefilter('ignore', FutureWarning)
            example = torch.zeros(1, 1, 8 * STRIDE_PX, 8 * STRIDE_PX)
            return torch.jit.freeze(torch.jit.trace(self.eval(), example))
