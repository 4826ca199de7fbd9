"""Which versions are at work: of Python, of packages, of the project itself."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from sodp3d.core.paths import CHECKOUT

RECORDED_PACKAGES = (
    "torch",
    "mujoco",
    "gymnasium",
    "gymnasium-robotics",
    "metaworld",
    "open3d",
    "zarr",
    "numpy",
    "sodp3d",
)
NOT_INSTALLED = "not installed"


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of `packages` by name, NOT_INSTALLED for one that is not there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = NOT_INSTALLED
    return found


def git_commit() -> str:
    """The checkout's commit (with `+changes` if the tree differs), or `unknown` where the package is installed."""
    if CHECKOUT is None:
        return "unknown"
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def recorded_versions() -> dict[str, str]:
    """Versions of Python and the packages that shape results, the project's commit, and the command that runs."""
    program, *options = sys.argv
    words = program.split() if program.startswith("sodp3d ") else [program]  # a verb of the `sodp3d` command
    found = package_versions(RECORDED_PACKAGES)
    return found | {"git_commit": git_commit(), "command": shlex.join([*words, *options])}
