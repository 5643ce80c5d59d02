"""
Keyframes of rooms made of triangles: views with depth, and with what stands hidden behind.

Rays are traced by Embree on the CPU (package `embreex`), so that no display, GPU or libGL is
needed. Rendering is done once; `synthesis.keyframes` makes blurred images of the stored views.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from image_as_imu_ros.errors import ConfigError, DataFormatError
from image_as_imu_ros.synthesis.keyframes import LAYERS, OVERSAMPLING, UNCOVERED_PX, Keyframe
from image_as_imu_ros.synthesis.textures import GAMMA, HELD_OUT_ROOM, ROOM_FILE
from image_as_imu_ros.types import CameraIntrinsics

SEED = 30_000_000
WIDTH_PX, HEIGHT_PX = 640, 480
FOCAL_PX = (150.0 * OVERSAMPLING, 520.0 * OVERSAMPLING)
"""Focal lengths of 320 px wide images with fields of view of 94 to 34 deg, oversampled."""
FARTHEST_M = 60.0
"""Triangles that reach farther from the median vertex are ground planes and skies."""
PEEL_M = 0.01
"""The next layer begins so far behind a surface; skips doubled faces."""
EDGE_RATIO = 1.03
"""Neighbouring pixels whose depths differ more than by this factor may uncover something."""
SUPERSAMPLING = 2
"""Rays per pixel and image axis."""
NEAREST_M, TYPICAL_M = 0.3, 0.7
"""Little of a view is nearer than the one, less than half nearer than the other."""
TRIES = 200


@dataclass(frozen=True)
class Lamp:
    """A point light over an ambient one."""

    position_m: np.ndarray
    """(3,) in the world."""
    reach_m: float
    """Distance at which the lamp's light has fallen to a half."""
    ambient: float
    """Share of the light that comes from everywhere, 0 to 1."""


class MeshRoom:
    """
    Textured triangles to look at from anywhere.

    :param vertices_m: (N, 3), world, z up
    :param uv: (N, 2), of the vertices; v up, textures repeat
    :param triangles: (M, 3), indices of vertices
    :param materials: (M,), indices of `textures`
    :param textures: (h, w) float32 each, linear reflectance 0 to 1
    :raises ConfigError: if embreex is not installed
    """

    def __init__(self, vertices_m: np.ndarray, uv: np.ndarray, triangles: np.ndarray,
                 materials: np.ndarray, textures: list[np.ndarray]) -> None:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise ConfigError('rendering rooms needs the package embreex; install it with: '
                              "pip install 'image_as_imu_ros[rooms]'") from error
        from_middle = np.abs(vertices_m - np.median(vertices_m, axis=0)).max(axis=1)
        near = (from_middle[triangles] < FARTHEST_M).all(axis=1)
        triangles, materials = triangles[near], materials[near]
        corners = np.ascontiguousarray(vertices_m[triangles], np.float32)
        self.low_m, self.high_m = (np.percentile(corners.reshape(-1, 3), share, axis=0)
                                   for share in (1, 99))
        self._embree = EmbreeScene()
        TriangleMesh(self._embree, corners)
        self._uv = uv[triangles].astype(np.float32)
        self._material = materials
        self._normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        doubled_area_m2 = np.linalg.norm(self._normal, axis=1, keepdims=True)
        self._normal /= np.maximum(doubled_area_m2, 1e-12)
        self._texels, self._levels = _stack_mipmaps(textures)
        edges = self._uv[:, 1:] - self._uv[:, :1]
        doubled_area_uv = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
        area_px = np.array([texture.size for texture in textures])[materials]
        self._texels_per_m = np.sqrt(doubled_area_uv * area_px
                                     / np.maximum(doubled_area_m2[:, 0], 1e-12))

    @classmethod
    def load(cls, folder: Path) -> MeshRoom:
        """
        Read scene.npz, materials.json and the textures of a folder.

        :raises DataFormatError: if one of them is missing or unreadable
        """
        try:
            with np.load(folder / ROOM_FILE) as mesh:
                arrays = [mesh[key] for key in ('V', 'UV', 'F', 'MAT')]
            materials = json.loads((folder / 'materials.json').read_text())
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise DataFormatError(f'cannot read the room {folder}: {error}') from error
        textures = []
        for material in materials:
            if material['texture'] is None:
                textures.append(np.full((1, 1), np.mean(material['color']), np.float32))
                continue
            path = folder / 'textures' / material['texture']
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            if image is None:
                raise DataFormatError(f'cannot decode the texture {path}')
            textures.append((image.astype(np.float32) / 255.0) ** GAMMA)
        return cls(*arrays, textures)

    def view(self, camera: CameraIntrinsics, rotation_world_camera: np.ndarray,
             position_m: np.ndarray, lamp: Lamp) -> Keyframe:
        """
        Look at the room: what is seen first, and near its edges what stands behind.

        :param rotation_world_camera: (3, 3), axes of the optical frame in the world
        :param position_m: (3,), in the world
        """
        fine = camera.resized(camera.width_px * SUPERSAMPLING, camera.height_px * SUPERSAMPLING)
        shape = fine.height_px, fine.width_px
        x, y = np.meshgrid(np.arange(fine.width_px), np.arange(fine.height_px))
        rays = np.stack([(x - fine.cx_px) / fine.fx_px, (y - fine.cy_px) / fine.fy_px,
                         np.ones(shape)], axis=-1).reshape(-1, 3)
        directions = (rays @ rotation_world_camera.T).astype(np.float32)
        light = np.zeros((LAYERS, *shape), np.float32)
        inverse_depth = np.zeros((LAYERS, *shape), np.float32)
        depth = np.zeros(len(rays), np.float32)
        seen = np.ones(len(rays), bool)
        for layer in range(LAYERS):
            (alive,) = np.nonzero(seen)
            origins = position_m + depth[alive, None] * directions[alive]
            hits = self._embree.run(origins.astype(np.float32), directions[alive], output=1)
            hit = hits['primID'] >= 0
            alive, hits = alive[hit], {key: value[hit] for key, value in hits.items()}
            depth[alive] += hits['tfar']
            seen[:] = False
            seen[alive] = True
            inverse_depth[layer].ravel()[alive] = 1.0 / depth[alive]
            points = position_m + depth[alive, None] * directions[alive]
            light[layer].ravel()[alive] = self._radiance(hits, points, directions[alive],
                                                         depth[alive] / fine.fx_px, lamp)
            depth[alive] += PEEL_M
            if layer == 0:
                seen &= _near_edges(inverse_depth[0]).ravel()
            else:  # where there is nothing, an interpolation should not meet black
                np.copyto(light[layer], light[layer - 1], where=inverse_depth[layer] == 0)
        # a pixel is as near as the nearest thing in it; its light says where the edge is
        rays_of_pixel = (LAYERS, camera.height_px, SUPERSAMPLING, camera.width_px, SUPERSAMPLING)
        return Keyframe(light.reshape(rays_of_pixel).mean(axis=(2, 4)),
                        inverse_depth.reshape(rays_of_pixel).max(axis=(2, 4)), camera)

    def _radiance(self, hits: dict[str, np.ndarray], points_m: np.ndarray,
                  directions: np.ndarray, footprint_m: np.ndarray, lamp: Lamp) -> np.ndarray:
        """Light that surfaces send back along the rays, (N,)."""
        triangle = hits['primID']
        weight = np.stack([1 - hits['u'] - hits['v'], hits['u'], hits['v']], axis=1)
        uv = np.einsum('nk,nkc->nc', weight, self._uv[triangle])
        normal = self._normal[triangle]
        cosine = np.einsum('nc,nc->n', normal, directions)
        # meshes do not agree on which side is the front: it is the one that is seen
        normal = normal * -np.sign(cosine)[:, None]
        slant = np.abs(cosine) / np.linalg.norm(directions, axis=1)
        texels = footprint_m * self._texels_per_m[triangle] / np.sqrt(np.maximum(slant, 0.05))
        albedo = self._look_up(self._material[triangle], uv, texels)

        points_m = points_m + PEEL_M * normal
        to_lamp = lamp.position_m - points_m
        distance_m = np.linalg.norm(to_lamp, axis=1)
        shadow = self._embree.run(points_m.astype(np.float32), to_lamp.astype(np.float32),
                                  output=1)['tfar'] < 1.0
        lit = np.maximum(np.einsum('nc,nc->n', normal, to_lamp) / distance_m, 0) * ~shadow
        lit /= 1 + (distance_m / lamp.reach_m) ** 2
        return albedo * (lamp.ambient + (1 - lamp.ambient) * 2 * lit)

    def _look_up(self, material: np.ndarray, uv: np.ndarray, texels: np.ndarray) -> np.ndarray:
        """Interpolate the textures at the resolution at which they are seen, (N,)."""
        level = np.rint(np.log2(np.maximum(texels, 1.0))).astype(int)
        start, rows, columns = self._levels[
            material, np.minimum(level, self._levels.shape[1] - 1)].T
        x = uv[:, 0] % 1.0 * columns - 0.5
        y = (1.0 - uv[:, 1]) % 1.0 * rows - 0.5
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        value = np.zeros(len(uv), np.float32)
        for right, down in np.ndindex(2, 2):
            texel = start + (top + down) % rows * columns + (left + right) % columns
            value += (np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
                      * self._texels[texel])
        return value


def find_rooms(assets: Path, held_out: bool) -> list[Path]:
    """
    Folders below `assets` that hold a room for training, or the one that is held out.

    :raises DataFormatError: if there is none
    """
    rooms = sorted(path.parent for path in assets.rglob(ROOM_FILE)
                   if (path.parent.name == HELD_OUT_ROOM) == held_out)
    if not rooms:
        raise DataFormatError(f'no scene.npz of a room {"held out" if held_out else "to train on"}'
                              f' below {assets}')
    return rooms


def write_keyframes(folder: Path, assets: Path, images: int, held_out: bool = False) -> None:
    """
    Render random views of the rooms below a folder; those already there are kept.

    View i does not depend on how many are asked for.

    :param held_out: render the room that is kept from training instead
    :raises DataFormatError: if there are no rooms
    """
    paths = find_rooms(assets, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=images, desc='rendering', unit='view') as progress:
        for turn, path in enumerate(paths):
            room = None
            for index in range(turn, images, len(paths)):
                target = folder / f'{index:06d}-{path.name}.npz'
                if not target.exists():
                    room = room or MeshRoom.load(path)
                    rng = np.random.default_rng([SEED, held_out, index])
                    random_view(rng, room).save(target)
                progress.update()


def random_view(rng: np.random.Generator, room: MeshRoom) -> Keyframe:
    """
    Stand somewhere in the room and look about, by the light of a random lamp.

    :raises DataFormatError: if no place shows enough
    """
    for _ in range(TRIES):
        focal_px = float(np.exp(rng.uniform(*np.log(FOCAL_PX))))
        camera = CameraIntrinsics(WIDTH_PX, HEIGHT_PX, focal_px, focal_px, (WIDTH_PX - 1) / 2,
                                  (HEIGHT_PX - 1) / 2)
        position_m = rng.uniform(room.low_m, room.high_m)
        position_m[2] = room.low_m[2] + rng.uniform(0.4, 2.0)
        lamp = Lamp(position_m + rng.normal(0.0, 1.0, 3), float(rng.uniform(1.0, 5.0)),
                    float(rng.uniform(0.2, 0.8)))
        rotation = look(*rng.normal(0.0, (10.0, 0.3, 0.2)))
        glance = camera.resized(WIDTH_PX // 8, HEIGHT_PX // 8)
        if shows_enough(room.view(glance, rotation, position_m, lamp)):
            return room.view(camera, rotation, position_m, lamp)
    raise DataFormatError(f'none of {TRIES} random views shows enough of the room')


def look(yaw_rad: float, pitch_rad: float, roll_rad: float) -> np.ndarray:
    """Axes of the optical frame in the world (z up), (3, 3); all zero looks along world x."""
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return (Rotation.from_euler('z', yaw_rad).as_matrix() @ level
            @ Rotation.from_euler('xz', [pitch_rad, roll_rad]).as_matrix())


def shows_enough(keyframe: Keyframe) -> bool:
    """Whether the view is from free space, onto surfaces with some detail."""
    light, inverse_depth = keyframe.light[0], keyframe.inverse_depth[0]
    if (np.mean(inverse_depth > 1.0 / NEAREST_M) > 0.02 or np.mean(inverse_depth == 0) > 0.02
            or np.median(inverse_depth) > 1.0 / TYPICAL_M):
        return False
    return np.quantile(np.abs(np.diff(light)), 0.85) > 0.05 * light.mean()


def _near_edges(inverse_depth: np.ndarray) -> np.ndarray:
    """Where a moving camera may uncover what is behind, (H, W) bool."""
    window = np.ones((3, 3), np.uint8)
    edges = cv2.dilate(inverse_depth, window) > EDGE_RATIO * cv2.erode(inverse_depth, window)
    square = np.ones(2 * [2 * SUPERSAMPLING * UNCOVERED_PX + 1], np.uint8)
    return cv2.dilate(edges.astype(np.uint8), square) > 0


def _stack_mipmaps(textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """
    Put all textures at all resolutions into one row of texels.

    :returns: that row, float16, and (textures, levels, 3), where each begins, its height, width
    """
    levels = 1 + max(int(np.log2(max(texture.shape))) for texture in textures)
    table = np.zeros((len(textures), levels, 3), np.int64)
    rows, start = [], 0
    for number, texture in enumerate(textures):
        for level in range(levels):
            table[number, level] = start, *texture.shape
            rows.append(texture.astype(np.float16).ravel())
            start += texture.size
            height, width = texture.shape
            texture = cv2.resize(texture, (max(width // 2, 1), max(height // 2, 1)),
                                 interpolation=cv2.INTER_AREA).reshape(max(height // 2, 1), -1)
    return np.concatenate(rows), table
