"""Flow and depth that a trained network sees in a recording, kept as truth for fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from image_as_imu_ros.batches import by_kind, in_batches
from image_as_imu_ros.errors import DataFormatError, InputError, WeightsError
from image_as_imu_ros.evaluation.provenance import file_sha256
from image_as_imu_ros.evaluation.sources import Recording
from image_as_imu_ros.evaluation.sources.recording import FrameRecord
from image_as_imu_ros.evaluation.sync import in_range, interpolated
from image_as_imu_ros.files import replacing, write_atomically
from image_as_imu_ros.geometry.camera import WorkingCamera
from image_as_imu_ros.model.reference import ReferenceNetwork
from image_as_imu_ros.model.weights import load_weights
from image_as_imu_ros.processes import Process
from image_as_imu_ros.types import CameraIntrinsics

SUMMARY = 'labels.json'
WORKING_SIZE_PX = 320


@dataclass(frozen=True)
class DenseSample:
    """An image with what the paper's network is taught."""

    rgb: np.ndarray
    """(H, W, 3) uint8."""
    flow_px: np.ndarray
    """(2, H, W) float32, (u, v), over the exposure, of either sign."""
    depth_m: np.ndarray
    """(H, W) float32."""
    motion: np.ndarray
    """(6,) w T in rad and v T in m, of either sign; NaN where it is unknown."""
    intrinsics: CameraIntrinsics


def write_pseudo_labels(recordings: Mapping[Path, Recording], weights: Path, device: str = 'cpu',
                        batch: int = 1, process: Process = Process()) -> None:
    """
    Label a process's share of recordings' images, those that are not labelled yet.

    Each label holds the working image, its intrinsics, flow and depth by the network, and the
    motion over the exposure by gyroscope and poses. Images without a known angular velocity or
    exposure are left out.

    :param recordings: by the folder to write to, <stream>_<image>.npz
    :param weights: .safetensors file of the reference network
    :param batch: images that the network sees at once
    :raises WeightsError: if the weights cannot be used
    :raises DataFormatError: if a folder holds labels of another recording or other weights
    """
    loaded = load_weights(str(weights))
    if not isinstance(loaded.network, ReferenceNetwork):
        raise WeightsError(f'{weights} is for architecture "{loaded.file.architecture}"; pseudo '
                           f'labels need "{ReferenceNetwork.architecture}", which sees depth too')
    network = loaded.network.to(device)
    weights_sha256 = file_sha256(weights)
    for output, recording in recordings.items():
        _claim(output, recording, weights_sha256)
    total = sum(recording.frame_count for recording in recordings.values())
    with tqdm(total=total, unit='image', disable=process.rank > 0) as progress:
        for images in in_batches(_unlabelled(recordings, process, progress), batch):
            for indices in by_kind([image.rgb.shape for image in images]):
                together = [images[index] for index in indices]
                flow_px, depth_m = network.predict([image.rgb for image in together])
                for image, *seen in zip(together, flow_px, depth_m):
                    _write_label(image, *seen)


class _Image(NamedTuple):
    """An image to be labelled."""

    path: Path
    motion: np.ndarray
    rgb: np.ndarray
    intrinsics: CameraIntrinsics


def _claim(output: Path, recording: Recording, weights_sha256: str) -> None:
    """Note what the labels of a folder are made of; raise DataFormatError if of another thing."""
    made_by = {'recording': recording.name, 'image_size': recording.image_size,
               'weights_sha256': weights_sha256}
    summary = output / SUMMARY
    if summary.exists() and json.loads(summary.read_text()) != made_by:
        raise DataFormatError(f'{output} holds labels of another recording or other weights; '
                              'give another folder')
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(summary, json.dumps(made_by, indent=2).encode())


def _unlabelled(recordings: Mapping[Path, Recording], process: Process,
                progress: tqdm) -> Iterator[_Image]:
    """The images of a process that have no label yet, as the network shall see them."""
    number = -1
    for output, recording in recordings.items():
        for camera, stream in enumerate(recording.streams):
            for index, (record, stored) in enumerate(zip(stream.records, stream.read())):
                number += 1
                progress.update()
                path = output / f'{camera}_{index:06d}.npz'
                if number % process.count != process.rank or path.exists():
                    continue
                motion = _motion(recording, record, stream.R_gyro_camera)
                if motion is None:
                    continue
                try:
                    frame = record.with_image(stored.decode())
                except InputError as error:
                    tqdm.write(f'image {index} left out: {error}')
                    continue
                working = WorkingCamera(frame.intrinsics, WORKING_SIZE_PX)
                yield _Image(path, motion, working.colour_image(frame.image), working.intrinsics)


def _motion(recording: Recording, record: FrameRecord,
            R_gyro_camera: np.ndarray | None) -> np.ndarray | None:
    """(w T, v T) in camera axes, (6,) rad and m, v NaN where unknown; None without w or T."""
    angular_rad_s = record.angular_velocity_reference_rad_s
    if angular_rad_s is None and recording.gyroscope is not None and R_gyro_camera is not None:
        stamp_ns = np.array([record.stamp_ns])
        if in_range(recording.gyroscope, stamp_ns)[0]:
            angular_rad_s = R_gyro_camera.T @ interpolated(recording.gyroscope, stamp_ns)[0]
    if angular_rad_s is None or record.exposure_time_s is None:
        return None
    linear_m_s = record.linear_velocity_reference_m_s
    linear_m_s = np.full(3, np.nan) if linear_m_s is None else linear_m_s
    return record.exposure_time_s * np.concatenate([angular_rad_s, linear_m_s])


def _write_label(image: _Image, flow_px: np.ndarray, depth_m: np.ndarray) -> None:
    seen = image.intrinsics
    with replacing(image.path) as partial, partial.open('wb') as file:
        np.savez(file, motion=image.motion, rgb=(image.rgb * 255.0 + 0.5).astype(np.uint8),
                 flow_px=flow_px.astype(np.float16), depth_m=depth_m.astype(np.float16),
                 camera_px=np.array([seen.fx_px, seen.fy_px, seen.cx_px, seen.cy_px]))


def label_files(folder: Path) -> list[Path]:
    """
    Label files of a folder, in the order of the images.

    :raises DataFormatError: if there are fewer than two, one to train on and one to validate
    """
    files = sorted(folder.glob('*.npz'))
    if len(files) < 2:
        raise DataFormatError(f'{folder} holds {len(files)} labelled images, at least 2 are '
                              'needed; write them with `image-as-imu pseudo-labels`')
    return files


def read_label(path: Path) -> DenseSample:
    """
    Read what `write_pseudo_labels` wrote of one image.

    :raises DataFormatError: if the file is damaged
    """
    try:
        with np.load(path) as label:
            rgb, motion, camera_px = label['rgb'], label['motion'], label['camera_px']
            flow_px, depth_m = (label[name].astype(np.float32) for name in ('flow_px', 'depth_m'))
    except Exception as error:  # numpy and zipfile raise many kinds
        raise DataFormatError(f'cannot read label {path}: {error!r}') from error
    height, width = depth_m.shape
    return DenseSample(rgb, flow_px, depth_m, motion,
                       CameraIntrinsics(width, height, *camera_px.tolist()))
