"""What a store says of itself: its attributes, checked once when it is opened, so that nobody else needs to.

Required are env, env_config, camera and renderer; of recordings without depth no camera, and of their env_config the
family alone. `episode_values` lists which values a store has of each episode (`absence.py`). Of the others those are
checked that have a form: `conversion` (see `derived.py`), and the provenance `versions`, `rendered_again`, `extracted`
and `prior`, which are objects, or lists of them where merged stores differed.

`prior` is what the agent began with: {"kind": "demonstrations", "episodes"}, which are not in the store, or {"kind":
"scripted", "episodes", "steps"}, the store's own first episodes, up to and including that agent step.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sodp3d.core.errors import InputError
from sodp3d.core.mappings import differences, plain
from sodp3d.data.absence import EPISODE_VALUES, is_recorded
from sodp3d.data.schema import METADATA, Specification, is_key
from sodp3d.envs.config import SUCCESS_METRICS
from sodp3d.vision.camera import POSE, Camera

PRIOR, DEMONSTRATIONS, SCRIPTED = "prior", "demonstrations", "scripted"
IMPORTED = "imported"  # how far an import into the store has come, and what it left out
REQUIRED_ATTRIBUTES = ("env", "env_config", "camera", "renderer")
# What the stored numbers depend on. Crop, points and horizons only matter to later stages.
_RECORDED_CONFIG = ("family", "task", "action_repeat", "episode_steps", "camera")

_NAMED = ("rate", "action_names", "agent_pos_names")  # of recordings: hertz, and what each number is

_ENV_CONFIG: dict[str, type] = {
    **dict.fromkeys(("name", "family", "task", "success_metric", "unet"), str),
    **dict.fromkeys(("action_repeat", "episode_steps", "points", "horizon", "n_obs_steps", "n_action_steps"), int),
    **dict.fromkeys(("camera", "crop"), dict),
    "tasks": list,
}
_CAMERA_CONFIG: dict[str, type] = {"name": str, "position": list, "quaternion": list, "height": int, "width": int}
_CONVERSION: dict[str, type] = {"keys": list, "episodes": int, "parameters": dict, "statistics": dict}
_CHECKED: dict[str, type] = {"episodes": int, "checksums": dict}
_PARAMETERS: dict[str, type] = {"points": int, "height": int, "width": int, "renderer": str, "backend": str}
_RENDERED_AGAIN: dict[str, type] = {"camera": dict, "renderer": str}
_EXTRACTED: dict[str, type] = {"data_hash": str, "episodes": int}
_PRIOR: dict[str, type] = {"kind": str, "episodes": int}
_WORDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


def check_attributes(attributes: Mapping[str, Any], specification: Specification, where: str) -> dict[str, Any]:
    """The attributes, without those that are null.

    Raises InputError naming the first one that is missing or not of its kind. `schema_version` and `specification` are
    read by `schema.read_specification`.
    """
    given = {key: value for key, value in attributes.items() if value is not None}
    _check(given, {"env_config": dict}, where, "", ("env_config",))
    config, recorded = given["env_config"], is_recorded(given)
    seen = () if recorded and "depth" not in specification else ("camera",)
    kinds = {"env": str, "renderer": str, "camera": dict}
    _check(given, kinds, where, "", ("env", "renderer", *seen))
    _check(config, _ENV_CONFIG, where, "env_config.", ("family",) if recorded else _RECORDED_CONFIG)
    _check(config.get("camera") or {}, _CAMERA_CONFIG, where, "env_config.camera.")
    for key in ("action_repeat", "episode_steps"):
        if config.get(key, 1) < 1:
            _refuse(where, f"env_config.{key}", "at least 1", config[key])
    if config.get("success_metric") not in (None, *SUCCESS_METRICS):
        _refuse(where, "env_config.success_metric", f"one of {', '.join(SUCCESS_METRICS)}", config["success_metric"])
    if "camera" in given:
        _check_camera(given["camera"], specification, where)
    names = given.get(EPISODE_VALUES, [])
    if not isinstance(names, list) or not all(name in METADATA for name in names):
        _refuse(where, EPISODE_VALUES, f"a list of some of {', '.join(METADATA)}", names)
    rate = given.get("rate", 1)
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < math.inf:
        _refuse(where, "rate", "a number of control steps a second", rate)
    for versions in _each(given, "versions", where):
        _check(versions, {"command": str, "git_commit": str}, where, "versions.")
    for before in _each(given, "rendered_again", where):
        _check(before, _RENDERED_AGAIN, where, "rendered_again.", tuple(_RENDERED_AGAIN))
        _check(before["camera"], _CAMERA_CONFIG, where, "rendered_again.camera.", ("height", "width"))
    for asked in _each(given, "extracted", where):
        _check(asked, _EXTRACTED, where, "extracted.", tuple(_EXTRACTED))
    for prior in _each(given, PRIOR, where):
        _check(prior, {**_PRIOR, "steps": int}, where, f"{PRIOR}.", tuple(_PRIOR))
    _check_conversions(given, where)
    return given


def _check_camera(values: dict[str, Any], specification: Specification, where: str) -> None:
    try:
        camera = Camera.from_dict(values)
    except InputError as error:
        raise InputError(f"{where}: attribute {error} {_REMEDY}") from error
    if camera.pose is None and "depth" in specification and POSE not in specification:
        _refuse(where, "camera.pose", f"4 x 4 numbers, or data/{POSE} of each step", None)


def each(attribute: Any) -> Iterator[Any]:
    """The values of an attribute of provenance: one, or several where the stores of a merge differed; none of None."""
    if isinstance(attribute, list):
        for value in attribute:
            yield from each(value)
    elif attribute is not None:
        yield attribute


def check_identity(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raises InputError naming the first attribute in which `given` is another environment, camera or renderer.

    Or other values of episodes; or where both tell them another rate, or other names of what was recorded.
    """
    for key in (*REQUIRED_ATTRIBUTES, EPISODE_VALUES, *told_by_both(stored, given)):
        one, other = stored.get(key), plain(given.get(key))
        if key == "env_config" and isinstance(one, dict) and isinstance(other, dict):
            one = {name: one.get(name) for name in _RECORDED_CONFIG}
            other = {name: other.get(name) for name in _RECORDED_CONFIG}
        for name, old, new in differences(one, other, key):
            raise InputError(
                f"{where}: holds data with {name} = {old!r}, but {new!r} came. A store keeps one environment, camera "
                f"and renderer: use the same settings, or write to another folder."
            )


def told_by_both(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Names of the attributes that recordings of one store must share where they are told, and that both tell."""
    return [key for key in _NAMED if key in stored and key in given]


def _each(attributes: Mapping[str, Any], key: str, where: str) -> Iterator[dict[str, Any]]:
    for value in each(attributes.get(key)):
        if not isinstance(value, dict):
            _refuse(where, key, "an object, or a list of objects", value)
        yield value


def _check_conversions(attributes: Mapping[str, Any], where: str) -> None:
    _check(attributes, {"conversion": dict}, where, "")
    for output, state in attributes.get("conversion", {}).items():
        name = f"conversion.{output}"
        if not isinstance(state, dict):
            _refuse(where, name, "an object", state)
        _check(state, _CONVERSION, where, f"{name}.", tuple(_CONVERSION))
        _check(state["parameters"], _PARAMETERS, where, f"{name}.parameters.")
        if output not in state["keys"] or not all(is_key(key) for key in state["keys"]):
            _refuse(where, f"{name}.keys", f"names of arrays, {output} among them", state["keys"])
        _check(state, {"checked": dict}, where, f"{name}.")
        if state.get("checked") is not None:
            checked, keys = state["checked"], tuple(state["keys"])
            _check(checked, _CHECKED, where, f"{name}.checked.", tuple(_CHECKED))
            _check(checked["checksums"], dict.fromkeys(keys, str), where, f"{name}.checked.checksums.", keys)
        if state["episodes"] < 0:
            _refuse(where, f"{name}.episodes", "at least 0", state["episodes"])


def _check(
    values: Mapping[str, Any], kinds: Mapping[str, type], where: str, prefix: str, required: tuple[str, ...] = ()
) -> None:
    """Raises InputError for the first value that is not of its kind, or null although it is required."""
    for key, kind in kinds.items():
        value = values.get(key)
        if value is None and key not in required:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            _refuse(where, f"{prefix}{key}", _WORDS[kind], value)


_REMEDY = "A store cannot do without: give it, or restore .zattrs from a copy."


def _refuse(where: str, name: str, expected: str, value: Any) -> None:
    got = "nothing" if value is None else repr(value)[:80]
    raise InputError(f"{where}: attribute {name}: expected {expected}, got {got}. {_REMEDY}")
