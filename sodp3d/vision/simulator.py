"""MuJoCo, whatever the environment says of OpenGL.

On import MuJoCo binds to the OpenGL platform that MUJOCO_GL names, and fails where that does not work here or is none.
What does not draw must not fail with it; whoever draws is told by `gl.choose`.
"""

import logging
import os

__all__ = ["mujoco"]

logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.WARNING)  # a missing extra of PyOpenGL, on every import
try:
    import mujoco
except Exception:  # an unknown name, missing libraries and symbols
    _wanted = os.environ.pop("MUJOCO_GL", None)
    if _wanted is None:
        raise
    try:
        import mujoco
    finally:
        os.environ["MUJOCO_GL"] = _wanted
