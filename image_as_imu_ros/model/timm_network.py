"""Distributions of displacements from any of timm's backbones, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.model.network import (
    WIDTHS,
    DirectionalStructure,
    DisplacementNetwork,
)
from image_as_imu_ros.model.weights_files import TIMM

STRIDES_PX = (8, 16, 32)
"""Of the backbone's features that the decoder joins."""
UPSAMPLING = 4
"""From the structure's cells to pixels."""


class TimmNetwork(DisplacementNetwork):
    """
    A backbone that sees the gray image and its directional structure, untrained at first.

    From the gray image alone it would learn next to nothing: without training on other images
    it stays at zero motion.

    :param name: of timm's model, such as `mobilenetv4_conv_small`
    :param widths: channels of the decoder are those at strides 8 and 16
    :raises ConfigError: if timm has no such backbone, or none with features at strides 8 to 32
    """

    def __init__(self, name: str, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        import timm  # for this network alone, as it takes a second to load
        super().__init__()
        self.architecture = TIMM + name
        channels = 1 + DirectionalStructure.channels
        try:
            with torch.device('meta'):
                strides = timm.create_model(name, features_only=True).feature_info.reduction()
            self.backbone = timm.create_model(
                name, features_only=True, in_chans=channels,
                out_indices=[strides.index(stride) for stride in STRIDES_PX])
            with torch.no_grad():  # transformers may be bound to one image size
                self.backbone.eval()(torch.zeros(1, channels, 64, 96))
            self.backbone.train()
        except Exception as error:  # timm raises many kinds for names and for ill-suited models
            raise ConfigError(
                f'architecture "{self.architecture}" cannot be built, or does not give features '
                f'of images of any size at strides 8, 16 and 32: {error}') from error
        self.norm = nn.BatchNorm2d(channels)
        self.add_decoder(tuple(self.backbone.feature_info.channels()), widths[1:3])

    def encode(self, structure: Tensor, gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 8, 16 and 32, of the image and its structure."""
        seen = torch.cat([gray, functional.interpolate(structure, scale_factor=UPSAMPLING)], 1)
        f8, f16, f32 = self.backbone(self.norm(seen))
        return f8, f16, f32
