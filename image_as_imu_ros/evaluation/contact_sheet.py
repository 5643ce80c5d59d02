"""Frames of a recording with the motion that was measured from their blur drawn on them."""

from __future__ import annotations

import cv2
import numpy as np

from image_as_imu_ros.errors import InputError
from image_as_imu_ros.evaluation.evaluate import Evaluation, counts_as_estimate, samples_of
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
    estimates = _estimates(evaluation)
    chosen = {max(stretch, key=lambda row: estimates[row].blur_extent_px)
              for stretch in np.array_split(list(estimates), COLUMNS * ROWS) if len(stretch)}
    return _laid_out(_tiles(evaluation, chosen, scene_depth_m))


def worst_frames(evaluation: Evaluation, scene_depth_m: float,
                 count: int = COLUMNS * 2) -> np.ndarray | None:
    """
    Lay out the frames of the first stream with the largest errors, in time order.

    White arrows are the paths under the gyroscope's rotation.

    :returns: as `contact_sheet`; None where no such frame can be read
    """
    samples = samples_of(evaluation.recording, evaluation.streams[0], evaluation.mode)
    reference = samples.angular_references_rad_s['interpolated']
    error = np.linalg.norm(samples.signed(evaluation.mode) - reference, axis=1)
    known = [row for row in _estimates(evaluation) if np.isfinite(error[row])]
    chosen = set(sorted(known, key=lambda row: -error[row])[:count])
    tiles = _tiles(evaluation, chosen, scene_depth_m, reference)
    return _laid_out(tiles) if tiles else None


def _estimates(evaluation: Evaluation) -> dict[int, MotionEstimate]:
    """Estimates of the first stream that count, by row."""
    return {row: estimate for row, estimate in enumerate(evaluation.streams[0].estimates)
            if estimate is not None and counts_as_estimate(estimate, evaluation.mode)}


def _tiles(evaluation: Evaluation, chosen: set[int], scene_depth_m: float,
           drawn_reference_rad_s: np.ndarray | None = None) -> list[np.ndarray]:
    """Pictures with captions of some rows of the first stream; unreadable ones are left out."""
    result = evaluation.streams[0]
    rotation = np.eye(3) if result.stream.R_gyro_camera is None else result.stream.R_gyro_camera
    samples = samples_of(evaluation.recording, result, evaluation.mode)
    reference = samples.angular_references_rad_s['interpolated']
    tiles = []
    for row, stored in enumerate(result.stream.read()):
        if row not in chosen:
            continue
        try:
            image = stored.decode()
        except InputError:
            continue
        estimate, angular = result.estimates[row], samples.angular_rad_s[row]
        if evaluation.mode == 'single' and angular @ np.nan_to_num(reference[row]) < 0.0:
            estimate, angular = estimate.negated(), -angular
        motions = [(np.concatenate([estimate.angular_velocity_rad_s,
                                    estimate.linear_velocity_m_s / scene_depth_m]), ARROW_COLOUR)]
        if drawn_reference_rad_s is not None:
            motions.insert(0, (np.concatenate([rotation.T @ drawn_reference_rad_s[row],
                                               np.zeros(3)]), REFERENCE_COLOUR))
        picture = with_arrows(image, result.stream.records[row].intrinsics, motions,
                              estimate.exposure_time_s or UNKNOWN_EXPOSURE_S)
        tiles.append(np.concatenate([picture, _caption(
            (samples.stamp_ns[row] - samples.stamp_ns[0]) * 1e-9, angular, reference[row])]))
    return tiles


def _laid_out(tiles: list[np.ndarray]) -> np.ndarray:
    """Put tiles into rows of COLUMNS."""
    tiles = tiles + [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
    return np.concatenate([np.concatenate(tiles[first:first + COLUMNS], axis=1)
                           for first in range(0, len(tiles), COLUMNS)])


def with_arrows(image: np.ndarray, intrinsics: CameraIntrinsics,
                motions: list[tuple[np.ndarray, tuple[int, int, int]]],
                exposure_time_s: float) -> np.ndarray:
    """
    Enlarge or shrink an image to a tile and draw the motion fields over an exposure.

    :param motions: (w, v / Z), (6,) per second, each with the colour of its arrows
    :returns: (H, W, 3) uint8 RGB
    """
    tile, points = _tile(image)
    intrinsics = intrinsics.resized(tile.shape[1], tile.shape[0])
    for motion, colour in motions:
        paths = motion_field_matrix(points, intrinsics) @ motion * exposure_time_s
        _draw_with_shadow(tile, points, paths, colour)
    return tile


def sheet_of_flow(images: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """
    Lay out images of one size with the paths that scene points take during their exposures.

    :param images: (H, W) or (H, W, 3) RGB, each with its flow over the exposure, (2, H, W), px
    :returns: (H, W, 3) uint8 RGB
    """
    tiles = []
    for image, flow_px in images:
        tile, points = _tile(image)
        scale = TILE_WIDTH_PX / image.shape[1]
        x, y = (points / scale).astype(int).T
        _draw_with_shadow(tile, points, scale * flow_px[:, y, x].T, ARROW_COLOUR)
        tiles.append(tile)
    return _laid_out(tiles)


def _tile(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge or shrink an image, as RGB uint8, and say where its arrows go, (N, 2), px."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    height = round(image.shape[0] * TILE_WIDTH_PX / image.shape[1])
    tile = cv2.resize(image, (TILE_WIDTH_PX, height), interpolation=cv2.INTER_AREA
                      if TILE_WIDTH_PX < image.shape[1] else cv2.INTER_CUBIC)
    spacing_px = TILE_WIDTH_PX // ARROWS_PER_ROW
    return tile, pixel_grid(TILE_WIDTH_PX, height, spacing_px).reshape(-1, 2)


def _draw_with_shadow(tile: np.ndarray, points: np.ndarray, paths: np.ndarray,
                      colour: tuple[int, int, int]) -> None:
    for layer, thickness in ((SHADOW, 4), (colour, 2)):
        _draw(tile, points, paths, layer, thickness)


def _draw(tile: np.ndarray, points: np.ndarray, paths: np.ndarray, colour: tuple[int, int, int],
          thickness: int) -> None:
    """Draw one arrow per point, its middle there."""
    for point, path in zip(points, paths):
        tail, head = (np.rint(point + side * path).astype(int).tolist() for side in (-0.5, 0.5))
        cv2.arrowedLine(tile, tail, head, colour, thickness, cv2.LINE_AA,
                        tipLength=min(0.4, 6 / max(float(np.linalg.norm(path)), 1e-6)))


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
