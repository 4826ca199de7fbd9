"""Any option with any value: one message before any work is done, or the work begins. Never a traceback.

SODP3D_FUZZ=<n> tries n lines instead of a few dozen.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sodp3d.collection import collect, convert, pretrain_encoder
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.mappings import flat
from sodp3d.envs.config import task_configs
from sodp3d.learning import evaluating, stages

EXAMPLES = int(os.environ.get("SODP3D_FUZZ", 30))
VALUES = (
    "0", "-1", "1", "2", "1.5", "-0.5", "1e99", "1e400", "100000000000", "inf", "-inf", "nan", "null", "true", "many",
    "''", "[]", "[1,2]", "{}", "{a: 1}", "/nowhere", "cuda:7", "ray:0",
)  # fmt: skip
COMMANDS = ("collect", "convert", "pretrain_encoder", "pretrain", "finetune", "distill", "eval")
FACTS = {
    "state_size": 39, "action_size": 28, "proprioception_size": 24, "simulator_size": 9, "height": 8, "width": 8,
    "renderer": "egl", "camera": {}, "count_threshold": 25,
}  # fmt: skip


class BegunError(Exception):
    """All was checked, and the work would begin."""


def begin(*_: Any, **__: Any) -> NoReturn:
    raise BegunError


class Workers(nullcontext[Any]):
    """Tell the environment's sizes without making one."""

    def __enter__(self) -> "Workers":
        return self

    def call(self, method: str, arguments: Any) -> list[dict[str, Any]]:
        return [FACTS]


@pytest.fixture(autouse=True)
def _no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SODP3D_ROOT", str(tmp_path))
    monkeypatch.setattr("sodp3d.parallel.make_workers", lambda *_, **__: Workers())
    monkeypatch.setattr(collect, "demonstrations", lambda *_: [])
    monkeypatch.setattr("sodp3d.collection.agents.vrl3.VRL3.demonstrate", begin)
    monkeypatch.setattr("sodp3d.collection.agents.vrl3.VRL3.__init__", begin)  # sizes of 1e11 are nobody's mistake here
    monkeypatch.setattr(collect, "open_store", begin)
    monkeypatch.setattr(convert, "convert", begin)
    monkeypatch.setattr(stages, "as_data_was_seen", lambda config, tasks: config)
    for module in (stages, evaluating):
        monkeypatch.setattr(module, "open_stage", begin)
        monkeypatch.setattr(module, "find_planner", begin)
        monkeypatch.setattr(module, "make_rollouts", lambda *_: nullcontext())


def run(command: str, override: str) -> None:
    """What the command does with this one option, up to its first work. Raises BegunError or InputError."""
    if command in stages.STAGES:
        stages.STAGES[command](compose("train", [f"mode={command}", override]))
        return
    config = compose(command, [override])
    if command == "collect":
        collect.collect(config, task_configs(config)[0])
    else:
        module = {"convert": convert, "pretrain_encoder": pretrain_encoder}[command]
        module.main.__wrapped__(config)  # type: ignore[attr-defined]


def names(command: str) -> list[str]:
    return sorted(flat(compose("train" if command in stages.STAGES else command)))


@settings(max_examples=EXAMPLES, deadline=None, derandomize="SODP3D_FUZZ" not in os.environ, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_an_option_is_taken_or_refused_by_one_message(data: st.DataObject) -> None:
    command = data.draw(st.sampled_from(COMMANDS))
    name, value = data.draw(st.sampled_from(names(command))), data.draw(st.sampled_from(VALUES))
    try:
        run(command, f"{name}={value}")
    except BegunError:
        return
    except InputError as error:
        assert "Traceback" not in str(error) and str(error).strip()
        return
    pytest.fail(f"{command} {name}={value} ended without a word")
