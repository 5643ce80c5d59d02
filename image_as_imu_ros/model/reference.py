"""
The paper's network: RGB image in, dense flow over the exposure and metric depth out.

Tensors carry the names of the published checkpoint, so that it loads strictly. The encoder is
MSCAN-B, the decoders are light Hamburger heads.

Source: Chen and Clark (2025), arXiv:2503.17358; Guo et al. (2022), SegNeXt, arXiv:2209.08575;
Geng et al. (2021), Hamburger, arXiv:2109.04553.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.model.weights_files import REFERENCE

WIDTHS = (64, 128, 320, 512)
DEPTHS = (3, 3, 12, 3)
MLP_RATIOS = (8, 8, 4, 4)
STRIP_LENGTHS_PX = (7, 11, 21)
HAM_CHANNELS = 512
FINE_CHANNELS = 64
BASES = 64
FACTORISATION_STEPS = 7
BASES_SEED = 0
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ReferenceNetwork(nn.Module):
    """
    Encoder and two decoders, for flow and depth.

    The reference draws the bases of its decoders' factorisations anew for each image, and its
    output changes with them. Here they are drawn once, by a generator of their own.

    :param bases_seed: 0 gives what the reference gives after `torch.manual_seed(0)`
    """

    architecture = REFERENCE

    def __init__(self, bases_seed: int = BASES_SEED) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(bases_seed)
        self.backbone = Encoder()
        self.ll_enc = FineEncoder()
        self.flow_decoder = Decoder('linear_pred_flow', 2, generator)
        self.depth_decoder = Decoder('linear_pred_depth', 1, generator)
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """
        Predict flow and depth.

        :param rgb: (B, 3, H, W), 0 to 1 as the camera encodes it, H and W multiples of 4
        :returns: flow over the exposure, of either sign, (B, 2, H, W), (u, v), px; and depth,
            (B, H, W), m
        """
        normalised = (rgb - self.mean) / self.std
        fine = self.ll_enc(normalised)
        coarse = self.backbone(255.0 * normalised.flip(1))  # as the weights were trained
        flow = self.flow_decoder(coarse, fine)
        return flow, self.depth_decoder(coarse, fine)[:, 0].exp()

    def predict(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """
        Predict flow and depth of images of one size, on the network's device.

        :param images: (H, W, 3) float32 RGB, 0 to 1, H and W multiples of 4
        :returns: (B, 2, H, W) px and (B, H, W) m, as of `forward`
        """
        rgb = torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous()
        with torch.inference_mode():
            flow, depth = self(rgb.to(self.mean.device))
        return flow.cpu().numpy(), depth.cpu().numpy()


class Encoder(nn.Module):
    """MSCAN-B: four stages of convolutional attention, at strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        width_in = 3
        for stage, (width, depth, ratio) in enumerate(zip(WIDTHS, DEPTHS, MLP_RATIOS), start=1):
            embedding = Stem(width) if stage == 1 else PatchEmbedding(width_in, width)
            self.add_module(f'patch_embed{stage}', embedding)
            blocks = [AttentionBlock(width, width * ratio) for _ in range(depth)]
            self.add_module(f'block{stage}', nn.ModuleList(blocks))
            self.add_module(f'norm{stage}', nn.LayerNorm(width))
            width_in = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of an image (B, 3, H, W) at strides 4, 8, 16, 32."""
        features = []
        for stage in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f'patch_embed{stage}')(x)
            for block in self.get_submodule(f'block{stage}'):
                x = block(x)
            norm = self.get_submodule(f'norm{stage}')
            x = norm(x.movedim(1, -1)).movedim(-1, 1)
            features.append(x)
        return features


class Stem(nn.Module):
    """From the image to stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, 2, padding=1), nn.BatchNorm2d(width // 2), nn.GELU(),
            nn.Conv2d(width // 2, width, 3, 2, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Embed an image (B, 3, H, W)."""
        return self.proj(x)


class PatchEmbedding(nn.Module):
    """Overlapping patches, at half the resolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width_in, width, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Embed features (B, width_in, H, W)."""
        return self.norm(self.proj(x))


class AttentionBlock(nn.Module):
    """Attention, then a feed-forward part, each scaled and added to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.attn = Attention(width)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = FeedForward(width, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 0.01))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """Refine features (B, width, H, W)."""
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Gated convolutional attention between two projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(width, width, 1)
        self.spatial_gating_unit = SpatialGate(width)
        self.proj_2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within features (B, width, H, W)."""
        return x + self.proj_2(self.spatial_gating_unit(functional.gelu(self.proj_1(x))))


class SpatialGate(nn.Module):
    """Multiplies features by a wide view of them: a 5x5 window and three crosses of strips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        for index, length in enumerate(STRIP_LENGTHS_PX):
            reach = length // 2
            self.add_module(f'conv{index}_1', nn.Conv2d(
                width, width, (1, length), padding=(0, reach), groups=width))
            self.add_module(f'conv{index}_2', nn.Conv2d(
                width, width, (length, 1), padding=(reach, 0), groups=width))
        self.conv3 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate features (B, width, H, W)."""
        window = self.conv0(x)
        view = window
        for index in range(len(STRIP_LENGTHS_PX)):
            along, across = (self.get_submodule(f'conv{index}_{part}') for part in (1, 2))
            view = view + across(along(window))
        return x * self.conv3(view)


class FeedForward(nn.Module):
    """Two 1x1 convolutions with a 3x3 depthwise one between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.dwconv = nn.ModuleDict({'dwconv': nn.Conv2d(hidden, hidden, 3, padding=1,
                                                         groups=hidden)})
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features (B, width, H, W)."""
        return self.fc2(functional.gelu(self.dwconv['dwconv'](self.fc1(x))))


class Convolution(nn.Module):
    """One convolution that keeps the size, and a ReLU."""

    def __init__(self, width_in: int, width: int, kernel: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform features (B, width_in, H, W)."""
        return functional.relu(self.conv(x))


class FineEncoder(nn.Module):
    """Two convolutions at full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Convolution(3, FINE_CHANNELS, 3)
        self.conv2 = Convolution(FINE_CHANNELS, FINE_CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, FINE_CHANNELS, H, W) of an image (B, 3, H, W)."""
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """
    Hamburger head and the last, linear layer.

    :param prediction: the linear layer's name
    """

    def __init__(self, prediction: str, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.decoder = HamburgerHead(generator)
        self.prediction = prediction
        self.add_module(prediction, nn.Conv2d(FINE_CHANNELS, channels, 1))

    def forward(self, coarse: list[Tensor], fine: Tensor) -> Tensor:
        """Predict (B, channels, H, W) from both encoders' features."""
        return self.get_submodule(self.prediction)(self.decoder(coarse, fine))


class HamburgerHead(nn.Module):
    """Joins all stages at stride 4, and goes up to the image's size."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.squeeze = Convolution(sum(WIDTHS), HAM_CHANNELS, 1)
        self.hamburger = Hamburger(generator)
        self.align = Convolution(HAM_CHANNELS, FINE_CHANNELS, 1)
        self.out_conv = Convolution(FINE_CHANNELS, FINE_CHANNELS, 3, bias=False)
        self.ll_fusion = Fusion()

    def forward(self, coarse: list[Tensor], fine: Tensor) -> Tensor:
        """Features (B, FINE_CHANNELS, H, W)."""
        size = coarse[0].shape[-2:]
        x = torch.cat([_resized(level, size) for level in coarse], dim=1)
        x = self.align(self.hamburger(self.squeeze(x)))
        x = self.out_conv(_resized(x, [2 * side for side in size]))
        return self.ll_fusion(_resized(x, fine.shape[-2:]), fine)


class Hamburger(nn.Module):
    """Two linear layers around a low-rank approximation of the features."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.ham_in = Convolution(HAM_CHANNELS, HAM_CHANNELS, 1)
        self.ham_out = Convolution(HAM_CHANNELS, HAM_CHANNELS, 1)
        bases = functional.normalize(torch.rand(HAM_CHANNELS, BASES, generator=generator), dim=0)
        self.register_buffer('bases', bases, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Refine features (B, HAM_CHANNELS, H, W)."""
        ham = low_rank(self.ham_in(x).flatten(2), self.bases).view(x.shape)
        return functional.relu(x + self.ham_out(ham))


def low_rank(x: Tensor, bases: Tensor) -> Tensor:
    """
    Approximate matrices by non-negative factors, in a few multiplicative steps.

    :param x: (B, D, N), not negative
    :param bases: (D, R), where the factor D x R starts
    :returns: (B, D, N) of rank R

    Source: Lee and Seung (2000), Algorithms for Non-negative Matrix Factorization.
    """
    bases = bases.expand(len(x), -1, -1)
    codes = (x.mT @ bases).softmax(dim=-1)
    for _ in range(FACTORISATION_STEPS):
        codes = _step(codes, x.mT, bases)
        bases = _step(bases, x, codes)
    return bases @ _step(codes, x.mT, bases).mT


def _step(factor: Tensor, product: Tensor, other: Tensor) -> Tensor:
    """One multiplicative step of `factor` towards factor @ other.mT = product."""
    return factor * (product @ other) / (factor @ (other.mT @ other) + 1e-6)


class Fusion(nn.Module):
    """Adds the fine features, refined, to the upsampled ones, and refines the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit()
        self.resConfUnit2 = ResidualUnit()

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        """Fuse two tensors of the same shape (B, FINE_CHANNELS, H, W)."""
        return self.resConfUnit2(x + self.resConfUnit1(fine))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions around a skip connection, with ReLU before each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FINE_CHANNELS, FINE_CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(FINE_CHANNELS, FINE_CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refine features (B, FINE_CHANNELS, H, W)."""
        x = functional.relu(x)  # the skip connection, too, starts behind it
        return x + self.conv2(functional.relu(self.conv1(x)))


def _resized(x: Tensor, size: list[int] | torch.Size) -> Tensor:
    """Bilinear interpolation to the given height and width."""
    return functional.interpolate(x, size=list(size), mode='bilinear', align_corners=False)


def random_state() -> dict[str, Tensor]:
    """
    Untrained tensors of every name, the same each time, to time and test the network with.

    Each follows from its name alone, as the golden output of the reference implementation was
    made: convolutions by their fan-in, norms about one, all else small.
    """
    state = {}
    for name, tensor in ReferenceNetwork().state_dict().items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        shape = tuple(tensor.shape)
        if name.endswith('num_batches_tracked'):
            values = np.zeros(shape)
        elif name.endswith('running_var'):
            values = 1.0 + 0.1 * random.random(shape)
        elif len(shape) == 4:
            values = random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        else:
            values = 0.1 * random.standard_normal(shape) + float(name.endswith('weight'))
        state[name] = torch.as_tensor(values).to(tensor.dtype)
    return state
