"""The visual gyroscope: one image in, the camera's motion over its exposure out, up to sign."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np

from image_as_imu_ros.batches import by_kind
from image_as_imu_ros.config import EstimatorConfig
from image_as_imu_ros.devices import chosen_device
from image_as_imu_ros.errors import InputError
from image_as_imu_ros.geometry.blur_solver import BlurSolution
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.geometry.displacement_bins import STRIDE_PX
from image_as_imu_ros.geometry.motion_field import motion_field_matrix
from image_as_imu_ros.geometry.world_mask import MIN_SHOWN, read_mask
from image_as_imu_ros.model.opening import open_architecture
from image_as_imu_ros.model.weights_files import find_weights
from image_as_imu_ros.threads import NetworkThreads
from image_as_imu_ros.types import CameraIntrinsics, EstimateStatus, Frame, MotionEstimate

MIN_CONTRAST = 0.004
"""Standard deviation of the working image below which it counts as blank (of full scale)."""
MIN_INFORMATION = 0.12
"""Least share of the cells' ignorance that a solution must explain to be a measurement."""

MIN_KNOWN_DEPTH = 0.3
"""Least share of a depth image that must be known for it to be used."""
MEASURED_DEPTH_ERROR = 0.05
"""Relative error of a measured depth that the whole image shares."""
NETWORK_DEPTH_ERROR = 0.5
"""The same of a depth that a network guesses."""
MIN_SIDE_PX = 64
MAX_CAMERAS = 8
UNKNOWN_SIGMA = (10.0, 10.0, 10.0, 20.0, 20.0, 20.0)


@dataclass(frozen=True)
class BlurObservation:
    """What the network sees in one image."""

    frame: Frame
    working_image: np.ndarray
    """(h, w) float32, 0 to 1, undistorted."""
    intrinsics: CameraIntrinsics
    """Of the working image."""
    matrix: np.ndarray
    """
    (..., 2, 6), motion field where the architecture uses the output; where the depth is measured,
    the translation's share is that of `depth_m` over the depth there.
    """
    output: Any
    """The network's, as its architecture gives it; None where the image is blank."""
    timing_ms: dict[str, float]
    depth_m: float | None = None
    """Median measured depth of the scene, which scales translations; None where unknown."""
    nearness: np.ndarray | None = None
    """(rows, columns) of a coarse grid, that median over the depth there."""
    usable: np.ndarray | None = None
    """(h, w) bool, which pixels of the working image show the world; None: all of them."""
    usable_points: np.ndarray | None = None
    """(...) bool, which parts of the output, as of `matrix`, tell of those alone; None: all."""

    @property
    def elapsed_ms(self) -> float:
        """Time that it took; of what was computed for several images at once an even share."""
        return sum(self.timing_ms.values())


@dataclass(frozen=True)
class PreparedImage:
    """An image that the network has yet to see."""

    observation: BlurObservation
    """As of a blank image."""
    seen: np.ndarray | None
    """(h, w) or (h, w, 3) float32, 0 to 1, what the network shall see; None if it is blank."""


@dataclass(frozen=True)
class BlurMeasurement:
    """One image's blur, kept with what the stream needs to relate it to its neighbours."""

    frame: Frame
    working_image: np.ndarray
    """(h, w) float32, 0 to 1, undistorted."""
    intrinsics: CameraIntrinsics
    """Of the working image."""
    solution: BlurSolution | None
    """None where the image is blank."""
    timing_ms: dict[str, float]
    depth_m: float | None = None
    nearness: np.ndarray | None = None
    usable: np.ndarray | None = None
    """All three as of the observation."""

    @property
    def elapsed_ms(self) -> float:
        """Time that it took, the observation included, as of that."""
        return sum(self.timing_ms.values())

    @property
    def informative(self) -> bool:
        """Whether the blur tells the motion at all."""
        return self.solution is not None and self.solution.information >= MIN_INFORMATION


class VisualGyroscope:
    """
    Estimates the mean velocity of a camera over one exposure from the image's motion blur.

    One image cannot tell a motion from its reverse: estimates are unsigned. `StreamEstimator`
    resolves the sign. Cameras may change from call to call; their maps are kept. One thread may
    observe an image while another solves the one before.

    :raises WeightsError: if the weights cannot be used
    :raises ConfigError: if the device or the runtime is not available, or the mask of no use
    """

    def __init__(self, config: EstimatorConfig = EstimatorConfig()) -> None:
        self.config = config
        self.device = chosen_device(config.device)
        self.threads = NetworkThreads(config.threads)
        cv2.setNumThreads(self.threads.least)
        self._mask = read_mask(config.mask) if config.mask else None
        self.weights = find_weights(config.weights)
        self._architecture = open_architecture(self.weights, self.device, config.runtime,
                                               self.threads)
        self._cameras: dict[CameraIntrinsics, _Camera] = {}

    @property
    def tells_rows(self) -> bool:
        """Whether `solve_rows` has an answer."""
        return self._architecture.tells_rows

    def observe(self, frame: Frame) -> BlurObservation:
        """
        Undistort a frame and run the network on it.

        :raises InputError: if the image is too small for the network
        """
        return self.observe_all([frame])[0]

    def observe_all(self, frames: Sequence[Frame]) -> list[BlurObservation]:
        """
        Undistort frames and run the network on those of one size at once.

        On a GPU that takes less time for each than one after the other.

        :returns: in the order of the frames; the time of the network is an equal share
        :raises InputError: if an image is too small for the network
        """
        return self.observe_prepared([self.prepare(frame) for frame in frames])

    def prepare(self, frame: Frame) -> PreparedImage:
        """
        Undistort a frame, for `observe_prepared`.

        :raises InputError: if the image is too small for the network
        """
        begin = time.perf_counter()
        camera, points, matrix, usable_points = self._camera(frame.intrinsics)
        image = camera.working_image(frame.image)
        seen = camera.colour_image(frame.image) if self._architecture.colour else image
        depth_m = nearness = None
        if frame.depth_m is not None and not self._architecture.tells_depth:
            depths_m = camera.depth_at(frame.depth_m, points)
            if usable_points is not None:
                depths_m[~usable_points] = np.nan
            depth_m, nearness = relative_nearness(depths_m)
        if nearness is not None:
            matrix = with_nearness(matrix, nearness)
        blank = image.std() <= MIN_CONTRAST
        timing = {'preprocess': 1e3 * (time.perf_counter() - begin)}
        return PreparedImage(BlurObservation(frame, image, camera.intrinsics, matrix, None, timing,
                                             depth_m, nearness, camera.usable, usable_points),
                             None if blank else seen)

    def observe_prepared(self, images: Sequence[PreparedImage]) -> list[BlurObservation]:
        """Run the network on prepared images, else as `observe_all`."""
        observations = [image.observation for image in images]
        for index, output, share_ms in _together(
                [None if image.seen is None else image.seen.shape for image in images],
                lambda indices: self._architecture.observe(
                    [images[index].seen for index in indices])):
            timing = {**observations[index].timing_ms, 'network': share_ms}
            observations[index] = replace(observations[index], output=output, timing_ms=timing)
        return observations

    def solve(self, observation: BlurObservation,
              start: np.ndarray | None = None) -> BlurMeasurement:
        """
        Find the motion over a frame's exposure, in units of the exposure.

        :param start: motion (6,), (w T, v T / Z), to search from besides its own starts
        """
        return self.solve_all([observation], [start])[0]

    def solve_all(self, observations: Sequence[BlurObservation],
                  starts: Sequence[np.ndarray | None] | None = None) -> list[BlurMeasurement]:
        """
        Find the motions over the exposures of frames, on a GPU of those of one size at once.

        :param starts: for each as for `solve`
        :returns: in the order of the observations; the time of the solver is an equal share
        """
        measurements = [
            BlurMeasurement(each.frame, each.working_image, each.intrinsics, None, each.timing_ms,
                            each.depth_m, each.nearness, each.usable) for each in observations]
        for index, solution, share_ms in _together(
                [None if each.output is None else _kind_of(each) for each in observations],
                lambda indices: self._architecture.solve_all(
                    [observations[index].output for index in indices],
                    [observations[index].matrix for index in indices],
                    [None if starts is None else starts[index] for index in indices],
                    observations[indices[0]].usable_points)):
            timing = {**measurements[index].timing_ms, 'solve': share_ms}
            measurements[index] = replace(measurements[index], solution=solution,
                                          timing_ms=timing)
        return measurements

    def solve_rows(self, observation: BlurObservation, rows: slice,
                   starts: np.ndarray) -> list[BlurSolution]:
        """
        Find motions over a frame's exposure that a band of rows tells.

        :param rows: of the working image, px
        :param starts: motions (K, 6), (w T, v T / Z), to search from
        :returns: distinct ones, the likeliest first; none where the image is blank
        :raises ConfigError: if the network can only be asked for whole images
        """
        if observation.output is None:
            return []
        return self._architecture.solve_rows(observation.output, observation.matrix, rows, starts,
                                             observation.usable_points)

    def estimate(self, frame: Frame) -> MotionEstimate:
        """
        Estimate the camera's motion from one image, up to one common sign.

        :returns: velocities in the camera optical frame; status SIGN_UNRESOLVED or NO_SIGNAL
        :raises InputError: if the exposure is unknown or the image is too small
        """
        return self.conclude(self.observe(frame))

    def conclude(self, observation: BlurObservation) -> MotionEstimate:
        """
        Tell the motion from a frame that was observed, as `estimate`.

        :raises InputError: if the exposure is unknown
        """
        return self.concluded(self.solve(observation))

    def conclude_all(self, observations: Sequence[BlurObservation]) -> list[MotionEstimate]:
        """
        Tell the motions from frames that were observed, each by itself, as `conclude`.

        :raises InputError: if an exposure is unknown
        """
        return list(map(self.concluded, self.solve_all(observations)))

    def concluded(self, measurement: BlurMeasurement) -> MotionEstimate:
        """
        Tell the motion from a frame that was solved, as `estimate`.

        :raises InputError: if the exposure is unknown
        """
        if measurement.frame.exposure_time_s is None:
            raise InputError('exposure time is unknown; one image needs it to tell a velocity')
        if measurement.solution is not None:
            measurement = replace(measurement, solution=measurement.solution.averaged())
        return self.to_estimate(measurement)

    def to_estimate(self, measurement: BlurMeasurement) -> MotionEstimate:
        """Turn a measurement of known exposure into velocities, unsigned."""
        frame, solution = measurement.frame, measurement.solution
        if solution is None:
            return MotionEstimate(
                frame.stamp_ns, frame.exposure_time_s, np.zeros(3), np.zeros(3),
                unknown_covariance(), False, 0.0, 0.0, 0.0, 0.0, EstimateStatus.NO_SIGNAL,
                measurement.timing_ms)
        exposure, (depth, depth_error) = frame.exposure_time_s, self.depth_of(measurement)
        # (w T, v T / Z) to twist order (v, w)
        to_twist = np.zeros((6, 6))
        to_twist[:3, 3:] = np.eye(3) * depth / exposure
        to_twist[3:, :3] = np.eye(3) / exposure
        twist = to_twist @ solution.motion
        covariance = to_twist @ solution.covariance @ to_twist.T
        covariance[:3, :3] += depth_error ** 2 * np.outer(twist[:3], twist[:3])
        return MotionEstimate(
            frame.stamp_ns, exposure, twist[3:], twist[:3], covariance, False, 0.0,
            solution.information,
            solution.extent_px * frame.intrinsics.fx_px / measurement.intrinsics.fx_px,
            solution.inlier_share,
            EstimateStatus.SIGN_UNRESOLVED if measurement.informative
            else EstimateStatus.NO_SIGNAL, measurement.timing_ms)

    def depth_of(self, measurement: BlurMeasurement) -> tuple[float, float]:
        """Distance of the scene, m, measured, told by the network or assumed; relative error."""
        if measurement.depth_m is not None:
            return measurement.depth_m, MEASURED_DEPTH_ERROR
        if measurement.solution is not None and measurement.solution.depth_m is not None:
            return measurement.solution.depth_m, NETWORK_DEPTH_ERROR
        return self.config.scene_depth, self.config.scene_depth_error

    def _camera(self, intrinsics: CameraIntrinsics) -> _Camera:
        if intrinsics not in self._cameras:
            if min(intrinsics.width_px, intrinsics.height_px) < MIN_SIDE_PX:
                raise InputError(f'image {intrinsics.width_px}x{intrinsics.height_px} px is too '
                                 f'small; at least {MIN_SIDE_PX} px on each side are needed')
            camera = WorkingCamera(intrinsics, self.config.working_size, self._mask)
            size = (camera.intrinsics.width_px, camera.intrinsics.height_px)
            if min(size) < MIN_SIDE_PX:
                raise InputError(f'image {intrinsics.width_px}x{intrinsics.height_px} px is too '
                                 f'elongated: reduced to {size[0]}x{size[1]} px')
            points = self._architecture.points(camera.intrinsics)
            matrix = motion_field_matrix(points, camera.intrinsics)
            if len(self._cameras) >= MAX_CAMERAS:  # a camera that changes zoom, not many cameras
                self._cameras.clear()
            self._cameras[intrinsics] = _Camera(camera, points, matrix,
                                                _usable_points(camera.usable, points))
        return self._cameras[intrinsics]


class _Camera(NamedTuple):
    """A camera, and where and how the network's output is used for its images."""

    working: WorkingCamera
    points: np.ndarray
    """(..., 2), px of the working image."""
    matrix: np.ndarray
    """(..., 2, 6), motion field there."""
    usable_points: np.ndarray | None
    """(...) bool, as of an observation."""


def _usable_points(usable: np.ndarray | None, points: np.ndarray) -> np.ndarray | None:
    """
    Tell around which points all is usable.

    :param usable: (h, w) bool, pixels; None: all
    :param points: (..., 2), px
    :returns: (...) bool; None: all
    :raises InputError: if too few are
    """
    if usable is None:
        return None
    all_around = cv2.erode(usable.view(np.uint8), np.ones((STRIDE_PX + 1,) * 2, np.uint8))
    column, row = np.rint(points).astype(int).T
    clear = all_around.view(bool)[row, column].T
    # the solver searches with every other row and column
    if clear[(np.s_[::2],) * clear.ndim].mean() < MIN_SHOWN:
        raise InputError(f'{clear.mean():.1%} of the image show the world, the rest is masked or '
                         f'lies outside; at least {MIN_SHOWN:.0%} are needed. A mask is white '
                         'where it hides nothing')
    return clear


def _kind_of(observation: BlurObservation) -> tuple[Any, ...]:
    """What observations have in common that are solved together."""
    usable = observation.usable_points
    return observation.matrix.shape, None if usable is None else usable.tobytes()


def _together(kinds: Sequence[Hashable | None],
              compute: Callable[[list[int]], Sequence[Any]]) -> Iterator[tuple[int, Any, float]]:
    """
    Compute something for all items of one kind at once, and nothing for None.

    :param compute: gives a result for each of the indices it is given
    :returns: index, result, and an even share of the time, ms
    """
    for indices in by_kind(kinds):
        begin = time.perf_counter()
        results = compute(indices)
        share_ms = 1e3 * (time.perf_counter() - begin) / len(indices)
        for index, result in zip(indices, results):
            yield index, result, share_ms


def relative_nearness(depth_m: np.ndarray) -> tuple[float | None, np.ndarray | None]:
    """
    Relate the depth at places to that of the scene.

    :param depth_m: (...), NaN where unknown: taken for the median
    :returns: median depth, m, and that over the depth, (...); None both where too little of the
        depth is known
    """
    known = np.isfinite(depth_m)
    if known.mean() < MIN_KNOWN_DEPTH:
        return None, None
    median_m = float(np.median(depth_m[known]))
    return median_m, np.where(known, median_m / depth_m, 1.0)


def with_nearness(matrix: np.ndarray, nearness: np.ndarray) -> np.ndarray:
    """
    Let near parts of the scene move more than far ones under a translation.

    :param matrix: (..., 2, 6), motion field for a scene at one depth
    :param nearness: (...), that depth over the depth there
    """
    scaled = matrix.copy()
    scaled[..., 3:] *= nearness[..., None, None]
    return scaled


def unknown_covariance() -> np.ndarray:
    """(6, 6) covariance of a motion of which nothing is known: 10 m/s and 20 rad/s."""
    return np.diag(np.square(UNKNOWN_SIGMA))
