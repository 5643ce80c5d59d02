"""
From the light that a lens gathers to the bytes that a camera hands out, in physical order.

`exposure.integrate` collects linear light over an exposure; `develop` does the rest: lens,
metering, saturation, mosaic, noise, white balance, tone, denoising, sharpening, 8 bits and codec.
Vignetting, lateral colour and defocus act linearly on the plane of the sensor and do not change
during an exposure, so that they are applied once to the integral instead of to every instant.

All is batched in torch, on whatever device the light lies, and a pure function of light, cameras
and `SensorParameters`; these are a pure function of a generator and a `SensorConfig`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from image_as_imu_ros.errors import ConfigError
from image_as_imu_ros.synthesis.textures import GAMMA
from image_as_imu_ros.types import CameraIntrinsics

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601), also JPEG's and OpenCV's."""
DISC_PX, GAUSSIAN_PX = 2, 3
"""Reach of the kernels of defocus, and of denoising and sharpening."""

Range = tuple[float, float]


@dataclass(frozen=True)
class SensorConfig:
    """
    Ranges that cameras are drawn from, even between their ends, and shares of those that have it.

    A share is the probability that the effect is there at all.
    """

    level: Range = (0.08, 0.4)
    """Mean of the image's light over what saturates, logarithmic: auto exposures aim at 0.12 to
    0.18 (ISO 2721), by hand and in poor light they miss."""
    vignetting: Range = (0.0, 1.5)
    """Exponent of the lens's cos^4 law, over 4: 1 is natural vignetting, more is mechanical, 0 is
    corrected by the camera."""
    aberration: Range = (-1.5e-3, 1.5e-3)
    """Lateral colour: by how much red, and as much the other way blue, is magnified; 0.2 px in
    the corner of 320 px, as of corrected phone and C-mount lenses (under 1/1000 of the field)."""
    aberration_share: float = 0.4
    defocus_px: Range = (0.4, 1.5)
    """Radius of the disc; the paper augments with 1 to 1.5."""
    defocus_share: float = 0.25
    readout_s: Range = (2e-3, 30e-3)
    """From the first to the last row, logarithmic: 5 to 30 ms for phones (Liang et al. 2008,
    doi:10.1109/TIP.2008.925384), less for stacked and machine-vision sensors."""
    rolling_share: float = 0.3
    flicker_hz: tuple[float, ...] = (100.0, 120.0)
    """Light of the mains at 50 and 60 Hz."""
    flicker_depth: Range = (0.05, 0.9)
    """(max - min) / (max + min): bulbs 0.05 to 0.2, fluorescent tubes 0.2 to 0.6, LEDs to 1
    (IEEE 1789-2015, annex)."""
    flicker_share: float = 0.2
    sensitivity: Range = (0.4, 0.8)
    """Of red and of blue against green under white light, as of silicon behind Bayer filters."""
    balance_error: float = 0.08
    """Deviation of the gains of white balance about the right ones, relative."""
    mono_share: float = 0.2
    bayer_share: float = 0.4
    """Colour cameras whose mosaic is of the image's own resolution; of the others several pixels
    make one, so that each has all colours."""
    full_well_e: Range = (500.0, 2e5)
    """Electrons that saturate a pixel, logarithmic: 5e3 to 1e4 of a phone's at the lowest gain, a
    tenth at high ones, and times the number of pixels that a reduced image's are made of."""
    read_noise_e: Range = (1.0, 8.0)
    """Electrons at a full well of 5e3; as the square root of the full well with others (EMVA
    1288 data sheets: 1 to 10)."""
    saturation: Range = (0.6, 1.2)
    """Colour of the image against that of the scene."""
    gamma: Range = (1.9, 2.5)
    """Of the tone curve, about the 2.2 of sRGB."""
    contrast: Range = (0.0, 0.5)
    """How much of a smooth step is mixed into the tone curve, as of phones' film-like curves."""
    contrast_share: float = 0.4
    denoise: Range = (0.3, 1.0)
    """Of the differences from the surroundings that are small against `denoise_level`, the part
    that is removed."""
    denoise_level: Range = (0.01, 0.05)
    """Of full scale, after the tone curve."""
    denoise_px: Range = (0.5, 1.5)
    denoise_share: float = 0.4
    sharpen: Range = (0.2, 1.2)
    """Unsharp mask: part of the detail that is added; phones show halos, hence over 1."""
    sharpen_px: Range = (0.6, 1.5)
    sharpen_share: float = 0.5
    jpeg_quality: Range = (30.0, 98.0)
    """libjpeg's scale; phones write 90 to 96, webcams' MJPEG and robots' topics 50 to 95."""
    jpeg_share: float = 0.5
    h264_qp: Range = (16.0, 34.0)
    """Quantiser of an intra frame; x264's default rate factor of 23 lies in the middle."""
    h264_share: float = 0.0
    """Needs PyAV, which takes 10 ms an image, hence off by default."""


RETAKE = SensorConfig(
    level=(0.8, 1.25), vignetting=(0.0, 0.0), aberration_share=0.0, defocus_px=(1.0, 1.5),
    defocus_share=0.3, rolling_share=0.0, flicker_share=0.0, sensitivity=(1.0, 1.0),
    mono_share=0.2, bayer_share=0.0, full_well_e=(400.0, 1e5), gamma=(GAMMA, GAMMA),
    contrast_share=0.0, denoise_share=0.0, sharpen_share=0.0, jpeg_quality=(20.0, 100.0),
    jpeg_share=0.3, saturation=(0.8, 1.2))
"""
The paper's augmentation of pictures that are taken already: another exposure, colour balance and
saturation, gray, defocus, noise and compression.
"""


@dataclass(frozen=True)
class SensorParameters:
    """One camera and its settings; the fields are as in `SensorConfig`."""

    level: float
    vignetting: float
    aberration: float
    defocus_px: float
    """0 for none."""
    readout_s: float
    """0 for a global shutter."""
    flicker_hz: float
    flicker_depth: float
    """0 for steady light."""
    flicker_phase_rad: float
    """At the middle of the exposure; 0 is the light's maximum."""
    sensitivity: tuple[float, float, float]
    balance: tuple[float, float, float]
    """Gains of white balance."""
    mono: bool
    bayer: bool
    bayer_phase: int
    """Which of the four places of a 2 x 2 tile is red: 0 to 3, row by row."""
    full_well_e: float
    read_noise_e: float
    saturation: float
    gamma: float
    contrast: float
    denoise: float
    denoise_level: float
    denoise_px: float
    sharpen: float
    sharpen_px: float
    jpeg_quality: int
    """0 for none."""
    h264_qp: int
    """0 for none."""
    noise_seed: int


PLAIN = SensorParameters(
    level=0.0, vignetting=0.0, aberration=0.0, defocus_px=0.0, readout_s=0.0, flicker_hz=100.0,
    flicker_depth=0.0, flicker_phase_rad=0.0, sensitivity=(1.0, 1.0, 1.0),
    balance=(1.0, 1.0, 1.0), mono=False, bayer=False, bayer_phase=0, full_well_e=math.inf,
    read_noise_e=0.0, saturation=1.0, gamma=GAMMA, contrast=0.0, denoise=0.0, denoise_level=1.0,
    denoise_px=1.0, sharpen=0.0, sharpen_px=1.0, jpeg_quality=0, h264_qp=0, noise_seed=0)
"""A camera without faults: light is metered by nobody, saturates at 1, and becomes bytes."""


def draw(config: SensorConfig, generator: torch.Generator) -> SensorParameters:
    """Draw a camera; it takes the same amount of numbers from the generator whatever it draws."""
    numbers = iter(torch.rand(48, generator=generator, dtype=torch.float64).tolist())

    def even(bounds: Range) -> float:
        return bounds[0] + (bounds[1] - bounds[0]) * next(numbers)

    def logarithmic(bounds: Range) -> float:
        return math.exp(even((math.log(bounds[0]), math.log(bounds[1]))))

    def sometimes(share: float, value: float) -> float:
        return value if next(numbers) < share else 0.0

    red, blue = even(config.sensitivity), even(config.sensitivity)
    errors = [1.0 + config.balance_error * even((-3 ** 0.5, 3 ** 0.5)) for _ in range(3)]
    full_well_e = logarithmic(config.full_well_e)
    kind = next(numbers)
    return SensorParameters(
        level=logarithmic(config.level), vignetting=even(config.vignetting),
        aberration=sometimes(config.aberration_share, even(config.aberration)),
        defocus_px=sometimes(config.defocus_share, even(config.defocus_px)),
        readout_s=sometimes(config.rolling_share, logarithmic(config.readout_s)),
        flicker_hz=config.flicker_hz[int(next(numbers) * len(config.flicker_hz))],
        flicker_depth=sometimes(config.flicker_share, even(config.flicker_depth)),
        flicker_phase_rad=even((0.0, 2 * math.pi)),
        sensitivity=(red, 1.0, blue),
        balance=(errors[0] / red, errors[1], errors[2] / blue),
        mono=kind < config.mono_share,
        bayer=config.mono_share <= kind < config.mono_share + config.bayer_share,
        bayer_phase=int(next(numbers) * 4), full_well_e=full_well_e,
        read_noise_e=even(config.read_noise_e) * math.sqrt(full_well_e / 5e3),
        saturation=even(config.saturation), gamma=even(config.gamma),
        contrast=sometimes(config.contrast_share, even(config.contrast)),
        denoise=sometimes(config.denoise_share, even(config.denoise)),
        denoise_level=even(config.denoise_level), denoise_px=even(config.denoise_px),
        sharpen=sometimes(config.sharpen_share, even(config.sharpen)),
        sharpen_px=even(config.sharpen_px),
        jpeg_quality=round(sometimes(config.jpeg_share, even(config.jpeg_quality))),
        h264_qp=round(sometimes(config.h264_share, even(config.h264_qp))),
        noise_seed=int(next(numbers) * 2 ** 53))


def develop(light: Tensor, cameras: Sequence[CameraIntrinsics],
            sensors: Sequence[SensorParameters]) -> Tensor:
    """
    Turn light into images.

    :param light: (B, 3, H, W) float32, linear red, green and blue, not clipped
    :param cameras, sensors: B of each
    :returns: (B, 3, H, W) uint8; the channels of mono cameras are alike
    :raises ConfigError: if an image is to be H.264 coded and PyAV is not installed
    """
    rgb = optics(light, cameras, sensors)
    rgb = collect(meter(rgb, sensors), sensors)
    rgb = finish(rgb, sensors)
    image = (rgb.clamp_(0.0, 1.0) * 255.0).round_()
    return h264(jpeg(image, sensors), sensors).to(torch.uint8)


def retake(images: Tensor, cameras: Sequence[CameraIntrinsics],
           sensors: Sequence[SensorParameters]) -> Tensor:
    """
    Photograph finished images (B, 3, H, W) uint8 once more, as cameras drawn from RETAKE do.

    Their `level` counts from the brightness that there is.
    """
    light = (images.float() / 255.0) ** GAMMA
    was = brightness(light).flatten().tolist()
    return develop(light, cameras, [dataclasses.replace(sensor, level=level * sensor.level)
                                    for sensor, level in zip(sensors, was)])


def optics(light: Tensor, cameras: Sequence[CameraIntrinsics],
           sensors: Sequence[SensorParameters]) -> Tensor:
    """What the lens does to light (B, 3, H, W): vignetting, lateral colour, defocus."""
    height, width = light.shape[2:]
    centre = _columns(light, [(camera.cx_px, camera.cy_px) for camera in cameras])
    focal = _columns(light, [(camera.fx_px, camera.fy_px) for camera in cameras])
    x = torch.arange(width, device=light.device) - centre[:, :1]  # (B, W)
    y = torch.arange(height, device=light.device) - centre[:, 1:]
    tangent = (x / focal[:, :1])[:, None, :] ** 2 + (y / focal[:, 1:])[:, :, None] ** 2
    exponent = _columns(light, [sensor.vignetting for sensor in sensors])[..., None]
    light = light * (1.0 + tangent).pow(-2.0 * exponent)[:, None]

    chosen = [i for i, sensor in enumerate(sensors) if sensor.aberration]
    if chosen:
        by = _columns(light, [sensors[i].aberration for i in chosen])
        coloured = light[chosen]
        for channel, sign in ((0, 1.0), (2, -1.0)):
            scale = 1.0 / (1.0 + sign * by)  # from image to scene
            column, row = (x[chosen] * scale + centre[chosen, :1],
                           y[chosen] * scale + centre[chosen, 1:])
            grid = torch.stack(torch.broadcast_tensors(
                (2.0 * column + 1.0)[:, None, :] / width - 1.0,
                (2.0 * row + 1.0)[:, :, None] / height - 1.0), dim=-1)
            coloured[:, channel:channel + 1] = functional.grid_sample(
                coloured[:, channel:channel + 1], grid, padding_mode='border',
                align_corners=False)
        light[chosen] = coloured

    chosen = [i for i, sensor in enumerate(sensors) if sensor.defocus_px]
    if chosen:
        radius = _columns(light, [sensors[i].defocus_px for i in chosen])[..., None]
        reach = torch.arange(-DISC_PX, DISC_PX + 1, device=light.device, dtype=light.dtype)
        disc = (radius + 0.5 - torch.hypot(reach[None, None, :], reach[None, :, None])).clamp(0, 1)
        light[chosen] = _filter(light[chosen], disc / disc.sum(dim=(1, 2), keepdim=True))
    return light


def meter(light: Tensor, sensors: Sequence[SensorParameters]) -> Tensor:
    """Scale each image so that its brightness is the camera's level."""
    level = _columns(light, [sensor.level for sensor in sensors])[..., None, None]
    return light * torch.where(level > 0, level / (brightness(light) + 1e-9), 1.0)


def brightness(light: Tensor) -> Tensor:
    """Mean of each image (B, C, H, W), lamps cut to three times it: (B, 1, 1, 1)."""
    mean = light.mean(dim=(1, 2, 3), keepdim=True)
    return torch.minimum(light, 3.0 * mean).mean(dim=(1, 2, 3), keepdim=True)


def collect(light: Tensor, sensors: Sequence[SensorParameters]) -> Tensor:
    """
    Collect electrons, behind a mosaic of filters or not, and balance the colours.

    :param light: (B, 3, H, W), 1 saturates green
    :returns: the same, 0 to 1, with the sensor's noise and a mosaic's errors
    """
    mono = _columns(light, [float(sensor.mono) for sensor in sensors])[..., None, None]
    gray = luma(light)
    sensitivity = _columns(light, [sensor.sensitivity for sensor in sensors])[..., None, None]
    filtered = torch.lerp(light * sensitivity, gray.expand_as(light), mono).clamp(0.0, 1.0)

    well = _columns(light, [sensor.full_well_e for sensor in sensors])[..., None, None]
    read = _columns(light, [sensor.read_noise_e for sensor in sensors])[..., None, None]
    noise = torch.empty_like(filtered)
    generator = torch.Generator(light.device)
    for i, sensor in enumerate(sensors):
        # of a mosaic each pixel is read once, and so it is without filters
        channels = 1 if sensor.mono or sensor.bayer else 3
        noise[i] = torch.randn((channels, *light.shape[2:]), device=light.device,
                               generator=generator.manual_seed(sensor.noise_seed))
    deviation = (filtered / well + (read / well) ** 2).sqrt_()
    raw = noise.mul_(torch.where(torch.isinf(well), 0.0, deviation)).add_(filtered)
    raw.clamp_(0.0, 1.0)

    chosen = [i for i, sensor in enumerate(sensors) if sensor.bayer and not sensor.mono]
    if chosen:
        raw[chosen] = demosaic(raw[chosen], [sensors[i].bayer_phase for i in chosen])
    balance = _columns(light, [sensor.balance for sensor in sensors])[..., None, None]
    return raw * torch.where(mono > 0, torch.ones_like(balance), balance)


def demosaic(rgb: Tensor, phases: Sequence[int]) -> Tensor:
    """
    Keep of each pixel the colour of its filter, and interpolate the others linearly.

    :param rgb: (B, 3, H, W)
    :param phases: of B images: place of red in a tile of 2 x 2, 0 to 3, row by row
    """
    height, width = rgb.shape[2:]
    row, column = (torch.arange(size, device=rgb.device) for size in (height, width))
    phase = torch.tensor(phases, device=rgb.device)[:, None, None]
    odd_row = (row[:, None] + phase // 2) % 2
    odd_column = (column + phase % 2) % 2
    red, blue = (odd_row == 0) & (odd_column == 0), (odd_row == 1) & (odd_column == 1)
    sites = torch.stack([red, ~red & ~blue, blue], dim=1).to(rgb)
    tent = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]]).to(rgb)
    cross = tent * (tent != 0.25)  # where green was measured, its neighbours are diagonal
    planes = []
    for channel, kernel in enumerate((tent, cross, tent)):
        part = np.s_[:, channel:channel + 1]
        kernel = kernel.expand(len(rgb), 3, 3)
        # a mean of the neighbours that there are, which is also right along the border
        planes.append(_filter(rgb[part] * sites[part], kernel) / _filter(sites[part], kernel))
    return torch.cat(planes, dim=1)


def finish(rgb: Tensor, sensors: Sequence[SensorParameters]) -> Tensor:
    """What a camera's processor does to linear colours, up to 8 bits: to display values."""
    gray = luma(rgb)
    saturation = _columns(rgb, [0.0 if sensor.mono else sensor.saturation
                                for sensor in sensors])[..., None, None]
    rgb = torch.lerp(gray.expand_as(rgb), rgb, saturation).clamp_(0.0, 1.0)
    power = _columns(rgb, [1.0 / sensor.gamma for sensor in sensors])[..., None, None]
    rgb = rgb.pow_(power)
    contrast = _columns(rgb, [sensor.contrast for sensor in sensors])[..., None, None]
    if contrast.any():
        rgb = torch.lerp(rgb, rgb * rgb * (3.0 - 2.0 * rgb), contrast)

    for name in ('denoise', 'sharpen'):
        chosen = [i for i, sensor in enumerate(sensors) if getattr(sensor, name)]
        if not chosen:
            continue
        strength = _columns(rgb, [getattr(sensors[i], name) for i in chosen])[..., None, None]
        gray = luma(rgb[chosen])
        detail = gray - gaussian(gray, [getattr(sensors[i], f'{name}_px') for i in chosen])
        if name == 'denoise':
            level = _columns(rgb, [sensors[i].denoise_level for i in chosen])[..., None, None]
            detail = -detail * torch.exp(-(detail / level) ** 2)
        rgb[chosen] += strength * detail
    return rgb


def luma(rgb: Tensor) -> Tensor:
    """Gray (B, 1, H, W) of colours (B, 3, H, W)."""
    red, green, blue = LUMA
    return red * rgb[:, :1] + green * rgb[:, 1:2] + blue * rgb[:, 2:]


def gaussian(gray: Tensor, deviations_px: Sequence[float]) -> Tensor:
    """Blur images (B, 1, H, W), each by a Gaussian of its own."""
    reach = torch.arange(-GAUSSIAN_PX, GAUSSIAN_PX + 1, device=gray.device, dtype=gray.dtype)
    kernel = torch.exp(-0.5 * (reach / _columns(gray, deviations_px)) ** 2)
    kernel /= kernel.sum(dim=1, keepdim=True)
    return _filter(_filter(gray, kernel[:, None, :]), kernel[:, :, None])


def jpeg(image: Tensor, sensors: Sequence[SensorParameters]) -> Tensor:
    """
    Lose what libjpeg loses at a quality: quantised cosine terms, colours at half resolution.

    The coder that follows loses nothing and is left out; so whole batches stay on their device.

    :param image: (B, 3, H, W), whole numbers 0 to 255; unchanged where the quality is 0
    """
    chosen = [i for i, sensor in enumerate(sensors) if sensor.jpeg_quality]
    if not chosen:
        return image
    qualities = [sensors[i].jpeg_quality for i in chosen]
    height, width = image.shape[2:]
    padded = functional.pad(image[chosen], (0, -width % 16, 0, -height % 16), mode='replicate')
    to_ycc = torch.tensor([LUMA, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ycc = torch.einsum('ij,bjhw->bihw', to_ycc.to(image), padded)
    gray = quantise_blocks(ycc[:, :1].round() - 128.0, LUMINANCE_TABLE, qualities) + 128.0
    colour = quantise_blocks(functional.avg_pool2d(ycc[:, 1:], 2).round(), CHROMINANCE_TABLE,
                             qualities)
    colour = functional.interpolate(colour, scale_factor=2.0, mode='bilinear')
    rgb = torch.cat([gray + 1.402 * colour[:, 1:],
                     gray - 0.344136 * colour[:, :1] - 0.714136 * colour[:, 1:],
                     gray + 1.772 * colour[:, :1]], dim=1)
    image[chosen] = rgb[..., :height, :width].round().clamp(0.0, 255.0)
    return image


LUMINANCE_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
CHROMINANCE_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32)
"""ITU-T T.81, annex K, tables K.1 and K.2, row by row."""


def quantise_blocks(plane: Tensor, table: tuple[int, ...], qualities: Sequence[int]) -> Tensor:
    """
    Quantise the cosine transform of 8 x 8 blocks, and transform back.

    :param plane: (B, C, H, W), sides multiples of 8, values about 0
    :param qualities: B, libjpeg's: 1 to 100
    """
    order = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos((2 * order + 1) * order[:, None] * math.pi / 16) / 2
    cosines[0] /= 2 ** 0.5
    transform = torch.kron(cosines, cosines).to(plane)  # (64, 64), orthonormal
    scale = torch.tensor([5000 // q if q < 50 else 200 - 2 * q for q in qualities])
    steps = ((torch.tensor(table) * scale[:, None] + 50) // 100).clamp(1, 255).to(plane)
    batch, channels, height, width = plane.shape
    blocks = plane.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    terms = blocks.reshape(batch, -1, 64) @ transform.T
    terms = (terms / steps[:, None]).round_() * steps[:, None]
    blocks = (terms @ transform).view(batch, channels, height // 8, width // 8, 8, 8)
    return blocks.transpose(3, 4).reshape(plane.shape)


def h264(image: Tensor, sensors: Sequence[SensorParameters]) -> Tensor:
    """
    Code images as H.264 intra frames (B, 3, H, W) and decode them, where a quantiser is set.

    :raises ConfigError: if PyAV is not installed
    """
    for i, sensor in enumerate(sensors):
        if sensor.h264_qp:
            coded = _through_h264(image[i].to(torch.uint8).permute(1, 2, 0).cpu().numpy(),
                                  sensor.h264_qp)
            image[i] = torch.from_numpy(coded).permute(2, 0, 1).to(image)
    return image


def _through_h264(rgb: np.ndarray, qp: int) -> np.ndarray:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ConfigError('h264_share: coding H.264 needs PyAV: '
                          "pip install 'image_as_imu_ros[video]'") from error
    coder = av.CodecContext.create('libx264', 'w')
    coder.height, coder.width = rgb.shape[:2]
    coder.pix_fmt, coder.framerate, coder.thread_count = 'yuv420p', 30, 1
    coder.options = {'preset': 'veryfast', 'tune': 'zerolatency', 'qp': str(qp)}
    packets = [*coder.encode(av.VideoFrame.from_ndarray(rgb, format='rgb24')), *coder.encode(None)]
    decoder = av.CodecContext.create('h264', 'r')
    (frame,) = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return frame.to_ndarray(format='rgb24')


def _columns(like: Tensor, values: Sequence[float] | Sequence[tuple[float, ...]]) -> Tensor:
    """Numbers, or tuples of them, one for each image: (B, 1) or (B, K)."""
    return torch.tensor(values, device=like.device, dtype=like.dtype).reshape(len(values), -1)


def _filter(image: Tensor, kernels: Tensor) -> Tensor:
    """Filter images (B, C, H, W), each with its kernel (B, h, w), the border mirrored."""
    batch, channels, height, width = image.shape
    rows, columns = kernels.shape[1:]
    padded = functional.pad(image, (columns // 2,) * 2 + (rows // 2,) * 2, mode='reflect')
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]
    return functional.conv2d(padded.view(1, -1, *padded.shape[2:]), kernels,
                             groups=batch * channels).view(batch, channels, height, width)
