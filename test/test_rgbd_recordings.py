"""RGB-D recordings are read in their documented layouts, and blurred as a camera would have."""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import DatasetConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.synthesis import recorded_scenes, room
from image_as_imu_ros.synthesis.adapters import Blend, PromptDepth, Rife
from image_as_imu_ros.synthesis.keyframes import average_light
from image_as_imu_ros.synthesis.recorded_scenes import RecordedScenes
from image_as_imu_ros.synthesis.rgbd_recordings import (
    DepthStream,
    find_rgbd_recordings,
    open_rgbd_recording,
)
from image_as_imu_ros.synthesis.shards import Shards
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(192, 144, 180.0, 182.0, 96.0, 70.0)
DEPTH_CAMERA = CAMERA.resized(256, 192)
NEAR_M, WALL_M, HALF_M = 1.5, 3.0, 0.3
"""A square before a wall."""
FRAMES, RATE_HZ = 13, 60.0
TURN_RAD_S, SPEED_M_S = np.array([0.15, 0.4, 0.3]), np.array([0.9, 0.2, 0.2])
"""Of the camera in its own axes."""
CONFIG = DatasetConfig(width=128, height=96, frames_apart=8, frame_step=2)
R_WORLD_START = Rotation.from_rotvec([0.4, -0.3, 1.1])


@pytest.fixture(scope='module')
def patterns():
    """Paint of wall and square."""
    rng = np.random.default_rng(0)
    grain = [cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0), 3)
             for side in (768, 160)]
    return [level + 0.15 * (each / each.std()).clip(-1.5, 1.5)
            for level, each in zip((0.3, 0.7), grain)]


def pose(time_s: float) -> np.ndarray:
    """Pose of a camera that moves steadily, (4, 4), in the axes of that at time 0."""
    twist = np.zeros((4, 4))
    x, y, z = TURN_RAD_S
    twist[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    twist[:3, 3] = SPEED_M_S
    return torch.linalg.matrix_exp(torch.from_numpy(twist * time_s)).numpy()


def photograph(patterns, camera: CameraIntrinsics, time_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Linear light (H, W, 3) and depth (H, W) that the camera sees."""
    rays = np.stack([*np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px)),
                     np.ones((camera.height_px, camera.width_px))], axis=-1) \
        @ np.linalg.inv(camera.matrix).T @ pose(time_s)[:3, :3].T
    at_m = pose(time_s)[:3, 3]
    layers = []
    for plane_m, pattern, half_m in ((WALL_M, patterns[0], 4.0), (NEAR_M, patterns[1], HALF_M)):
        depth_m = (plane_m - at_m[2]) / rays[..., 2]
        points = at_m + depth_m[..., None] * rays
        texels = ((points[..., :2] + half_m) * pattern.shape[0] / 2 / half_m - 0.5).astype(
            np.float32)
        layers.append((cv2.remap(pattern, *np.moveaxis(texels, -1, 0), cv2.INTER_LINEAR,
                                 borderMode=cv2.BORDER_REPLICATE), depth_m,
                       (np.abs(points[..., :2]) < half_m).all(axis=-1)))
    (wall, far_m, _), (square, near_m, here) = layers
    light = np.where(here, square, wall)[..., None] * [1.0, 0.8, 0.6]
    return light.astype(np.float32), np.where(here, near_m, far_m)


def encoded(light: np.ndarray) -> np.ndarray:
    return np.rint(255 * light ** (1 / 2.2)).astype(np.uint8)


@pytest.fixture(scope='module')
def frames(patterns):
    """Images and depth images of the recording."""
    times_s = np.arange(FRAMES) / RATE_HZ
    return ([encoded(photograph(patterns, CAMERA, time_s)[0]) for time_s in times_s],
            [photograph(patterns, DEPTH_CAMERA, time_s)[1].astype(np.float32)
             for time_s in times_s])


def in_world(time_s: float, drift: float = 0.0) -> np.ndarray:
    """Pose in the world of ScanNet++; ARKit's drifts by so much a second."""
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = R_WORLD_START.as_matrix(), [2.0, -1.0, 0.5]
    wrong = np.eye(4)
    wrong[:3, :3] = Rotation.from_rotvec([0, 0, drift * time_s]).as_matrix()
    wrong[:3, 3] = drift * time_s
    return wrong @ start @ pose(time_s)


def write_scene(folder: Path, frames, drift: float = 0.0, video: bool = False) -> Path:
    """A scan of ScanNet++ with depth compressed one by one by lz4."""
    lz4_block = pytest.importorskip('lz4.block', reason='needs lz4: pip install .[scannetpp]')
    scan = folder / 'iphone'
    (scan / 'rgb').mkdir(parents=True)
    images, depths_m = frames
    (scan / 'pose_intrinsic_imu.json').write_text(json.dumps({
        f'frame_{k:06d}': {
            'timestamp': 1000.0 + k / RATE_HZ, 'intrinsic': CAMERA.matrix.tolist(),
            'pose': np.eye(4).tolist(), 'aligned_pose': in_world(k / RATE_HZ, drift).tolist(),
            'imu': {'rotate_rate': TURN_RAD_S.tolist()}} for k in range(FRAMES)}))
    if video:
        writer = cv2.VideoWriter(str(scan / 'rgb.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), RATE_HZ,
                                 (CAMERA.width_px, CAMERA.height_px))
        for image in images:
            writer.write(image[..., ::-1])
        writer.release()
    else:
        for k, image in enumerate(images):
            cv2.imwrite(str(scan / 'rgb' / f'frame_{k:06d}.jpg'), image[..., ::-1],
                        [cv2.IMWRITE_JPEG_QUALITY, 100])
    with (scan / 'depth.bin').open('wb') as file:
        for depth_m in depths_m:
            data = lz4_block.compress(np.rint(1000 * depth_m).astype(np.uint16).tobytes(),
                                      store_size=False)
            file.write(len(data).to_bytes(4, 'little') + data)
    return folder


@pytest.fixture(scope='module')
def scene(frames, tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp('scannetpp') / 'data' / '036bce3393', frames)


@pytest.fixture
def clean_camera(monkeypatch):
    """A sensor without noise and quantisation, that keeps linear light."""
    monkeypatch.setattr(room, 'develop', lambda light, rng, full_well, read_noise: light)


def blurred(patterns, camera: CameraIntrinsics, first: int, last: int) -> np.ndarray:
    """Mean of what the camera sees between two frames."""
    times_s = np.linspace(first, last, 97) / RATE_HZ
    return np.mean([photograph(patterns, camera, (before + after) / 2)[0]
                    for before, after in zip(times_s, times_s[1:])], axis=0)


def test_scan_is_read_in_its_axes_and_units(scene, frames):
    recording = open_rgbd_recording(scene)
    assert recording.name == '036bce3393' and len(recording.t_s) == FRAMES
    np.testing.assert_allclose(np.diff(recording.t_s), 1 / RATE_HZ, atol=1e-9)
    expected = np.array([in_world(k / RATE_HZ) for k in range(FRAMES)])
    np.testing.assert_allclose(recording.R_world_camera, expected[:, :3, :3], atol=1e-9)
    np.testing.assert_allclose(recording.positions_m, expected[:, :3, 3], atol=1e-9)
    np.testing.assert_allclose(recording.depths[3](), frames[1][3], atol=5.1e-4)
    images = [stored.decode() for stored in recording.read()]
    assert len(images) == FRAMES
    assert np.abs(images[5].astype(int) - frames[0][5]).mean() < 2
    assert recording.cameras[0] == CAMERA and recording.tracked().all()


def test_video_is_read_where_there_are_no_frames(frames, tmp_path):
    recording = open_rgbd_recording(write_scene(tmp_path / 'scene', frames, video=True))
    images = [stored.decode() for stored in recording.read()]
    assert len(images) == FRAMES
    # any other frame is farther off
    errors = [np.abs(images[5].astype(int) - image).mean() for image in frames[0]]
    assert int(np.argmin(errors)) == 5


@pytest.mark.parametrize('together', [False, True])
def test_depth_is_read_in_either_form_of_floats(together, frames, tmp_path):
    def deflated(data: bytes) -> bytes:
        compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return compressor.compress(data) + compressor.flush()

    depths_m = [depth_m.copy() for depth_m in frames[1][:3]]
    depths_m[1][5, 7] = 0.0
    path = tmp_path / 'depth.bin'
    parts = [deflated(depth_m.tobytes()) for depth_m in depths_m]
    path.write_bytes(deflated(b''.join(depth_m.tobytes() for depth_m in depths_m)) if together
                     else b''.join(len(part).to_bytes(4, 'little') + part for part in parts))
    stream = DepthStream(path)
    assert len(stream) == 3
    read_m = stream.depth_m(1)
    assert np.isnan(read_m[5, 7]) and np.isnan(read_m).sum() == 1
    np.testing.assert_array_equal(read_m[6:], depths_m[1][6:])


def test_depth_images_that_the_toolbox_has_written_come_first(frames, tmp_path):
    folder = write_scene(tmp_path / 'scene', frames)
    (folder / 'iphone' / 'depth').mkdir()
    for k in (2, 3, 5):
        cv2.imwrite(str(folder / 'iphone' / 'depth' / f'frame_{k:06d}.png'),
                    np.full((192, 256), 100 * k, np.uint16))
    recording = open_rgbd_recording(folder)
    assert [depth()[0, 0] for depth in recording.depths] == pytest.approx([0.2, 0.3, 0.5])
    np.testing.assert_allclose(recording.t_s, 1000 + np.array([2, 3, 5]) / RATE_HZ)


def test_depth_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / 'depth.bin'
    path.write_bytes(b'\x05\x00\x00\x00abc')
    with pytest.raises(DataFormatError, match=r'depth\.bin'):
        DepthStream(path)


def test_blur_is_that_of_the_camera_moving_through_the_scene(scene, patterns, clean_camera):
    source = RecordedScenes((scene,), CONFIG)
    assert len(source) == 3
    image = source.draw(1)
    camera = image.intrinsics
    expected = blurred(patterns, camera, 2, 10)
    sharp = photograph(patterns, camera, 6 / RATE_HZ)[0]
    inner = np.s_[6:-6, 6:-6]
    error = np.abs(image.image - expected)[inner]
    assert error.mean() < 0.15 * np.abs(sharp - expected)[inner].mean()
    assert np.corrcoef(image.image[inner].ravel(), expected[inner].ravel())[0, 1] > 0.985


def test_labels_are_those_of_the_motion(scene, patterns):
    image = RecordedScenes((scene,), CONFIG).draw(1)
    camera, exposure_s = image.intrinsics, 8 / RATE_HZ
    assert image.exposure_time_s == pytest.approx(exposure_s, rel=1e-9)
    assert image.start_s == pytest.approx(1000 + 2 / RATE_HZ)
    np.testing.assert_allclose(image.angular_velocity_rad_s, TURN_RAD_S, atol=2e-3)
    np.testing.assert_allclose(image.linear_velocity_m_s, SPEED_M_S, atol=2e-3)
    np.testing.assert_allclose(image.velocities[[0, -1], 0], [-exposure_s / 2, exposure_s / 2])
    np.testing.assert_allclose(image.velocities[:, 1:], np.tile([*TURN_RAD_S, *SPEED_M_S],
                                                                (21, 1)), atol=0.02)
    np.testing.assert_allclose(image.T_end_start, np.linalg.inv(pose(exposure_s)), atol=1e-6)
    depth_m = photograph(patterns, camera, 6 / RATE_HZ)[1]
    off = np.abs(image.inverse_depth_per_m * depth_m - 1) > 0.01
    assert off.mean() < 0.04  # at the square's outline
    # where points of the mid-exposure view are at the ends of it
    x, y = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(camera.matrix).T \
        * depth_m[..., None]
    places = []
    for time_s in (-exposure_s / 2, exposure_s / 2):
        seen = (points - pose(time_s)[:3, 3]) @ pose(time_s)[:3, :3] @ camera.matrix.T
        places.append(seen[..., :2] / seen[..., 2:])
    moved = (places[1] - places[0]).transpose(2, 0, 1)
    assert np.linalg.norm(moved, axis=0).mean() > 4
    error = np.linalg.norm(image.flow_px - moved, axis=0)
    assert np.quantile(error, 0.95) < 0.1


def test_ends_are_the_frames_and_noise_is_of_the_image_alone(scene, patterns):
    source = RecordedScenes((scene,), CONFIG)
    image, again = source.draw(2), RecordedScenes((scene,), CONFIG).draw(2)
    np.testing.assert_array_equal(image.image, again.image)
    np.testing.assert_array_equal(source.draw(2).image, again.image)
    assert image.image.dtype == np.uint8 and image.image.shape == (96, 128, 3)
    for end, frame in zip(image.ends, (4, 12)):
        expected = encoded(photograph(patterns, image.intrinsics, frame / RATE_HZ)[0])
        assert np.abs(end.astype(int) - expected).mean() < 3
    fewer = RecordedScenes((scene,), CONFIG, images=2)
    np.testing.assert_array_equal(fewer.draw(1).image, image.image)


def test_what_the_square_hid_comes_from_other_frames(scene, patterns):
    source = RecordedScenes((scene,), CONFIG)
    source.draw(1)
    keyframe = source._keyframe(0, 0, 6, 12)
    hidden = keyframe.inverse_depth[1:] > 0
    assert hidden.sum() > 100
    assert np.median(1 / keyframe.inverse_depth[1:][hidden]) == pytest.approx(WALL_M, rel=0.03)
    camera, view = source._cut(keyframe.camera), pose(6 / RATE_HZ)  # of frame 12, seen from 6
    true = photograph(patterns, camera, 12 / RATE_HZ)[0]
    poses = Rotation.from_matrix(view[None, :3, :3]).as_rotvec(), view[None, :3, 3]
    errors = [np.abs(average_light(layers, camera, *poses) - true)[6:-6, 6:-6].mean()
              for layers in (keyframe, replace(keyframe, inverse_depth=keyframe.inverse_depth
                                               * np.array([1, 0, 0])[:, None, None]))]
    assert errors[0] < 0.9 * errors[1]


def test_colmap_takes_the_drift_out_of_the_poses(frames, tmp_path):
    pytest.importorskip('pycolmap', reason='needs pycolmap: pip install .[scannetpp]')
    folder = write_scene(tmp_path / 'scene', frames, drift=0.4)
    model = folder / 'iphone' / 'colmap'
    model.mkdir()
    fx, fy, cx, cy = CAMERA.matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    (model / 'cameras.txt').write_text(
        f'1 OPENCV 192 144 {fx} {fy} {cx + 0.5} {cy + 0.5} 0.01 0 0 0\n')
    lines = []
    for number, k in enumerate(range(1, FRAMES, 5), start=1):
        seen = np.linalg.inv(in_world(k / RATE_HZ))
        x, y, z, w = Rotation.from_matrix(seen[:3, :3]).as_quat().tolist()
        lines += [f'{number} {w} {x} {y} {z} {" ".join(map(str, seen[:3, 3].tolist()))} 1 '
                  f'frame_{k:06d}.jpg', '']
    (model / 'images.txt').write_text('\n'.join(lines) + '\n')
    (model / 'points3D.txt').write_text('')
    drifting, corrected = open_rgbd_recording(folder), open_rgbd_recording(folder, colmap=True)
    assert len(corrected.t_s) == 11  # from the first frame that COLMAP knows to the last
    true = np.array([in_world(k / RATE_HZ) for k in range(1, 12)])
    assert np.abs(drifting.positions_m[1:12] - true[:, :3, 3]).max() > 0.1
    np.testing.assert_allclose(corrected.positions_m, true[:, :3, 3], atol=2e-3)
    np.testing.assert_allclose(corrected.R_world_camera, true[:, :3, :3], atol=2e-3)
    assert corrected.cameras[0] == replace(CAMERA, distortion_model='plumb_bob',
                                           distortion=(0.01, 0.0, 0.0, 0.0))


def test_exposures_over_jumps_and_gaps_are_left_out(scene):
    recording = open_rgbd_recording(scene)
    for change in ('jump', 'turn', 'gap', 'lost'):
        times_s, turns, places_m = (values.copy() for values in (
            recording.t_s, recording.R_world_camera, recording.positions_m))
        if change == 'jump':
            places_m[6:] += [0.04, 0.0, 0.0]  # 2.4 m/s for one step
        elif change == 'turn':
            turns[6:] = turns[6:] @ Rotation.from_rotvec([0.15, 0, 0]).as_matrix()
        elif change == 'gap':
            times_s[6:] += 0.1
        else:
            turns[5:8], places_m[5:8] = turns[5], places_m[5]
        tracked = replace(recording, t_s=times_s, R_world_camera=turns,
                          positions_m=places_m).tracked()
        assert not tracked[5] and tracked[:3].all() and tracked[9:].all(), change


def test_images_that_are_blurred_too_much_are_left_out(scene, monkeypatch):
    monkeypatch.setattr(recorded_scenes, 'MAX_MEAN_FLOW_PX', 4.0)
    assert RecordedScenes((scene,), CONFIG).draw(0) is None


def test_the_path_does_not_go_over_a_jump_beyond_the_exposure(scene, monkeypatch):
    source = RecordedScenes((scene,), CONFIG)
    recording = source._recording(0)
    places_m = recording.positions_m.copy()
    places_m[10:] += [0.1, 0.0, 0.0]
    jumped = replace(recording, positions_m=places_m)
    monkeypatch.setattr(source, '_recording', lambda number: jumped)
    source._tracked.cache_clear()
    image = source.draw(0)  # frames 0 to 8
    np.testing.assert_allclose(image.linear_velocity_m_s, SPEED_M_S, atol=5e-3)


def test_frames_without_a_pose_are_passed_over(frames, tmp_path):
    folder = write_scene(tmp_path / 'scene', frames)
    path = folder / 'iphone' / 'pose_intrinsic_imu.json'
    poses = json.loads(path.read_text())
    del poses['frame_000003']['aligned_pose']
    poses['frame_000007']['aligned_pose'][0][3] = float('nan')
    path.write_text(json.dumps(poses))
    recording = open_rgbd_recording(folder)
    assert len(recording.t_s) == len(recording.depths) == FRAMES - 2
    np.testing.assert_allclose(recording.positions_m[3], in_world(4 / RATE_HZ)[:3, 3], atol=1e-9)
    np.testing.assert_allclose(recording.depths[3](), frames[1][4], atol=5.1e-4)
    images = [stored.decode() for stored in recording.read()]
    assert np.abs(images[3].astype(int) - frames[0][4]).mean() < 2


def test_a_frame_that_cannot_be_read_costs_the_images_that_need_it(frames, tmp_path, capsys):
    folder = write_scene(tmp_path / 'scene', frames)
    (folder / 'iphone' / 'rgb' / 'frame_000004.jpg').write_bytes(b'not an image')
    source = RecordedScenes((folder,), CONFIG)
    assert source.draw(0) is None and 'image 0 left out: image 4 of' in capsys.readouterr().out
    assert source.draw(1) is not None


def test_scenes_are_those_of_the_list(scene):
    root = scene.parents[1]
    (root / 'splits').mkdir(exist_ok=True)
    (root / 'splits' / 'nvs_sem_train.txt').write_text('ffffffffff\n036bce3393\n')
    assert find_rgbd_recordings(root, held_out=False) == [scene]
    with pytest.raises(DataFormatError, match=r'nvs_sem_val\.txt'):
        find_rgbd_recordings(root, held_out=True)
    (root / 'splits' / 'nvs_sem_val.txt').write_text('ffffffffff\n')
    with pytest.raises(DataFormatError, match='none of the 1 scenes'):
        find_rgbd_recordings(root, held_out=True)


def test_verb_writes_the_papers_table_of_a_scan(scene, tmp_path, capsys):
    command = ['synthesize', str(tmp_path / 'out'), '--format', 'csv', '--recordings', str(scene),
               *(f'--set={key}={getattr(CONFIG, key)}' for key in (
                   'width', 'height', 'frames_apart', 'frame_step'))]
    assert main(command) == 0
    assert '3 images, 0 left out' in capsys.readouterr().out
    table = np.genfromtxt(tmp_path / 'out' / 'dataset.csv', delimiter=',', names=True,
                          dtype=None, encoding='utf-8')
    assert list(table['image2']) == [f'image2/{k:09d}.png' for k in range(3)]
    np.testing.assert_allclose(table['ts2'] - table['ts1'], 8 / RATE_HZ, atol=1e-6)
    assert main([*command[:2], '--format', 'webdataset', *command[4:]]) == 1
    assert 'format csv, not webdataset' in capsys.readouterr().err
    shards = tmp_path / 'shards'
    assert main(['synthesize', str(shards), '--format', 'webdataset', *command[4:]]) == 0
    image = Shards(shards)[1]
    assert image.source == '036bce3393' and image.velocities.shape == (21, 7)


@pytest.fixture
def app_folder(make_app_folder) -> Path:
    """Folder of the StrayScanner app with depth images; row k of the odometry is 1 + k mm away."""
    random = np.random.default_rng(3)
    folder = make_app_folder([cv2.resize(random.integers(0, 256, (48, 64, 3), np.uint8),
                                         (640, 480)) for _ in range(8)])
    (folder / 'depth').mkdir()
    for row in range(1, 8):
        cv2.imwrite(str(folder / 'depth' / f'{row:06d}.png'),
                    np.full((192, 256), 1000 + row, np.uint16))
    return folder


def test_folder_of_the_app_is_read_with_the_depth_of_each_image(app_folder):
    recording = open_rgbd_recording(app_folder)
    assert len(recording.t_s) == 7  # the last image has no depth
    np.testing.assert_allclose(recording.positions_m[:, 0], 0.03 * np.arange(1, 8))
    assert [depth()[0, 0] for depth in recording.depths] == pytest.approx(
        [1.001 + 0.001 * k for k in range(7)])
    assert len(list(recording.read())) == 7
    with pytest.raises(ConfigError, match='no poses of COLMAP'):
        open_rgbd_recording(app_folder, colmap=True)
    with pytest.raises(DataFormatError, match='no depth images'):
        (app_folder / 'depth').rename(app_folder / 'depth_elsewhere')
        open_rgbd_recording(app_folder)
    (app_folder / 'depth_elsewhere').rename(app_folder / 'depth')
    image = RecordedScenes((app_folder,), DatasetConfig(
        width=128, height=96, frames_apart=2, frame_step=1)).draw(0)
    np.testing.assert_allclose(image.linear_velocity_m_s, [0.9, 0, 0], atol=1e-6)
    np.testing.assert_allclose(image.inverse_depth_per_m, 1 / 1.002, rtol=1e-3)
    np.testing.assert_allclose(image.flow_px[0], -image.intrinsics.fx_px * 0.06 / 1.002, rtol=1e-3)


def test_views_of_a_real_recording_agree_with_its_other_frames(data_folder):
    source = RecordedScenes((data_folder / 'strayscanner_dining',),
                            DatasetConfig(frames_apart=4, frame_step=1))
    first = next(index for index, (_, first) in enumerate(source._chosen) if first == 15)
    recording = source._recording(0)
    image = source.draw(first)
    assert image.image.shape == (224, 320, 3)
    camera, keyframe = image.intrinsics, source._keyframe(0, 15, 17, 19)
    path = source._path(0, 15, 17, 19)
    for frame, end in zip((15, 19), image.ends):
        time_s = recording.t_s[[frame]] - recording.t_s[17]
        moved = average_light(keyframe, camera, path.rotation(time_s).as_rotvec(),
                              path.position_m(time_s))
        still = average_light(keyframe, camera, np.zeros((1, 3)), np.zeros((1, 3)))
        agreement = [np.corrcoef(view[20:-20, 20:-20].ravel(),
                                 ((end / 255.0) ** 2.2)[20:-20, 20:-20].ravel())[0, 1]
                     for view in (moved, still)]
        assert agreement[0] > 0.96 and agreement[1] < 0.9


def test_blending_is_the_mean_of_the_frames(scene, patterns, clean_camera):
    config = replace(CONFIG, frames_apart=2)
    source = RecordedScenes((scene,), config, interpolator=Blend())
    image = source.draw(0)
    assert source.settings['interpolation'] == 'blend'
    views = [photograph(patterns, image.intrinsics, frame / RATE_HZ)[0] for frame in range(3)]
    shares = np.arange(4) / 4
    # what the camera encodes is faded, which is nearly the same as fading light
    mean = np.average(views, axis=0, weights=[
        (1 - shares).sum(), 1 + 2 * shares[1:].sum(), 1 + shares.sum()])
    assert np.corrcoef(image.image.ravel(), mean.ravel())[0, 1] > 0.985
    assert image.image.mean() == pytest.approx(mean.mean(), rel=0.01)
    by_depth = RecordedScenes((scene,), config).draw(0)
    assert np.corrcoef(image.image.ravel(), by_depth.image.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(image.flow_px, by_depth.flow_px)


TINY_RIFE = """
import torch
class Model:
    version = 4.25
    def __init__(self):
        self.flownet = torch.nn.Linear(1, 1, bias=False)
    def load_model(self, path, rank):
        state = torch.load(f'{path}/flownet.pkl')
        self.flownet.load_state_dict(
            {key.replace('module.', ''): value for key, value in state.items()})
    def eval(self):
        self.flownet.eval()
    def inference(self, first, second, timestep=0.5, scale=1.0):
        assert first.shape[2] % 128 == first.shape[3] % 128 == 0
        faded = (1 - timestep) * first + timestep * second
        return self.flownet(faded[..., None])[..., 0]
"""


def test_rife_of_a_checkout_is_called_as_its_own_scripts_do(tmp_path, scene, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, 'train_log', raising=False)
    monkeypatch.delitem(sys.modules, 'train_log.RIFE_HDv3', raising=False)
    with pytest.raises(ConfigError, match=r'RIFE_HDv3\.py is missing; clone .*Practical-RIFE'):
        Rife(tmp_path)
    assert main(['synthesize', str(tmp_path / 'out'), '--format', 'csv', '--recordings',
                 str(scene), '--rife', str(tmp_path)]) == 1
    assert 'Practical-RIFE' in capsys.readouterr().err
    (tmp_path / 'train_log').mkdir()
    (tmp_path / 'train_log' / 'RIFE_HDv3.py').write_text(TINY_RIFE)
    torch.save({'module.weight': torch.tensor([[0.5]])}, tmp_path / 'train_log' / 'flownet.pkl')
    path = list(sys.path)
    rife = Rife(tmp_path)
    assert sys.path == path and rife.settings == 'RIFE 4.25'
    first, second = np.full((90, 70, 3), 0.4, np.float32), np.full((90, 70, 3), 0.8, np.float32)
    np.testing.assert_allclose(rife.between(first, second, 0.25), 0.25, rtol=1e-6)
    assert rife.between(first, second, 0.25).shape == (90, 70, 3)
    (tmp_path / 'train_log' / 'RIFE_HDv3.py').write_text(TINY_RIFE.replace('4.25', '3.8'))
    monkeypatch.delitem(sys.modules, 'train_log.RIFE_HDv3')
    with pytest.raises(ConfigError, match='version 3.8, which interpolates half-way only'):
        Rife(tmp_path)


def test_missing_transformers_are_named_with_their_remedy(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    assert main(['synthesize', str(tmp_path / 'out'), '--format', 'csv', '--recordings',
                 str(scene), '--promptda', 'x']) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and "pip install 'image_as_imu_ros[promptda]'" in error


def test_depth_model_of_transformers_refines_the_recorded_depth(tmp_path, scene):
    transformers = pytest.importorskip('transformers',
                                       reason='needs transformers: pip install .[promptda]')
    with pytest.raises(ConfigError, match='cannot be loaded from .*nowhere.*hf download'):
        PromptDepth(str(tmp_path / 'nowhere'))
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'], reshape_hidden_states=False)
    config = transformers.PromptDepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, depth_estimation_type='metric')
    transformers.PromptDepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    transformers.PromptDepthAnythingImageProcessor(
        size={'height': 56, 'width': 56}, ensure_multiple_of=14).save_pretrained(tmp_path)
    model = PromptDepth(str(tmp_path))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    depth_m = np.linspace(1.0, 3.0, 12 * 16).reshape(12, 16)
    fine_m = model.complete(image, depth_m)
    assert fine_m.shape == (60, 80) and np.isfinite(fine_m).all()
    # untrained, it still knows the scale from the recorded depth alone
    np.testing.assert_allclose(model.complete(image, 2 * depth_m), 2 * fine_m, rtol=1e-3)
    source = RecordedScenes((scene,), CONFIG, depth_model=model)
    label = source.draw(0)
    assert source.settings['depth'].startswith('PromptDA')
    assert label is None or np.isfinite(label.inverse_depth_per_m).all()
