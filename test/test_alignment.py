"""Rotation between two images is found by aligning them, whatever their blur."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from image_as_imu_ros.geometry.alignment import ExpectedMotion, PairAligner, with_blur
from image_as_imu_ros.geometry.motion_field import plane_homography
from image_as_imu_ros.synthesis.textures import procedural_texture
from image_as_imu_ros.types import CameraIntrinsics

CAMERA = CameraIntrinsics(320, 240, 280.0, 270.0, 152.0, 125.0)
TURNS = [(0.02, -0.03, 0.01), (0.0, 0.15, 0.0), (-0.12, 0.05, 0.2), (0.05, -0.05, 0.4),
         (0.1, 0.25, -0.1)]


def scene(seed):
    """Detailed texture of four times the image's area, 0 to 1."""
    rng = np.random.default_rng(seed)
    texture = procedural_texture(rng, 900) ** (1 / 2.2)
    texture += 0.4 * procedural_texture(rng, 900)
    return np.clip(texture / np.percentile(texture, 98), 0, 1).astype(np.float32)


SCENE = scene(5)


def view(rotation_vector_rad, texture=SCENE):
    """What a camera turned from the scene's axes sees, (h, w) float32."""
    to_texture = np.array([[280.0, 0.0, 450.0], [0.0, 280.0, 450.0], [0.0, 0.0, 1.0]])
    turn = Rotation.from_rotvec(rotation_vector_rad).as_matrix()
    return cv2.warpPerspective(texture, to_texture @ turn @ np.linalg.inv(CAMERA.matrix),
                               (320, 240), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REFLECT)


def blurred_view(rotation_vector_rad, blur_rad, texture=SCENE):
    """The mean of views while the camera turns by `blur_rad` (camera axes) about a rotation."""
    middle = Rotation.from_rotvec(rotation_vector_rad)
    return np.mean([view((middle * Rotation.from_rotvec(share * np.array(blur_rad))).as_rotvec(),
                         texture) for share in (np.arange(40) + 0.5) / 40 - 0.5], axis=0)


def motion(rotation_vector_rad):
    return np.array([*rotation_vector_rad, 0.0, 0.0, 0.0])


@pytest.fixture(scope='module')
def aligner():
    return PairAligner(CAMERA)


@pytest.mark.parametrize('turn_rad', TURNS)
def test_rotation_is_recovered_without_a_seed(aligner, turn_rad):
    found = aligner.align(view((0, 0, 0)), view(turn_rad), None, None, [])
    # measured: up to 1.9e-3
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=3e-3)
    assert found.similarity > 0.9
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_turn_by_more_than_a_quarter_of_the_image_needs_a_seed(aligner):
    turn_rad = (0.0, -0.4, 0.0)
    found = aligner.align(view((0, 0, 0)), view(turn_rad), None, None,
                          [motion((0.03, -0.35, 0.03))])
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=3e-3)


def test_scene_of_two_depths_is_told_from_a_turn(aligner):
    """A scene of two depths, made by the aligner's own geometry, written out."""
    turn_rad, way = np.array([0.04, -0.1, 0.06]), np.array([0.02, 0.012, -0.015])
    nearness = np.where(np.arange(40) < 20, 1.5, 0.5)[None].repeat(30, axis=0)
    ahead = np.array([0.0, 0.0, 1.0])
    columns, rows = np.meshgrid(np.arange(320.0), np.arange(240.0))
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.linalg.inv(CAMERA.matrix).T
    rays = rays @ Rotation.from_rotvec(turn_rad).as_matrix().T
    rays = rays / rays[..., 2:]
    near = nearness.repeat(8, axis=0).repeat(8, axis=1)[..., None]
    seen = (rays + near * (way * (1.0 - ahead) - way[2] * (rays - ahead))) @ CAMERA.matrix.T
    earlier = view((0, 0, 0))
    later = cv2.remap(earlier, seen[..., 0].astype(np.float32), seen[..., 1].astype(np.float32),
                      cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    known, unknown = (aligner.align(earlier, later, None, None, [], nearness=told).motion
                      for told in (nearness, None))
    # measured: 0.0003, and 0.0004 without the depth, which is 0.015 if it is taken to be the same
    np.testing.assert_allclose(known, np.concatenate([turn_rad, way]), atol=1e-3)
    np.testing.assert_allclose(unknown[:3], turn_rad, atol=1e-3)
    # how far, in units of the depth, is then a matter of what depth the points have in the mean
    assert unknown[3:] @ way > 0.98 * np.linalg.norm(unknown[3:]) * np.linalg.norm(way)
    np.testing.assert_allclose(unknown[3:], way, atol=0.3 * np.linalg.norm(way))


def test_swapped_images_give_the_inverse(aligner):
    first, second = view((0, 0, 0)), view((0.05, -0.1, 0.08))
    there, back = (aligner.align(*pair, None, None, []).motion[:3]
                   for pair in ((first, second), (second, first)))
    np.testing.assert_allclose(back, -there, atol=3e-3)


def test_change_of_exposure_between_the_images_does_no_harm(aligner):
    turn_rad = (0.05, -0.1, 0.08)
    found = aligner.align(view((0, 0, 0)), 0.5 * view(turn_rad) + 0.2, None, None, [])
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=2e-3)


def test_foreign_object_in_part_of_the_image_does_no_harm(aligner):
    turn_rad = (0.03, -0.06, 0.05)
    later = view(turn_rad)
    later[:, :100] = view(turn_rad, scene(11))[:, :100]
    found = aligner.align(view((0, 0, 0)), later, None, None, [motion((0.02, -0.05, 0.0))])
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=3e-3)


@pytest.mark.parametrize('camera', [0, 1])
def test_of_two_halves_that_move_apart_the_one_counts_that_is_expected(aligner, camera):
    turns_rad = np.array([(0.03, -0.06, 0.05), (0.06, 0.05, -0.02)])
    earlier, later = view((0, 0, 0)), view(turns_rad[0])
    earlier[:, 160:] = view((0, 0, 0), scene(11))[:, 160:]
    later[:, 160:] = view(turns_rad[1], scene(11))[:, 160:]
    expected = [ExpectedMotion(side * motion(turns_rad[camera]), np.eye(6) / 0.02 ** 2)
                for side in (1.2, -1.2)]
    found = aligner.align(earlier, later, None, None, [motion(turn) for turn in turns_rad],
                          expected=expected)
    # measured: 0.0004 and 0.018; the halves are 0.13 apart, and the first one looks more alike
    np.testing.assert_allclose(found.motion[:3], turns_rad[camera], atol=0.025)


def test_images_of_different_places_are_not_alike(aligner):
    found = aligner.align(view((0, 0, 0)), view((0, 0, 0), scene(11)), None, None, [])
    assert found is None or found.similarity < 0.5


def test_sign_of_the_added_blur_does_not_matter():
    blur = np.array([0.03, -0.05, 0.06, 0.004, -0.002, 0.003])
    np.testing.assert_allclose(with_blur(view((0, 0, 0)), CAMERA, blur),
                               with_blur(view((0, 0, 0)), CAMERA, -blur), atol=1e-4)


def test_added_blur_is_that_of_a_turning_camera():
    blur_rad = (0.02, -0.04, 0.05)
    inner = (slice(30, -30), slice(30, -30))  # the camera sees beyond its image's border
    added = with_blur(view((0, 0, 0)), CAMERA, motion(blur_rad))[inner]
    true, sharp = blurred_view((0, 0, 0), blur_rad)[inner], view((0, 0, 0))[inner]
    assert np.abs(added - true).mean() < 0.15 * np.abs(sharp - true).mean()


def test_no_blur_leaves_the_image_alone():
    np.testing.assert_array_equal(with_blur(view((0, 0, 0)), CAMERA, np.zeros(6)),
                                  view((0, 0, 0)))


def test_differently_blurred_images_are_aligned(aligner):
    turn_rad, earlier_blur_rad, later_blur_rad = (0.04, -0.07, 0.05), (0.0, 0.05, 0.0), (
        0.04, 0.0, -0.06)
    pair = blurred_view((0, 0, 0), earlier_blur_rad), blurred_view(turn_rad, later_blur_rad)
    found = aligner.align(*pair, motion(earlier_blur_rad), -motion(later_blur_rad), [])
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=5e-3)


def test_motion_that_is_not_a_number_matches_nothing(aligner):
    turn_rad = (0.02, -0.03, 0.01)
    found = aligner.align(view((0, 0, 0)), view(turn_rad), None, None, [motion((np.nan,) * 3)])
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=3e-3)


def test_pan_of_a_near_wall_is_not_taken_for_a_turn(aligner):
    turn_rad, shift = np.array([0.05, -0.08, 0.06]), np.array([0.008, 0.005, -0.01])
    wall = plane_homography(CAMERA, Rotation.from_rotvec(turn_rad).as_matrix(), shift,
                            np.array([0.0, 0.0, 1.0]))
    wide = view((0, 0, 0))
    later = cv2.warpPerspective(wide, wall, (320, 240),
                                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    found = aligner.align(wide, later, None, None, [])
    # a pan and a sidestep look alike: the prior on the translation decides some milliradians
    np.testing.assert_allclose(found.motion[:3], turn_rad, atol=1e-2)
