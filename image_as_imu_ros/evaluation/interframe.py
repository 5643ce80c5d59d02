"""
Rotation between neighbouring images from matched features, blind to blur: the usual rival.

ORB features and RANSAC over pure rotations; on shaken recordings this beat SIFT and the
essential matrix (docs/baselines.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.evaluation.sources.recording import FrameRecord, Stream
from image_as_imu_ros.image_decoding import as_gray
from image_as_imu_ros.types import CameraIntrinsics

MAX_FEATURES = 2000
FAST_THRESHOLD = 5
MAX_DISTANCE_RATIO = 0.8
INLIER_PX = 3.0
DRAWS = 200
MIN_INLIERS = 10
SEED = 0


@dataclass(frozen=True)
class _Features:
    """Features of one image: viewing rays (N, 3), unit, and descriptors (N, 32)."""

    rays: np.ndarray
    descriptors: np.ndarray


def interframe_rates(stream: Stream, max_gap_s: float, progress: bool = False) -> np.ndarray:
    """
    Angular velocity at each frame, the mean of those over the gaps before and after it.

    That needs the next image, hence has a frame of latency. Where one gap has no match the other
    counts alone.

    :param max_gap_s: longest time between images that are still compared
    :returns: camera axes, (N, 3) rad/s; NaN where neither gap has a match
    """
    detector = cv2.ORB_create(MAX_FEATURES, fastThreshold=FAST_THRESHOLD)
    random = np.random.default_rng(SEED)
    count = len(stream.records)
    gaps = np.full((count + 1, 3), np.nan)  # before each frame, and after the last
    previous = None
    bar = tqdm(zip(stream.records, stream.read()), 'features', count, unit='frame',
               disable=None if progress else True)
    for index, (record, stored) in enumerate(bar):
        current = _features(detector, record, stored.decode)
        if previous is not None and current is not None:
            elapsed_s = (record.stamp_ns - stream.records[index - 1].stamp_ns) * 1e-9
            turn = rotation_between(previous, current, record.intrinsics, random) \
                if elapsed_s <= max_gap_s else None
            if turn is not None:
                gaps[index] = turn / elapsed_s
        previous = current
    pairs = np.stack([gaps[:-1], gaps[1:]])
    known = np.isfinite(pairs).all(axis=2, keepdims=True)
    total, number = np.where(known, pairs, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, number, where=number > 0, out=np.full((count, 3), np.nan))


def rotation_between(earlier: _Features, later: _Features, intrinsics: CameraIntrinsics,
                     random: np.random.Generator) -> np.ndarray | None:
    """
    Rotation of the camera from one image to the next.

    :returns: rotation vector in the earlier camera's axes, (3,) rad; None without a match
    """
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(earlier.descriptors, later.descriptors, k=2)
    good = [pair[0] for pair in pairs
            if len(pair) == 2 and pair[0].distance < MAX_DISTANCE_RATIO * pair[1].distance]
    if len(good) < MIN_INLIERS:
        return None
    a = earlier.rays[[match.queryIdx for match in good]]
    b = later.rays[[match.trainIdx for match in good]]
    cosine = math.cos(INLIER_PX / intrinsics.fx_px)

    def inliers(rotation: np.ndarray) -> np.ndarray:
        return (a * (b @ rotation.T)).sum(axis=1) > cosine

    inside = max((inliers(_aligning(a[draw], b[draw])) for draw in (
        random.choice(len(a), 2, replace=False) for _ in range(DRAWS))), key=np.sum)
    if inside.sum() < MIN_INLIERS:
        return None
    inside = inliers(_aligning(a[inside], b[inside]))
    if inside.sum() < MIN_INLIERS:
        return None
    return Rotation.from_matrix(_aligning(a[inside], b[inside])).as_rotvec()


def _aligning(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rotation R with a ~ R b in the least squares, (3, 3)."""
    u, _, vt = np.linalg.svd(a.T @ b)
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def _features(detector: cv2.ORB, record: FrameRecord,
              decode: Callable[[], np.ndarray]) -> _Features | None:
    """Detect features; None where the image cannot be read or has too few."""
    try:
        frame = record.with_image(decode())
    except InputError:
        return None
    image = frame.image if frame.image.dtype == np.uint8 else (frame.image >> 8).astype(np.uint8)
    points, descriptors = detector.detectAndCompute(as_gray(image), None)
    if descriptors is None or len(points) < MIN_INLIERS:
        return None
    intrinsics = record.intrinsics
    undistort = (cv2.fisheye.undistortPoints if intrinsics.distortion_model == 'equidistant'
                 else cv2.undistortPoints)
    flat = undistort(np.array([[point.pt] for point in points]), intrinsics.matrix,
                     np.array(intrinsics.distortion or (0.0,) * 4))[:, 0]
    rays = np.column_stack([flat, np.ones(len(flat))])
    return _Features(rays / np.linalg.norm(rays, axis=1, keepdims=True), descriptors)
