"""Imagery for synthetic blur: photographs, panoramas and endless procedural patterns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from image_as_imu_ros.errors import DataFormatError

GAMMA = 2.2
"""Of displays, nearly that of sRGB."""
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.hdr')
PANORAMA_SUFFIX = '.hdr'
MAX_SIDE_PX = 1600
MIN_SIDE_PX = 64
"""Of the coarsest level of a texture."""
MIN_CONTRAST = 0.25
"""Images whose standard deviation is a smaller part of their mean show too little."""
HELD_OUT_EVERY = 8
"""Every eighth image, in order of name, is kept for validation."""
HELD_OUT_ROOM = 'aws_small_warehouse'
"""This room's meshes are never rendered for training, nor its textures shown."""
ROOM_FILE = 'scene.npz'
LAMP = 255
"""Code of what shines by itself."""
TONES = (np.arange(256, dtype=np.float32) / (LAMP - 1)) ** np.float32(GAMMA)
"""Linear light of the codes of a texture; reflecting surfaces have those below LAMP."""


@dataclass(frozen=True)
class Texture:
    """A picture in several resolutions, each half of the one before, finest first."""

    levels: list[np.ndarray]
    """(h, w, 3) uint8, indices of TONES; of panoramas a single one, float32 in linear light."""
    panorama: bool = False
    """Equirectangular, twice as wide as high, its middle ahead and its top up."""

    @classmethod
    def of_light(cls, light: np.ndarray) -> Texture:
        """Halve a picture (h, w, 3) in linear light down to MIN_SIDE_PX, and encode it."""
        levels = []
        while not levels or min(light.shape[:2]) >= 2 * MIN_SIDE_PX:
            if levels:
                light = cv2.resize(light, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            codes = np.clip(light, 0.0, 1.0) ** np.float32(1.0 / GAMMA) * (LAMP - 1)
            levels.append(np.rint(codes).astype(np.uint8))
        return cls(levels)


def image_files(folder: Path, held_out: bool) -> list[Path]:
    """
    The images below a folder that are for training, or those that are kept for validation.

    Textures of a room's meshes are never kept as pictures; those of HELD_OUT_ROOM are neither.
    """
    paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    chosen = []
    for index, path in enumerate(paths):
        rooms = [parent for parent in path.parents if (parent / ROOM_FILE).is_file()]
        if any(room.name == HELD_OUT_ROOM for room in rooms):
            continue
        if (index % HELD_OUT_EVERY == 0) == held_out and not (rooms and held_out):
            chosen.append(path)
    return chosen


def load_textures(folder: Path, held_out: bool) -> list[Texture]:
    """
    Load the images below a folder.

    :param held_out: those of the validation share instead of the training share
    :raises DataFormatError: if there is no readable image with some contrast
    """
    textures = []
    for path in image_files(folder, held_out):
        image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
        if image is None:
            raise DataFormatError(f'cannot decode {path}; remove it or replace it')
        shrink = min(1.0, MAX_SIDE_PX / max(image.shape))
        panorama = path.suffix.lower() == PANORAMA_SUFFIX
        light = image[..., ::-1] if panorama else (image[..., ::-1] / np.float32(255.0)) ** GAMMA
        light = cv2.resize(np.ascontiguousarray(light, np.float32), None, fx=shrink, fy=shrink,
                           interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(light, cv2.COLOR_RGB2GRAY)
        if panorama:
            scale = 0.8 / max(float(np.percentile(gray, 90)), 1e-6)
            light, gray = (scale * values for values in (light, gray))
            light = light.clip(0.0, 50.0)
        if gray.std() > MIN_CONTRAST * gray.mean():
            textures.append(Texture([light], panorama) if panorama else Texture.of_light(light))
    if not textures:
        raise DataFormatError(f'no image ({", ".join(IMAGE_SUFFIXES)}) below {folder}')
    return textures


def tinted(rng: np.random.Generator, pattern: np.ndarray) -> np.ndarray:
    """Colour a gray pattern, (h, w, 3) float32 in linear light, from a dark to a bright colour."""
    dark, bright = rng.uniform(0.02, 0.1, 3), rng.uniform(0.4, 0.9) * rng.uniform(0.7, 1, 3)
    return (dark + np.minimum(pattern, 1)[..., None] * (bright - dark)).astype(np.float32)


def procedural_texture(rng: np.random.Generator, side_px: int = 640) -> np.ndarray:
    """
    Draw a random pattern of shapes, lines, bricks, writing or strands over smooth shading.

    :returns: (side, side) float32 in linear light, 0 to about 1
    """
    canvas = np.full((side_px, side_px), rng.uniform(0.05, 0.9), np.float32)
    canvas += _fractal_noise(rng, side_px) * rng.uniform(0.0, 0.3)
    for draw in rng.choice([_leaves, _lines, _bricks, _writing, _strands],
                           size=rng.integers(1, 4), p=[0.35, 0.15, 0.2, 0.15, 0.15]):
        draw(rng, canvas)
    canvas += _fractal_noise(rng, side_px) * rng.uniform(0.0, 0.15)
    return np.abs(canvas) ** rng.uniform(1.0, 2.2)


def _fractal_noise(rng: np.random.Generator, side_px: int) -> np.ndarray:
    noise = np.zeros((side_px, side_px), np.float32)
    fall = rng.uniform(0.35, 0.75)
    for octave in range(2, 9):
        cells = rng.standard_normal((2 ** octave, 2 ** octave)).astype(np.float32)
        noise += cv2.resize(cells, (side_px, side_px), interpolation=cv2.INTER_CUBIC) \
            * fall ** octave
    return noise / (noise.std() + 1e-6)


def _leaves(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Occluding discs and polygons with a power law of sizes ("dead leaves")."""
    side = canvas.shape[0]
    for _ in range(int(rng.integers(200, 1500))):
        radius = float(min(side / 6, 3.0 * rng.pareto(1.3) + 2.0))
        x, y = rng.uniform(0, side, 2)
        shade = float(rng.uniform(0.0, 1.0))
        if rng.random() < 0.4:
            cv2.circle(canvas, (int(x), int(y)), int(radius), shade, -1, cv2.LINE_AA)
        else:
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
            stretch = np.array([1.0, rng.uniform(0.2, 1.0)])
            corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * stretch
            turn = rng.uniform(0, np.pi)
            spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            points = (corners @ spin.T + (x, y)).astype(np.int32)
            cv2.fillPoly(canvas, [points], shade, cv2.LINE_AA)


def _lines(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Straight edges and thin bars, as of furniture, windows and cables."""
    side = canvas.shape[0]
    for _ in range(int(rng.integers(15, 120))):
        a, b = rng.uniform(-0.2 * side, 1.2 * side, (2, 2))
        if rng.random() < 0.6:
            b[int(rng.integers(2))] = a[int(rng.integers(2))]
        cv2.line(canvas, tuple(map(int, a)), tuple(map(int, b)), float(rng.uniform(0, 1)),
                 int(rng.integers(1, 12)), cv2.LINE_AA)


def _bricks(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A patch of bricks, tiles or stripes."""
    side = canvas.shape[0]
    width, height = int(rng.integers(6, 80)), int(rng.integers(4, 50))
    x0, y0 = rng.integers(0, side // 2, 2)
    x1, y1 = x0 + rng.integers(side // 4, side), y0 + rng.integers(side // 4, side)
    base, spread, joint = rng.uniform(0.2, 0.8), rng.uniform(0.0, 0.2), int(rng.integers(0, 4))
    for row, y in enumerate(range(y0, min(y1, side), height)):
        for x in range(x0 - (row % 2) * width // 2, min(x1, side), width):
            cv2.rectangle(canvas, (x, y), (x + width - 1 - joint, y + height - 1 - joint),
                          float(base + spread * rng.standard_normal()), -1)


def _writing(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Lines of letters in several sizes."""
    side = canvas.shape[0]
    letters = np.array(list('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-'))
    for shade in rng.uniform(0, 1, 3):
        ink = np.zeros((side, side), np.uint8)
        for _ in range(int(rng.integers(4, 25))):
            text = ''.join(rng.choice(letters, rng.integers(3, 24)))
            cv2.putText(ink, text, tuple(map(int, rng.integers(-50, side, 2))),
                        int(rng.integers(0, 5)), float(rng.uniform(0.3, 2.5)), 255,
                        int(rng.integers(1, 4)), cv2.LINE_AA)
        canvas += (np.float32(shade) - canvas) * (ink / np.float32(255))


def _strands(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A patch of hair, grass or grain: streaks side by side that no motion has drawn."""
    side = canvas.shape[0]
    bend, count = rng.uniform(0.0, 3.0), int(rng.integers(500, 5000))
    corner, size = rng.uniform(-0.3, 0.4, 2) * side, rng.uniform(0.4, 1.4, 2) * side
    coarse = rng.standard_normal((4, 4)).astype(np.float32)
    heading = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) * bend
    heading += rng.uniform(0.0, 2 * np.pi)
    steps, step_px = 6, np.exp(rng.uniform(np.log(2.0), np.log(25.0)))
    points = np.empty((count, steps, 2))
    points[:, 0] = corner + size * rng.random((count, 2))
    for step in range(1, steps):
        x, y = points[:, step - 1].clip(0, side - 1).astype(int).T
        angle = heading[y, x] + rng.normal(0.0, 0.15, count)
        points[:, step] = points[:, step - 1] \
            + step_px * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    base, spread = rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.3)
    width = int(rng.integers(1, 4))
    for strand, shade in zip(np.rint(points).astype(np.int32), rng.normal(base, spread, count)):
        cv2.polylines(canvas, [strand], False, float(shade), width, cv2.LINE_AA)
