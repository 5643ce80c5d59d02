"""Imagery for synthetic blur: photographs, panoramas and endless procedural patterns."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from image_as_imu_ros.errors import DataFormatError

GAMMA = 2.2
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.hdr')
MAX_SIDE_PX = 1600
MIN_CONTRAST = 0.25
"""Images whose standard deviation is a smaller part of their mean show too little."""
HELD_OUT_EVERY = 8
"""Every eighth image, in order of name, is kept for validation."""


def load_textures(folder: Path, held_out: bool) -> list[np.ndarray]:
    """
    Load the images below a folder as linear-light gray.

    :param held_out: the validation share instead of the training share
    :returns: (H, W) float32 images, 0 to 1, brighter where the source has high dynamic range
    :raises DataFormatError: if there is no readable image
    """
    paths = sorted(p for p in Path(folder).rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    textures = []
    for index, path in enumerate(paths):
        if (index % HELD_OUT_EVERY == 0) != held_out:
            continue
        image = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
        if image is None:
            raise DataFormatError(f'cannot decode {path}; remove it or replace it')
        shrink = min(1.0, MAX_SIDE_PX / max(image.shape))
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if path.suffix.lower() == '.hdr':
            linear = gray / max(float(np.percentile(gray, 90)), 1e-6) * 0.8
        else:
            linear = (gray.astype(np.float32) / 255.0) ** GAMMA
        linear = cv2.resize(linear, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        if linear.std() > MIN_CONTRAST * linear.mean():
            textures.append(linear.clip(0.0, 50.0).astype(np.float32))
    if not textures:
        raise DataFormatError(f'no image ({", ".join(IMAGE_SUFFIXES)}) below {folder}')
    return textures


def procedural_texture(rng: np.random.Generator, side_px: int = 640) -> np.ndarray:
    """
    Draw a random pattern of shapes, lines, bricks or writing over smooth shading.

    :returns: (side, side) float32 in linear light, 0 to about 1
    """
    canvas = np.full((side_px, side_px), rng.uniform(0.05, 0.9), np.float32)
    canvas += _fractal_noise(rng, side_px) * rng.uniform(0.0, 0.3)
    for draw in rng.choice([_leaves, _lines, _bricks, _writing], size=rng.integers(1, 4),
                           p=[0.4, 0.2, 0.25, 0.15]):
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
