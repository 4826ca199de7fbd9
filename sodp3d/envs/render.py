"""Depth and colour images of MuJoCo scenes, by OpenGL (EGL or OSMesa) or by ray casting (no OpenGL needed).

One GL context per process, shared by all environments in it, with one MuJoCo rendering context per distinct model.
Contexts are made at first use and never leave their process: make environments inside the worker, and start workers by
spawn. The GL classes come from mujoco.egl and mujoco.osmesa directly: it does not matter when mujoco was imported.

Depth images show what the simulated robot could touch or must find: geoms of groups 0 to 2 (MuJoCo's default) and the
sites that a task names as its goal; no other sites, tendons or skins.

Resolution: images are rounded to 1 mm (error at most 0.5 mm); the 32-bit reversed z-buffer adds less than 0.01 mm.
"""

import atexit
import hashlib
import logging
import os
import sys
from importlib import import_module
from typing import Any, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from sodp3d.envs.raycast import RayCaster
from sodp3d.errors import InputError

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "egl", "osmesa", "raycast")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")
_HIDDEN_GROUP = 5  # of sites; MuJoCo draws groups 0 to 2
_MILLIMETRES_MAX = 65535
_DEPTH_FLAGS = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)


class GLError(RuntimeError):
    """The OpenGL backend cannot be used here."""


class _GLProcess:
    """This process's GL context and its MuJoCo rendering contexts."""

    def __init__(self, backend: str) -> None:
        try:
            module = import_module(f"mujoco.{backend}")
            self.context = module.GLContext(640, 480)
            self.context.make_current()
            from OpenGL import GL

            self.description = GL.glGetString(GL.GL_RENDERER).decode()
        except Exception as error:  # drivers fail in many ways: missing library, missing symbol, GL and OS errors
            _forget_opengl(backend)
            raise GLError(f"{type(error).__name__}: {error}") from error
        self.name = backend
        self.pid = os.getpid()
        self.drawers: dict[str, mujoco.MjrContext] = {}
        atexit.register(self.close)

    def drawer(self, model: mujoco.MjModel, key: str) -> mujoco.MjrContext:
        """The rendering context of `model`, made current; `key` identifies what of the model it uploads."""
        if os.getpid() != self.pid:
            raise RuntimeError("A GL context does not survive fork(): start workers with the spawn method.")
        self.context.make_current()
        if key not in self.drawers:
            self.drawers[key] = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            self.drawers[key].readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        drawer = self.drawers[key]
        # Each time: the frame buffer in use belongs to the GL context, and is that of the model drawn last.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawer)
        return drawer

    def close(self) -> None:
        if os.getpid() == self.pid:
            self.context.make_current()
            for drawer in self.drawers.values():
                drawer.free()
            self.drawers.clear()
            self.context.free()


def _forget_opengl(backend: str) -> None:
    """Undo a failed import, so that another backend can be tried: PyOpenGL chooses its platform only once."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for name in list(sys.modules):
        if name.split(".")[0] == "OpenGL" or name.startswith(f"mujoco.{backend}"):
            del sys.modules[name]


_process: _GLProcess | None = None
_announced = False


def _open(backend: str) -> _GLProcess:
    global _process
    if _process is None:
        _process = _GLProcess(backend)
    elif _process.name != backend:
        raise InputError(
            f"render={backend}: this process already draws with {_process.name}, and only one GL backend fits in it."
        )
    return _process


def choose_backend(wanted: str) -> str:
    """The backend that `wanted` (auto | egl | osmesa | raycast) means here; `auto` logs its choice once.

    Raises InputError, with what to install, where a named backend does not work on this machine.
    """
    if wanted not in BACKENDS:
        raise InputError(f"render: expected one of {', '.join(BACKENDS)}, got {wanted!r}.")
    if wanted == "raycast":
        return wanted
    if wanted != "auto":
        try:
            _open(wanted)
        except GLError as error:
            raise InputError(f"render={wanted} does not work here ({error}). {advice(wanted)}") from error
        return wanted
    return _choose_automatically()


def _choose_automatically() -> str:
    global _announced
    failures = []
    name = "raycast"
    preferred = os.environ.get("MUJOCO_GL", "").lower()
    for candidate in sorted(("egl", "osmesa"), key=lambda backend: backend != preferred):
        if _process is not None and _process.name != candidate:
            continue
        try:
            _open(candidate)
        except GLError as error:
            failures.append(f"{candidate}: {error}")
            continue
        name = candidate
        break
    if not _announced:
        _announced = True
        logger.info("render=auto takes %s%s", name, f" ({_process.description})" if _process else "")
        if _process is None:
            logger.warning("No OpenGL here, ray casting instead (%s). %s", "; ".join(failures), advice("osmesa"))
        elif is_software() and _process.name == "egl":
            logger.warning("EGL renders in software (%s); a GPU with its driver's EGL would be faster.", gl_renderer())
    return name


def advice(backend: str) -> str:
    """What to do where `backend` does not work."""
    packages = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}[backend]
    return f"On Debian or Ubuntu: apt-get install -y {packages}. Or use render=raycast, which needs no OpenGL."


def gl_renderer() -> str | None:
    """GL_RENDERER of this process's context, or None without one."""
    return _process.description if _process else None


def is_software() -> bool:
    """Whether this process's GL context is drawn by the CPU."""
    return _process is not None and any(name in _process.description.lower() for name in _SOFTWARE)


class _Source(Protocol):
    def metres(self, data: mujoco.MjData, camera: int, height: int, width: int) -> NDArray[np.float64]:
        """(H, W) distance along the optical axis, inf where there is nothing."""


class Renderer:
    """Draws one model. Cheap: what is expensive is shared within the process.

    visible_sites: ids of the sites that depth images show. All other sites are moved to a hidden group of the model.
    """

    def __init__(self, model: mujoco.MjModel, backend: str = "auto", visible_sites: tuple[int, ...] = ()) -> None:
        self.name = choose_backend(backend)
        self._model = model
        self._sites = visible_sites
        self._gl = _GLScene(model, visible_sites) if self.name != "raycast" else None
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

    def __init__(self, model: mujoco.MjModel, visible_sites: tuple[int, ...]) -> None:
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

    def _draw(self, data: mujoco.MjData, camera: int, option: mujoco.MjvOption, height: int, width: int) -> Any:
        assert _process is not None
        drawer = _process.drawer(self._model, self._key)
        if width > drawer.offWidth or height > drawer.offHeight:
            mujoco.mjr_resizeOffscreen(max(width, drawer.offWidth), max(height, drawer.offHeight), drawer)
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, option, None, self._camera, everything, self._scene)
        rectangle = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(rectangle, self._scene, drawer)
        return drawer, rectangle

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
        groups = self._model.site_group.copy()
        self._model.site_group[:] = self._site_groups
        drawer, rectangle = self._draw(data, camera, self._depth_option, height, width)
        self._model.site_group[:] = groups
        buffer = np.empty((height, width), dtype=np.float32)
        mujoco.mjr_readPixels(None, buffer, rectangle, drawer)
        # The z-buffer is reversed: 1 at the near plane, 0 at the far plane and where nothing was drawn.
        near = self._model.vis.map.znear * self._model.stat.extent
        far = self._model.vis.map.zfar * self._model.stat.extent
        reversed_z = buffer[::-1].astype(np.float64)
        distance = near * far / (near + reversed_z * (far - near))
        return np.where(reversed_z > 0, distance, np.inf)


def _fingerprint(model: mujoco.MjModel) -> str:
    """Identifies what a rendering context holds of a model: meshes, textures, height fields, and its settings."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("mesh_vert", "mesh_face", "mesh_normal", "mesh_texcoord", "mesh_graph", "tex_data", "hfield_data"):
        digest.update(np.ascontiguousarray(getattr(model, name)).tobytes())
    quality, mapping = model.vis.quality, model.vis.map
    settings = [quality.numslices, quality.numstacks, quality.numquads, quality.offsamples, quality.shadowsize]
    digest.update(repr([*settings, mapping.znear, mapping.zfar, model.stat.extent, model.nmat]).encode())
    return digest.hexdigest()
