"""Rendered rooms agree with pinhole projection, and their blur with the motion it is labelled."""

import dataclasses
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from photographing import EXPOSURE_S, NO_SHUTTER_EFFECTS, steady_path, write_box_room
from scipy.spatial.transform import Rotation

from image_as_imu_ros.cli.main import main
from image_as_imu_ros.config import TrainingConfig
from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.geometry.motion_field import pixel_grid
from image_as_imu_ros.synthesis import keyframes, mesh_rooms, textures
from image_as_imu_ros.synthesis.keyframes import LAYERS, Keyframe, average_light
from image_as_imu_ros.synthesis.mesh_rooms import Lamp, MeshRoom, look
from image_as_imu_ros.training.dataset import CropFactory
from image_as_imu_ros.types import CameraIntrinsics

CHECKOUT = Path(__file__).resolve().parents[1]
NEAR_M, WALL_M = 2.0, 4.0
HALF_M = 0.3
"""Of the near square's side; it stands before the middle of the wall."""
WIDE = CameraIntrinsics(200, 160, 200.0, 200.0, 99.5, 79.5)
CROP = CameraIntrinsics(120, 96, 200.0, 200.0, 59.5, 47.5)
DAYLIGHT = Lamp(np.zeros(3), 1.0, ambient=1.0)


@pytest.fixture(scope='module')
def patterns():
    """Wall and near square; the square is the brighter one."""
    rng = np.random.default_rng(0)
    wall, square = (cv2.GaussianBlur(rng.standard_normal((side, side)).astype(np.float32), (0, 0),
                                     2.5) for side in (512, 80))
    return [level + 0.12 * (grain / grain.std()).clip(-1.5, 1.5)
            for level, grain in ((0.2, wall), (0.8, square))]


@pytest.fixture(scope='module')
def room(patterns):
    """The square before the wall, met by looking along the world's x axis."""
    pytest.importorskip('embreex', reason='needs embreex: pip install .[rooms]')
    vertices, uv = [], []
    for depth, half in ((WALL_M, 4.0), (NEAR_M, HALF_M)):
        for right, up in ((0, 0), (1, 0), (1, 1), (0, 1)):
            vertices.append((depth, half * (1 - 2 * right), half * (2 * up - 1)))
            uv.append((right, up))
    triangles = np.array([(0, 1, 2), (0, 2, 3), (4, 5, 6), (4, 6, 7)])
    return MeshRoom(np.array(vertices), np.array(uv), triangles, np.array([0, 0, 1, 1]),
                    list(patterns))


@pytest.fixture
def steadily(monkeypatch):
    """Plans photographs of keyframes from a camera whose velocity does not change."""
    monkeypatch.setattr(keyframes, 'sample_path', steady_path)

    def plan(keyframe, motion):
        return keyframes.plan(np.random.default_rng(0), keyframe, CROP, np.array(motion, float), 8,
                              NO_SHUTTER_EFFECTS, EXPOSURE_S)
    return plan


def seen_from(x_m, y_m, patterns, camera=WIDE):
    """What a camera that was moved sideways sees of the planes: light, inverse depth, hidden."""
    layers = []
    for depth, pattern, half in ((NEAR_M, patterns[1], HALF_M), (WALL_M, patterns[0], 4.0)):
        columns, rows = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
        x = (columns - camera.cx_px) / camera.fx_px * depth + x_m
        y = (rows - camera.cy_px) / camera.fy_px * depth + y_m
        scale = pattern.shape[0] / 2 / half
        texels = ((np.stack([x, y]) + half) * scale - 0.5).astype(np.float32)
        light = cv2.remap(pattern, *texels, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        layers.append((light, (np.abs(x) < half) & (np.abs(y) < half)))
    (square, here), (wall, _) = layers
    return np.where(here, square, wall), here, wall


@pytest.fixture
def keyframe(patterns):
    light, here, wall = seen_from(0.0, 0.0, patterns)
    inverse_depth = np.zeros((LAYERS, *light.shape))
    inverse_depth[0] = np.where(here, 1 / NEAR_M, 1 / WALL_M)
    inverse_depth[1][here] = 1 / WALL_M
    return Keyframe(np.stack([light, wall, wall]), inverse_depth, WIDE)


def displaced(room, camera, rotation_rad, position_m):
    """Trace a view from a place given in the axes of a camera that looks along world x."""
    ahead = look(0.0, 0.0, 0.0)
    turned = ahead @ Rotation.from_rotvec(rotation_rad).as_matrix()
    return room.view(camera, turned, ahead @ position_m, DAYLIGHT)


def test_depth_and_outline_are_those_of_the_pinhole_projection(room):
    shift = np.array([0.1, -0.05, 0.2])
    view = displaced(room, WIDE, np.zeros(3), shift)
    near = np.isclose(view.inverse_depth[0], 1 / (NEAR_M - shift[2]), rtol=1e-4)
    wall = np.isclose(view.inverse_depth[0], 1 / (WALL_M - shift[2]), rtol=1e-4)
    assert (near | wall).all()
    rows, columns = np.nonzero(near)
    for found, focal, centre, at in ((columns, WIDE.fx_px, WIDE.cx_px, shift[0]),
                                     (rows, WIDE.fy_px, WIDE.cy_px, shift[1])):
        low, high = (centre + focal * (edge - at) / (NEAR_M - shift[2])
                     for edge in (-HALF_M, HALF_M))
        assert found.min() == pytest.approx(low, abs=1.0)
        assert found.max() == pytest.approx(high, abs=1.0)
    np.testing.assert_allclose(view.inverse_depth[1][near], 1 / (WALL_M - shift[2]), rtol=1e-3)


def test_textures_lie_where_their_coordinates_say(room, patterns):
    view = displaced(room, WIDE, np.zeros(3), np.zeros(3))
    light, here, wall = seen_from(0.0, 0.0, patterns)
    inside = cv2.erode(here.astype(np.uint8), np.ones((5, 5))) > 0
    outside = cv2.dilate(here.astype(np.uint8), np.ones((5, 5))) == 0
    assert np.corrcoef(view.light[0][inside], light[inside])[0, 1] > 0.95
    assert np.corrcoef(view.light[0][outside], light[outside])[0, 1] > 0.95
    assert np.corrcoef(view.light[0][inside], light[::-1][inside])[0, 1] < 0.8
    assert np.corrcoef(view.light[1][inside], wall[inside])[0, 1] > 0.95


def test_a_lamp_behind_the_square_leaves_its_shadow_on_nothing_else(room):
    front = Lamp(np.zeros(3), 10.0, ambient=0.0)
    hidden = Lamp(np.array([3.0, 0.0, 0.0]), 10.0, ambient=0.0)
    rotation = look(0.0, 0.0, 0.0)
    lit, unlit = (room.view(WIDE, rotation, np.array([0.1, 0.0, 0.0]), lamp)
                  for lamp in (front, hidden))
    near = lit.inverse_depth[0] > 0.4
    assert lit.light[0][near].min() > 0.3
    # pixels of the outline also see the wall
    assert np.quantile(unlit.light[0][near], 0.9) == 0 and unlit.light[0][~near].mean() > 0.01


@pytest.mark.parametrize('motion', [
    (0.01, -0.03, 0.02, 0, 0, 0), (0, 0, 0, 0.02, 0.01, 0.02), (0.01, 0.005, 0, 0.02, 0.01, 0)])
def test_label_is_where_points_move_from_start_to_end(room, steadily, motion):
    motion = np.array(motion)
    middle = displaced(room, WIDE, np.zeros(3), np.zeros(3))
    labels = steadily(middle, motion).labels
    np.testing.assert_array_equal(labels.motion, motion)
    # most of the view shows the wall, whose distance is therefore that of reference
    start, middle, end = (displaced(room, CROP, share * motion[:3], share * motion[3:] * WALL_M)
                          for share in (-0.5, 0.0, 0.5))
    flat = cv2.dilate(middle.inverse_depth[0], np.ones((15, 15))) \
        == cv2.erode(middle.inverse_depth[0], np.ones((15, 15)))
    cells = pixel_grid(120, 96, 8)
    inner = flat[4::8, 4::8] & (np.abs(cells - (59.5, 47.5)) < (48, 36)).all(axis=-1)
    images = [(200 * view.light[0]).astype(np.uint8) for view in (start, middle, end)]
    points = cells[inner].astype(np.float32)
    before, after = (cv2.calcOpticalFlowPyrLK(images[1], image, points, None, winSize=(15, 15))[0]
                     for image in images[::2])
    error_px = np.linalg.norm(after - before - labels.flow_px[inner], axis=-1)
    near = middle.inverse_depth[0][4::8, 4::8][inner] > 0.4
    assert near.sum() >= 9 and (~near).sum() >= 9
    assert np.linalg.norm(labels.flow_px[inner], axis=-1).max() > 3
    assert np.median(error_px[near]) < 0.2 and np.median(error_px[~near]) < 0.2


def test_blur_of_layers_is_that_of_traced_subframes(room):
    rotation_rad, position_m = np.array([0.01, 0.03, 0.05]), np.array([0.12, 0.05, 0.1])
    times = (np.arange(24) + 0.5) / 24 - 0.5
    keyframe = displaced(room, WIDE, np.zeros(3), np.zeros(3))
    traced = np.mean([displaced(room, CROP, time * rotation_rad, time * position_m).light[0]
                      for time in times], axis=0)
    poses = times[:, None] * rotation_rad, times[:, None] * position_m
    error = np.abs(average_light(keyframe, CROP, *poses) - traced)
    assert error.mean() < 0.01 * traced.std() + 0.004 and error.max() < 0.1
    only_seen = dataclasses.replace(keyframe, inverse_depth=keyframe.inverse_depth
                                    * np.array([1, 0, 0])[:, None, None])
    assert np.abs(average_light(only_seen, CROP, *poses) - traced).max() > 0.15


@pytest.mark.parametrize(('x_m', 'y_m'), [(0.08, 0.0), (-0.08, 0.0), (0.0, 0.12), (-0.1, 0.08)])
def test_a_sideways_step_uncovers_the_wall_not_a_smeared_square(keyframe, patterns, x_m, y_m):
    seen = average_light(keyframe, CROP, np.zeros((1, 3)), np.array([[x_m, y_m, 0.0]]))
    expected, here, _ = seen_from(x_m, y_m, patterns, CROP)
    _, before, _ = seen_from(0.0, 0.0, patterns, CROP)
    window = np.ones((3, 3), np.uint8)
    edge = cv2.dilate(here.astype(np.uint8), window) != cv2.erode(here.astype(np.uint8), window)
    assert np.abs(seen - expected)[~edge].max() < 0.02
    # where the square moved over the wall behind it, seen from the keyframe
    uncovered = before & ~here & ~edge
    assert uncovered.sum() > 200 and seen[uncovered].max() < 0.5 < expected[here].min()


def test_blur_of_a_room_does_not_tell_the_direction_of_time(keyframe, steadily):
    motion = np.array([0.02, -0.05, 0.1, 0.03, 0.02, -0.01])
    forward, backward, still = (steadily(keyframe, sign * motion) for sign in (1, -1, 0))
    # the same subframes, though near things may be assigned to other ones at the very edge
    assert np.abs(backward.light - forward.light).mean() < 1e-3
    np.testing.assert_allclose(backward.labels.flow_px, -forward.labels.flow_px, rtol=1e-5)
    assert np.abs(forward.light - still.light).mean() > 0.1 * still.light.std()


def test_blur_is_the_mean_along_the_path_that_is_labelled(keyframe, patterns, steadily):
    shot = steadily(keyframe, [0, 0, 0, 0.03, 0, 0])
    expected = np.mean([seen_from(shift_m, 0.0, patterns, CROP)[0]
                        for shift_m in 0.03 * WALL_M * np.linspace(-0.49, 0.49, 50)], axis=0)
    assert np.abs(shot.light - expected).mean() < 0.02 * expected.mean()
    assert np.corrcoef(shot.light.ravel(), expected.ravel())[0, 1] > 0.998


def test_near_things_move_more_in_proportion(keyframe, steadily):
    flow_px = steadily(keyframe, [0, 0, 0, 0.02, 0, 0]).labels.flow_px
    assert flow_px[0, 0] == pytest.approx([-CROP.fx_px * 0.02, 0], rel=1e-3)
    assert flow_px[6, 7] == pytest.approx(flow_px[0, 0] * WALL_M / NEAR_M, rel=1e-3)


def test_the_camera_does_not_run_into_things(keyframe, steadily):
    rotation = [0.01, 0.02, 0.03]
    motion = steadily(keyframe, [*rotation, 0, 0, 2.0]).labels.motion
    assert motion[:3].tolist() == rotation
    assert motion[5] * WALL_M == pytest.approx(keyframes.MAX_APPROACH * NEAR_M)


def test_keyframes_survive_the_disk(keyframe, tmp_path):
    path = tmp_path / '0.npz'
    keyframe.save(path)
    again = Keyframe.load(path)
    assert again.camera == keyframe.camera and list(tmp_path.iterdir()) == [path]
    np.testing.assert_allclose(again.light, keyframe.light, atol=1e-3)
    np.testing.assert_array_equal(again.inverse_depth, keyframe.inverse_depth)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataFormatError, match=r'0\.npz'):
        Keyframe.load(path)


@pytest.fixture
def keyframe_folder(keyframe, tmp_path):
    folder = tmp_path / 'keyframes'
    folder.mkdir()
    for index in range(9):
        dataclasses.replace(keyframe, light=keyframe.light * (1 + index)).save(
            folder / f'{index:06d}.npz')
    return folder


def test_rooms_take_their_share_of_the_crops(keyframe_folder):
    config = TrainingConfig(width=64, height=64, rooms=0.5)
    factory = CropFactory(config, None, held_out=False, keyframes=keyframe_folder)
    samples = [factory.crop(index) for index in range(40)]
    # flat scenes have a field that changes smoothly, the square's outline has not
    rough = [np.abs(np.diff(sample.field[..., 0, 3], axis=1)).max() > 0.2 * sample.field[
        ..., 0, 3].std() + 1 for sample in samples]
    assert 8 < sum(rough) < 35
    again = CropFactory(config, None, held_out=False, keyframes=keyframe_folder)
    for index in (39, 3, 0):
        np.testing.assert_array_equal(again.crop(index).gray, samples[index].gray)
        np.testing.assert_array_equal(again.crop(index).field, samples[index].field)


def test_every_eighth_keyframe_is_held_out(keyframe_folder):
    shares = [{path.name for path in CropFactory(
        TrainingConfig(), None, held_out, keyframe_folder).keyframes}
        for held_out in (False, True)]
    assert shares[1] == {'000000.npz', '000008.npz'}
    assert not shares[0] & shares[1] and len(shares[0]) == 7


def test_views_of_the_held_out_room_are_not_trained_on(keyframe, keyframe_folder):
    keyframe.save(keyframe_folder / f'000010-{textures.HELD_OUT_ROOM}.npz')
    for held_out in (False, True):
        factory = CropFactory(TrainingConfig(), None, held_out, keyframe_folder)
        assert not any(textures.HELD_OUT_ROOM in path.name for path in factory.keyframes)


def test_verb_trains_on_keyframes(keyframe_folder, tmp_path, capsys):
    settings = [f'--set={text}' for text in (
        'crops=8', 'batch=8', 'width=64', 'height=64', 'workers=0', 'validation=8', 'rooms=1')]
    assert main(['train', str(tmp_path / 'run'), '--keyframes', str(keyframe_folder),
                 *settings]) == 0
    assert 'validation loss' in capsys.readouterr().out
    assert main(['train', str(tmp_path / 'run2'), '--keyframes', str(tmp_path), *settings]) == 1
    assert 'no keyframe' in capsys.readouterr().err


@pytest.fixture
def assets(tmp_path):
    """A box to stand in, once for training and once held out."""
    for name in ('box', textures.HELD_OUT_ROOM):
        write_box_room(tmp_path / 'assets' / name, np.random.default_rng(0))
    return tmp_path / 'assets'


def test_the_held_out_room_is_not_for_training(assets):
    assert [path.name for path in mesh_rooms.find_rooms(assets, held_out=False)] == ['box']
    assert [path.name for path in mesh_rooms.find_rooms(assets, held_out=True)] \
        == [textures.HELD_OUT_ROOM]
    with pytest.raises(DataFormatError, match=r'no scene\.npz'):
        mesh_rooms.find_rooms(assets / 'box' / 'textures', held_out=False)


def test_verb_adds_the_keyframes_that_are_missing(assets, tmp_path, monkeypatch, capsys):
    pytest.importorskip('embreex', reason='needs embreex: pip install .[rooms]')
    monkeypatch.setattr(mesh_rooms, 'WIDTH_PX', 160)
    monkeypatch.setattr(mesh_rooms, 'HEIGHT_PX', 120)
    folder = tmp_path / 'keyframes'
    command = ['synthesize', str(folder), '--preset', 'keyframes', '--assets', str(assets)]
    assert main([*command, '--images', '3']) == 0
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(contents) == [f'{index:06d}-box.npz' for index in range(3)]
    for path in keyframes.find_keyframes(folder):
        inverse_depth = Keyframe.load(path).inverse_depth[0]
        assert 0.5 < 1 / np.median(inverse_depth) < 7.0 and inverse_depth.max() < 4
    (folder / '000001-box.npz').unlink()
    (folder / '000002-box.npz').write_bytes(b'kept')
    assert main([*command, '--images', '3']) == 0
    again = [Keyframe.load(folder / '000001-box.npz').light]
    (folder / '000001-box.npz').write_bytes(contents['000001-box.npz'])
    np.testing.assert_array_equal(Keyframe.load(folder / '000001-box.npz').light, again[0])
    assert (folder / '000002-box.npz').read_bytes() == b'kept'
    assert main(command[:4]) == 1
    assert '--assets' in capsys.readouterr().err


def test_a_missing_renderer_is_named_with_its_remedy(assets, monkeypatch):
    monkeypatch.setitem(sys.modules, 'embreex', None)
    monkeypatch.setitem(sys.modules, 'embreex.mesh_construction', None)
    with pytest.raises(ConfigError, match=r'embreex.*pip install .*\[rooms\]'):
        MeshRoom.load(assets / 'box')


def test_damaged_rooms_are_refused(assets):
    (assets / 'box' / 'textures' / 'a.png').write_bytes(b'not an image')
    with pytest.raises(DataFormatError, match=r'a\.png'):
        MeshRoom.load(assets / 'box')
    (assets / 'box' / 'materials.json').unlink()
    with pytest.raises(DataFormatError, match='box'):
        MeshRoom.load(assets / 'box')


def test_views_of_a_real_room_show_a_room():
    pytest.importorskip('embreex', reason='needs embreex: pip install .[rooms]')
    folder = Path(os.environ.get('IMAGE_AS_IMU_ASSETS', CHECKOUT.parent / 'shared' / 'assets'))
    path = folder / 'scenes' / 'aws_bookstore'
    if not path.is_dir():
        pytest.skip(f'no room at {path}; set IMAGE_AS_IMU_ASSETS')
    bookstore = MeshRoom.load(path)
    size_m = bookstore.high_m - bookstore.low_m
    assert (size_m > 2).all() and (size_m < 20).all()  # what lies far outside is left out
    view = mesh_rooms.random_view(np.random.default_rng(0), bookstore)
    assert view.light.shape == (LAYERS, mesh_rooms.HEIGHT_PX, mesh_rooms.WIDTH_PX)
    assert np.isfinite(view.light).all() and np.mean(view.light[0] == 0) < 0.05
    assert (view.inverse_depth[0] > 0).mean() > 0.98 and view.inverse_depth[0].min() > 0
    hidden = view.inverse_depth[1] > 0
    assert 0 < hidden.mean() < 1
    assert (view.inverse_depth[1] <= view.inverse_depth[0])[hidden].all()
