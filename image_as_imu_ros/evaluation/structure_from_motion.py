"""
Structure from motion with COLMAP, as a baseline: poses of a folder of images as a TUM file.

COLMAP is C++ and may end its process, so it runs in one of its own:
`python -m image_as_imu_ros.evaluation.structure_from_motion FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from image_as_imu_ros.errors import ConfigError, DataFormatError, InputError
from image_as_imu_ros.evaluation.sources.recording import Stream
from image_as_imu_ros.types import CameraIntrinsics

JOB, IMAGES, TRAJECTORY, DATABASE, LOG = ('job.json', 'images', 'trajectory.txt', 'database.db',
                                          'colmap.log')
MIN_POSES = 3
LAST_LOG_LINES = 3

_CAMERA_MODELS = {'pinhole': 'PINHOLE', 'plumb_bob': 'OPENCV', 'rational_polynomial':
                  'FULL_OPENCV', 'equidistant': 'OPENCV_FISHEYE'}


def reconstruct(stream: Stream, trajectory: Path) -> str:
    """
    Reconstruct a stream's images with COLMAP and write the camera's poses as a TUM file.

    Of several partial models the one with the most images is taken.

    :returns: what was reconstructed, in words
    :raises ConfigError: if pycolmap is not installed
    :raises DataFormatError: if there is no model of the images
    """
    try:
        import pycolmap  # noqa: F401 (the process below needs it)
    except ImportError as error:
        raise ConfigError('structure from motion needs COLMAP: pip install pycolmap') from error
    with TemporaryDirectory() as name:
        folder = Path(name)
        images = _write_images(stream, folder / IMAGES)
        job = {'images': images, **_camera_of(stream.records[0].intrinsics)}
        (folder / JOB).write_text(json.dumps(job))
        with (folder / LOG).open('w') as log:
            result = subprocess.run([sys.executable, '-m', __name__, str(folder)], stdout=log,
                                    stderr=subprocess.STDOUT, check=False)
        if result.returncode != 0:
            lines = (folder / LOG).read_text(errors='replace').strip().splitlines()
            raise DataFormatError(f'COLMAP ended with status {result.returncode}: '
                                  + ' | '.join(lines[-LAST_LOG_LINES:]))
        lines = (folder / TRAJECTORY).read_text().splitlines()
        registered = len(lines) - 1
        models = lines[0].removeprefix('# ')
        if registered < MIN_POSES:
            raise DataFormatError(f'COLMAP found no model: {registered} of {len(images)} images '
                                  f'registered')
        trajectory.parent.mkdir(parents=True, exist_ok=True)
        trajectory.write_text('\n'.join(lines) + '\n')
        return f'{registered} of {len(images)} images registered; models of {models} images'


def _write_images(stream: Stream, folder: Path) -> dict[str, int]:
    """Write the images that can be read as PNG files; their names with stamps, ns."""
    folder.mkdir()
    names = {}
    for index, (record, stored) in enumerate(zip(stream.records, stream.read())):
        try:
            image = stored.decode()
        except InputError:
            continue
        name = f'{index:06d}.png'
        cv2.imwrite(str(folder / name), image[..., ::-1] if image.ndim == 3 else image)
        names[name] = record.stamp_ns
    return names


def _camera_of(intrinsics: CameraIntrinsics) -> dict[str, object]:
    """COLMAP's camera model and its parameters; its pixel centres are at 0.5."""
    distortion = list(intrinsics.distortion)
    if intrinsics.distortion_model == 'plumb_bob':
        distortion = distortion[:4]  # COLMAP's has no k3
    elif intrinsics.distortion_model == 'pinhole':
        distortion = []
    return {'model': _CAMERA_MODELS[intrinsics.distortion_model], 'parameters': [
        intrinsics.fx_px, intrinsics.fy_px, intrinsics.cx_px + 0.5, intrinsics.cy_px + 0.5,
        *distortion]}


def _run(folder: Path) -> None:
    """Reconstruct the job of a folder; the trajectory's first line names the models' sizes."""
    import pycolmap
    job = json.loads((folder / JOB).read_text())
    pycolmap.set_random_seed(0)
    reader = pycolmap.ImageReaderOptions(
        camera_model=job['model'], camera_params=','.join(map(repr, job['parameters'])))
    pycolmap.extract_features(folder / DATABASE, folder / IMAGES, reader_options=reader,
                              camera_mode=pycolmap.CameraMode.SINGLE)
    pycolmap.match_sequential(folder / DATABASE)
    options = pycolmap.IncrementalPipelineOptions(
        ba_refine_focal_length=False, ba_refine_principal_point=False,
        ba_refine_extra_params=False)
    (folder / 'models').mkdir()
    models = pycolmap.incremental_mapping(folder / DATABASE, folder / IMAGES, folder / 'models',
                                          options)
    largest = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    sizes = sorted((model.num_reg_images() for model in models.values()), reverse=True)
    rows = []
    for image in largest.images.values() if largest is not None else ():
        if not image.has_pose:
            continue
        world_from_camera = image.cam_from_world().inverse()
        stamp_ns = job['images'][image.name]
        pose = np.concatenate([world_from_camera.translation, world_from_camera.rotation.quat])
        rows.append((stamp_ns, ' '.join([f'{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}',
                                         *map(repr, pose.tolist())])))
    (folder / TRAJECTORY).write_text(
        '\n'.join([f'# {", ".join(map(str, sizes)) or "no"}', *(row for _, row in sorted(rows))])
        + '\n')


if __name__ == '__main__':
    _run(Path(sys.argv[1]))
