"""Frames of a recording with the motion that was measured from their blur drawn on them."""

from __future__ import annotations

import cv2
import numpy as np

from image_as_imu_ros.evaluation.evaluate import Evaluation, samples_of
from image_as_imu_ros.geometry.motion_field import motion_field_matrix, pixel_grid
from image_as_imu_ros.types import CameraIntrinsics, MotionEstimate

COLUMNS, ROWS = 4, 4
TILE_WIDTH_PX = 480
ARROWS_PER_ROW = 8
CAPTION_PX = 44
UNKNOWN_EXPOSURE_S = 0.01
ARROW_COLOUR, REFERENCE_COLOUR, SHADOW = (255, 205, 60), (235, 235, 235), (0, 0, 0)


def contact_sheet(evaluation: Evaluation, scene_depth_m: float) -> np.ndarray:
    """
    Lay out frames of the first stream, the most blurred of each stretch of time.

    Each arrow is the path of a scene point during the exposure, as the estimate has it, or
    during 10 ms where the exposure is unknown.

    :param evaluation: with at least one estimate
    :param scene_depth_m: distance at which the estimates' linear velocities hold
    :returns: (H, W, 3) uint8 RGB
    """
    result = evaluation.streams[0]
    samples = samples_of(evaluation.recording, result, evaluation.mode)
    angular = samples.angular_rad_s
    reference = samples.angular_references_rad_s['interpolated']
    estimates = {row: estimate for row, estimate in enumerate(result.estimates)
                 if estimate is not None and samples.has_estimate[row]}
    chosen = {max(stretch, key=lambda row: estimates[row].blur_extent_px)
              for stretch in np.array_split(list(estimates), COLUMNS * ROWS) if len(stretch)}
    start_ns = samples.stamp_ns[0]
    tiles = []
    for row, stored in enumerate(result.stream.read()):
        if row not in chosen:
            continue
        picture = _with_arrows(stored.decode(), result.stream.records[row].intrinsics,
                               estimates[row], scene_depth_m)
        tiles.append(np.concatenate([picture, _caption(
            (samples.stamp_ns[row] - start_ns) * 1e-9, angular[row], reference[row])]))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    return np.concatenate([np.concatenate(tiles[first:first + COLUMNS], axis=1)
                           for first in range(0, len(tiles), COLUMNS)])


def _with_arrows(image: np.ndarray, intrinsics: CameraIntrinsics, estimate: MotionEstimate,
                 scene_depth_m: float) -> np.ndarray:
    """Enlarge or shrink an image to a tile and draw the motion field."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    height = round(intrinsics.height_px * TILE_WIDTH_PX / intrinsics.width_px)
    tile = cv2.resize(image, (TILE_WIDTH_PX, height), interpolation=cv2.INTER_AREA
                      if TILE_WIDTH_PX < intrinsics.width_px else cv2.INTER_CUBIC)
    intrinsics = intrinsics.resized(TILE_WIDTH_PX, height)
    motion = np.concatenate([estimate.angular_velocity_rad_s,
                             estimate.linear_velocity_m_s / scene_depth_m])
    points = pixel_grid(TILE_WIDTH_PX, height, TILE_WIDTH_PX // ARROWS_PER_ROW).reshape(-1, 2)
    paths = motion_field_matrix(points, intrinsics) @ motion * (
        estimate.exposure_time_s or UNKNOWN_EXPOSURE_S)
    for colour, thickness in ((SHADOW, 4), (ARROW_COLOUR, 2)):
        for point, path in zip(points, paths):
            tail, head = (np.rint(point + side * path).astype(int).tolist()
                          for side in (-0.5, 0.5))
            cv2.arrowedLine(tile, tail, head, colour, thickness, cv2.LINE_AA,
                            tipLength=min(0.4, 6 / max(float(np.linalg.norm(path)), 1e-6)))
    return tile


def _caption(time_s: float, angular_rad_s: np.ndarray, reference_rad_s: np.ndarray) -> np.ndarray:
    """Two lines of figures below a tile."""
    caption = np.zeros((CAPTION_PX, TILE_WIDTH_PX, 3), np.uint8)
    for line, (label, rate, colour) in enumerate((
            (f'{time_s:6.2f} s   blur', angular_rad_s, ARROW_COLOUR),
            ('gyroscope', reference_rad_s, REFERENCE_COLOUR))):
        bottom = 17 + 20 * line
        cv2.putText(caption, label, (8, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1,
                    cv2.LINE_AA)
        text = '  '.join('-' if np.isnan(value) else f'{value:+.2f}' for value in rate) + ' rad/s'
        cv2.putText(caption, text, (190, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1,
                    cv2.LINE_AA)
    return caption
