"""Which drawing backend works here, and this process's one GL context.

PyOpenGL and MuJoCo bind to EGL or OSMesa once per process, so a backend is tried in a process of its own first. What
`auto` found is noted in the environment variable SODP3D_GL, so that worker processes need not try again.

The context is shared by all environments of the process, with one MuJoCo rendering context per distinct model. It never
leaves its process: make environments inside the worker, and start workers by spawn. The GL classes come from mujoco.egl
and mujoco.osmesa directly, so it does not matter when mujoco was imported, or with which MUJOCO_GL.
"""

import atexit
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module

from sodp3d.core.errors import InputError
from sodp3d.vision.simulator import mujoco

logger = logging.getLogger(__name__)

BACKENDS = ("egl", "osmesa", "raycast")
_CHOICE = "SODP3D_GL"
_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}
_MUJOCO_GL = ("", "egl", "osmesa", "glx", "glfw", *"enable enabled on true 1 disable disabled off false 0".split())
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")
_PROBE_SECONDS = 60  # a driver may hang
_PROBE = """
from mujoco.{backend} import GLContext
GLContext._context = None  # its destructor misses it after a failed construction, and its complaint would come last
context = GLContext(64, 64)
context.make_current()
from OpenGL import GL
import sys
sys.stdout.write(GL.glGetString(GL.GL_RENDERER).decode())
sys.stdout.flush()
import os
os._exit(0)
"""


@dataclass(frozen=True)
class Probe:
    """Whether a backend works here: GL_RENDERER where it does, the reason where it does not."""

    backend: str
    renderer: str | None
    failure: str | None

    @property
    def software(self) -> bool:
        """Whether the CPU draws."""
        return self.renderer is not None and any(name in self.renderer.lower() for name in _SOFTWARE)


def probe(backend: str) -> Probe:
    """Try `backend` (egl | osmesa) in a process of its own; takes about a second."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYOPENGL_PLATFORM", "MUJOCO_GL")}
    command = [sys.executable, "-c", _PROBE.format(backend=backend)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, env=variables)
    except subprocess.TimeoutExpired:
        return Probe(backend, None, f"the driver did not answer within {_PROBE_SECONDS} s")
    if result.returncode == 0 and result.stdout:
        return Probe(backend, result.stdout, None)
    errors = [line for line in result.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return Probe(backend, None, errors[-1] if errors else f"the process ended with {result.returncode}")


def advice(backend: str, failure: str) -> str:
    """What to do where `backend` does not work, for the reason `failure`."""
    bound, device = _bound(), os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if bound not in (None, backend):
        named = f"MUJOCO_GL={os.environ['MUJOCO_GL']} has" if os.environ.get("MUJOCO_GL") else "Another package has"
        return f"{named} bound this process to {bound}: unset it, or use render={bound}."
    if backend == "egl" and device is not None and ("EGL_DEVICE_ID" in failure or "invalid literal" in failure):
        return f"MUJOCO_EGL_DEVICE_ID={device} is none of this machine's EGL devices: unset it, or name one that is."
    if backend == "egl" and "device display" in failure:
        return (
            "EGL is there, but can use none of its devices: install the GPU driver's EGL (NVIDIA: libnvidia-gl), let "
            "this user read /dev/dri, or use render=osmesa. render=raycast needs no OpenGL."
        )
    return f"On Debian or Ubuntu: apt-get install -y {_PACKAGES[backend]}. render=raycast needs no OpenGL."


def _bound() -> str | None:
    """The platform that PyOpenGL is bound to in this process; mujoco binds it on import where MUJOCO_GL is set."""
    return os.environ.get("PYOPENGL_PLATFORM") if "OpenGL" in sys.modules else None


def check_variables() -> None:
    """Raises InputError where MUJOCO_GL names nothing, or something else than PYOPENGL_PLATFORM."""
    wanted, platform = (os.environ.get(name, "").strip().lower() for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"))
    if wanted not in _MUJOCO_GL:
        raise InputError(
            f"MUJOCO_GL: expected egl, osmesa or nothing, got {wanted!r}. Unset it, or use render=raycast, which needs "
            "no OpenGL."
        )
    if wanted in _PACKAGES and platform and platform != wanted:
        raise InputError(
            f"MUJOCO_GL asks for {wanted}, but PYOPENGL_PLATFORM for {platform}. Unset one of them, or both: render= "
            "chooses."
        )


def choose(wanted: str) -> str:
    """The backend that `wanted` (auto | egl | osmesa | raycast) means here: `auto` tries them in this order.

    MUJOCO_GL, where set, leaves only its own to try. The choice is logged once,
    with a warning where EGL draws by CPU.
    Raises InputError, saying what to do, where a named GL backend does not work or the variables make no sense.
    """
    if wanted not in ("auto", *BACKENDS):
        raise InputError(f"render: expected one of auto, {', '.join(BACKENDS)}, got {wanted!r}.")
    if wanted == "raycast":
        return wanted
    check_variables()
    if wanted == "auto":
        if _context is not None:
            return _context.backend
        wanted = settle(wanted)
    if wanted != "raycast":
        current(wanted)
    return wanted


def settle(wanted: str) -> str:
    """What `auto` means, decided and said before workers start, so that all of them draw with the same backend.

    Raises InputError where MUJOCO_GL and PYOPENGL_PLATFORM make no sense.
    """
    if wanted != "raycast":
        check_variables()
    if wanted != "auto":
        return wanted
    noted = os.environ.get(_CHOICE)
    return noted if noted in BACKENDS else _choose_automatically()


def _choose_automatically() -> str:
    bound = _bound()
    failures: dict[str, str] = {}
    for backend in [name for name in _PACKAGES if name == bound] or list(_PACKAGES):
        found = probe(backend)
        if found.failure is None:
            because = "".join(f", because {name} does not work ({why})" for name, why in failures.items())
            logger.info("render=auto takes %s (%s)%s.", backend, found.renderer, because)
            if backend == "egl" and found.software:
                logger.warning(
                    "EGL draws in software (%s). On a GPU machine, install its driver's EGL.", found.renderer
                )
            break
        failures[backend] = found.failure
    else:
        told = "; ".join(f"{name}: {why}" for name, why in failures.items())
        what = advice(backend, failures[backend])
        logger.warning("No OpenGL here, so render=auto takes raycast (%s). %s", told, what)
        backend = "raycast"
    os.environ[_CHOICE] = backend
    return backend


def _context_class(backend: str) -> type:
    """MuJoCo's GLContext, with a default for the attribute that its destructor misses after a failed construction."""
    return type("GLContext", (import_module(f"mujoco.{backend}").GLContext,), {"_context": None})


class Context:
    """This process's GL context and its MuJoCo rendering contexts."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._process = os.getpid()
        if _bound() is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)  # what a parent process was bound to does not matter here
        self._gl = _context_class(backend)(640, 480)
        self._gl.make_current()
        self._drawers: dict[str, mujoco.MjrContext] = {}
        atexit.register(self._close)

    def drawer(self, model: mujoco.MjModel, key: str) -> mujoco.MjrContext:
        """The rendering context of `model`, ready to draw; `key` identifies what of the model it holds."""
        if os.getpid() != self._process:
            raise RuntimeError("A GL context does not survive fork(): start workers with the spawn method.")
        self._gl.make_current()
        if key not in self._drawers:
            self._drawers[key] = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            self._drawers[key].readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        drawer = self._drawers[key]
        # Each time: the frame buffer in use belongs to the GL context, and is that of the model drawn last.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawer)
        return drawer

    def _close(self) -> None:
        if os.getpid() == self._process:
            self._gl.make_current()
            for drawer in self._drawers.values():
                drawer.free()
            self._drawers.clear()
            self._gl.free()


_context: Context | None = None


def current(backend: str) -> Context:
    """This process's context, made at first use. Raises InputError where `backend` does not work or is the second."""
    global _context
    if _context is None:
        try:
            _context = Context(backend)
        except Exception as error:  # drivers fail in many ways: missing libraries and symbols, GL and OS errors
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"render={backend} does not work here ({reason}). {advice(backend, reason)}") from error
    elif _context.backend != backend:
        raise InputError(
            f"render={backend}: this process already draws with {_context.backend}; only one GL backend fits in it."
        )
    return _context
