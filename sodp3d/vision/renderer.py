"""Depth and colour images of MuJoCo scenes, by OpenGL (EGL or OSMesa) or by ray casting (no OpenGL needed).

Depth images show what the robot could touch or must find: geoms of groups 0 to 2 (MuJoCo's default) and the sites that
a task names as its goal; no other sites, tendons or skins. Both ways of drawing agree on this.

Resolution: images are rounded to 1 mm (error at most 0.5 mm); the 32-bit reversed z-buffer adds about 0.01 mm
at these distances.
"""

import hashlib
import itertools
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.vision import gl
from sodp3d.vision.raycast import RayCaster
from sodp3d.vision.simulator import mujoco

_HIDDEN_GROUP = 5  # of sites and geoms; MuJoCo draws groups 0 to 2
_MILLIMETRES_MAX = 65535
_DEPTH_FLAGS = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)


class _Source(Protocol):
    def metres(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.float64]:
        """(H, W) distance along the optical axis, inf where there is nothing."""


class Renderer:
    """Draws one model. Cheap: what is expensive is shared within the process.

    backend: auto | egl | osmesa | raycast. visible_sites: ids of the sites that depth images show.
    Raises InputError where the backend does not work here.
    """

    def __init__(self, model: mujoco.MjModel, backend: str = "auto", visible_sites: tuple[int, ...] = ()) -> None:
        self.name = gl.choose(backend)
        self._gl = _GLScene(model, visible_sites, gl.current(self.name)) if self.name != "raycast" else None
        self._source: _Source = self._gl or RayCaster(model, visible_sites)

    def __reduce__(self) -> Any:
        raise TypeError("Renderers stay in their process: make the environment inside the worker.")

    @staticmethod
    def prepare(spec: mujoco.MjSpec) -> None:
        """Set what must be known before a model is compiled: a modest frame buffer, and no anti-aliasing.

        Anti-aliasing would mix the depths of two surfaces along every outline.
        """
        spec.visual.global_.offwidth, spec.visual.global_.offheight = 640, 480
        spec.visual.quality.offsamples = 0

    def depth(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.uint16]:
        """(H, W) uint16 millimetres along the optical axis, 0 where nothing is within 65.535 m; row 0 is the top."""
        millimetres = np.rint(self._source.metres(data, camera, height, width) * 1000)
        return np.where(millimetres <= _MILLIMETRES_MAX, millimetres, 0).astype(np.uint16)

    def rgb(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8; row 0 is the top. Ray casting has no colours: it gives the depth as shades of grey."""
        if self._gl is not None:
            return self._gl.rgb(data, camera, height, width)
        metres = self._source.metres(data, camera, height, width)
        seen = np.isfinite(metres)
        near, far = (metres[seen].min(), metres[seen].max()) if seen.any() else (0.0, 1.0)
        shade = np.where(seen, 255 - 215 * (metres - near) / max(far - near, 1e-9), 0)
        return np.repeat(shade.astype(np.uint8)[..., None], 3, axis=-1)


class _GLScene:
    """OpenGL drawing of one model."""

    def __init__(self, model: mujoco.MjModel, visible_sites: tuple[int, ...], context: gl.Context) -> None:
        self._context = context
        self._model = model
        self._key = _fingerprint(model)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._depth_option = mujoco.MjvOption()
        for flag in (mujoco.mjtVisFlag.mjVIS_TENDON, mujoco.mjtVisFlag.mjVIS_SKIN, mujoco.mjtVisFlag.mjVIS_ACTUATOR):
            self._depth_option.flags[flag] = False
        self._colour_option = mujoco.MjvOption()
        self._site_groups = np.full(model.nsite, _HIDDEN_GROUP, dtype=np.int32)
        self._site_groups[list(visible_sites)] = 0
        self._lights = self._scene.flags.copy()
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        self._corners = model.geom_aabb[:, None, :3] + model.geom_aabb[:, None, 3:] * signs  # (G, 8, 3), geoms' frames

    def _draw(self, data: mujoco.MjData, camera: int, option: mujoco.MjvOption, height: int, width: int) -> Any:
        drawer = self._context.drawer(self._model, self._key)
        if width > drawer.offWidth or height > drawer.offHeight:
            self._enlarge(drawer, height, width)
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, option, None, self._camera, everything, self._scene)
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, drawer)
        return drawer, rectangle

    def _enlarge(self, drawer: mujoco.MjrContext, height: int, width: int) -> None:
        try:
            mujoco.mjr_resizeOffscreen(max(width, drawer.offWidth), max(height, drawer.offHeight), drawer)
            reason = None
        except mujoco.FatalError as error:
            reason = str(error)
        if reason or drawer.offWidth < width or drawer.offHeight < height:
            raise InputError(
                f"env.camera.height, env.camera.width: {self._context.backend} cannot draw {height} x {width} pixels "
                f"here ({reason or f'at most {drawer.offHeight} x {drawer.offWidth}'}). Ask for fewer, or use "
                "render=raycast."
            )

    def rgb(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.uint8]:
        self._scene.flags[:] = self._lights
        drawer, rectangle = self._draw(data, camera, self._colour_option, height, width)
        image = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, rectangle, drawer)
        return image[::-1].copy()

    def metres(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.float64]:
        # Drawing ids instead of colours leaves out lights, shadows, reflections, textures and transparency.
        # Back faces are drawn too: some meshes are wound the wrong way round and would have holes.
        self._scene.flags[:] = 0
        for flag in _DEPTH_FLAGS:
            self._scene.flags[int(flag)] = 1
        model = self._model
        sites, geoms = model.site_group.copy(), model.geom_group.copy()
        model.site_group[:] = self._site_groups
        # A software renderer spends most of its time on vertices: of Meta-World's, half lie outside the picture.
        model.geom_group[self._out_of_view(data, camera, width / height)] = _HIDDEN_GROUP
        drawer, rectangle = self._draw(data, camera, self._depth_option, height, width)
        model.site_group[:], model.geom_group[:] = sites, geoms
        buffer = np.empty((height, width), dtype=np.float32)
        mujoco.mjr_readPixels(None, buffer, rectangle, drawer)
        # The z-buffer is reversed: 1 at the near plane, 0 at the far plane and where nothing was drawn.
        near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
        reversed_z = buffer[::-1].astype(np.float64)
        distance = near * far / (near + reversed_z * (far - near))
        return np.where(reversed_z > 0, distance, np.inf)

    def _out_of_view(self, data: mujoco.MjData, camera: int, aspect: float) -> NDArray[np.bool_]:
        """(G,) geoms whose bounding box lies beyond one side of what the camera sees; never a plane, which has none."""
        model, rotation = self._model, data.cam_xmat[camera].reshape(3, 3)
        corners = self._corners @ data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1) + data.geom_xpos[:, None]
        right, up, backward = np.moveaxis((corners - data.cam_xpos[camera]) @ rotation, -1, 0)
        highest = -backward * np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
        widest = highest * aspect
        beyond = np.stack([right > widest, right < -widest, up > highest, up < -highest])
        return beyond.all(axis=-1).any(axis=0) & (model.geom_rbound > 0)


def _fingerprint(model: mujoco.MjModel) -> str:
    """Identifies what a rendering context holds of a model: meshes, textures, height fields, and its settings."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("mesh_vert", "mesh_face", "mesh_normal", "mesh_texcoord", "mesh_graph", "tex_data", "hfield_data"):
        digest.update(np.ascontiguousarray(getattr(model, name)).tobytes())
    quality, mapping = model.vis.quality, model.vis.map
    settings = [quality.numslices, quality.numstacks, quality.numquads, quality.offsamples, quality.shadowsize]
    digest.update(repr([*settings, mapping.znear, mapping.zfar, model.stat.extent, model.nmat]).encode())
    return digest.hexdigest()
