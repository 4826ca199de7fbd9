"""The `sodp3d` command: its verbs, help, exit codes and shell completion."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sodp3d.__main__ import VERBS, main
from sodp3d.core import paths
from sodp3d.core.registry import FORMATS
from sodp3d.tools.completion import SCRIPTS, candidates


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and all that `sodp3d <words>` prints."""
    monkeypatch.setattr("sys.argv", ["sodp3d", *words])
    try:
        main()
        code = 0
    except SystemExit as stopped:
        assert stopped.code is None or isinstance(stopped.code, int)
        code = stopped.code or 0
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_every_verb_has_a_module_and_a_line_of_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = say(monkeypatch, capsys)
    assert code == 0 and text == say(monkeypatch, capsys, "--help")[1]
    for verb, (module, does) in VERBS.items():
        assert find_spec(module) is not None and f"  {verb} " in text and does in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    code, text = say(monkeypatch, capsys, verb, "--help")
    assert code == 0 and text.startswith(f"usage: sodp3d {verb} ") and "python -m" not in text


def test_help_shows_the_options_as_given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = say(monkeypatch, capsys, "eval", "env=mt10", "evaluation.episodes=7", "--help")[1]
    assert "  env=adroit_door | adroit_hammer |" in text and "  env.tasks=[reach, push," in text
    assert "  mode=eval\n" in text and "  evaluation.episodes=7\n" in text and "  planner=null\n" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["colect"], "has no verb 'colect'"),
        (["convert", "env.pointz=3"], "Did you mean env.points"),
        (["convert", "root=nowhere"], "no store at"),
        (["card", "nowhere"], "no episode store"),
        (["merge", "only-one"], "required: shards"),
        (["import", "folder", "nowhere", "data/new"], "nowhere: no folder there"),
        (["export", "nowhere", "folder", "out"], "no episode store here"),
        (["summary", "adroit_pen"], "nothing of adroit_pen"),
        (["report", "adroit_pin"], "nothing of adroit_pin"),
        (["eval", "mode=pretrain"], "use: sodp3d train mode=pretrain"),
        (["convert", "data=nowhere"], "data=nowhere"),
        (["collect", "run_dir=here"], "unknown option 'run_dir'"),
        (["replay", "env=adroit_door", "data=nowhere"], "unknown option 'env'"),
        (["completion", "tcsh"], "invalid choice"),
    ],
)
def test_mistakes_end_with_2_and_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = say(monkeypatch, capsys, *words)
    assert code == 2 and told in text and "Traceback" not in text


def test_messages_name_the_command_that_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["convert.py"])
    assert paths.command_line("collect", "env=toy") == "python data_collection/collect.py env=toy"
    assert paths.command_line("card", "data/a b") == "sodp3d card 'data/a b'"
    monkeypatch.setattr("sys.argv", ["sodp3d convert"])
    assert paths.command_line("collect", "env=toy") == "sodp3d collect env=toy"
    monkeypatch.setattr("sys.argv", ["notebook"])
    monkeypatch.setattr(paths, "CHECKOUT", None)
    assert paths.command_line("collect", "env=toy") == "sodp3d collect env=toy"
    monkeypatch.setattr("sys.argv", ["sodp3d train", "root=/my files", "env=toy"])
    assert paths.command_line("collect", "env=toy") == "sodp3d collect env=toy 'root=/my files'"
    assert paths.command_line("card", "data/a") == "sodp3d card data/a", "which takes none"


def test_a_suggested_command_makes_what_fits_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = "mode=pretrain preset=quick env=metaworld env.task=reach env.points=64 env.crop.low=[0,0,0] seed=3".split()
    monkeypatch.setattr("sys.argv", ["sodp3d train", *typed])
    made = paths.command_line("convert", "env=metaworld", "env.task=reach")
    assert made == "sodp3d convert env=metaworld env.task=reach preset=quick env.points=64 'env.crop.low=[0,0,0]'"
    assert "data=<new folder>" in paths.command_line("collect", "data=<new folder>"), "a reader fills it in"
    assert paths.command_line("card", "data/<x;y>") == "sodp3d card 'data/<x;y>'"
    assert "env.points=128" in paths.command_line("convert", "env.points=128", "again=clouds")
    assert "env.points=64" not in paths.command_line("convert", "env.points=128", "again=clouds")
    assert paths.command_line("replay", "run=x") == "sodp3d replay run=x", "which knows no sizes"


def test_data_and_outputs_lie_under_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SODP3D_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert paths.data_root() == tmp_path / "data" and paths.outputs_root({"root": None}) == tmp_path / "outputs"
    monkeypatch.setenv("SODP3D_ROOT", str(tmp_path / "named"))
    assert paths.data_root() == tmp_path / "named/data"
    assert paths.data_root({"root": tmp_path / "given"}) == tmp_path / "given/data"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sodp3d rep", ["replay", "report"]),
        ("sodp3d train env=adroit_d", ["env=adroit_door"]),
        ("sodp3d train env=metaworld env.ta", ["env.task=", "env.tasks="]),
        ("sodp3d train pretrain.st", ["pretrain.state_weight=", "pretrain.steps="]),
        ("sodp3d train pre", ["preset=", "pretrain."]),
        ("sodp3d train pretrain.compile=", ["pretrain.compile=false", "pretrain.compile=true"]),
        ("sodp3d eval env=nonsense obs=", ["obs=image", "obs=pointcloud", "obs=state"]),
        ("sodp3d train 'root=a b' --mul", ["--multirun"]),
        ("sodp3d pretrain-encoder imag", ["images="]),
        ("sodp3d extract --q", ["--quality"]),
        ("sodp3d import ", sorted(FORMATS)),
        ("sodp3d export data/cup le", ["lerobot"]),
        ("sodp3d export data/cup lerobot out ra", ["rate="]),
        ("sodp3d import folder rec da", []),
        ("sodp3d import folder rec data/new skip_bad=", ["skip_bad=false", "skip_bad=true"]),
        ("sodp3d completion ", sorted(SCRIPTS)),
        ("sodp3d train root=da", []),  # the shell offers files
        ("sodp3d card da", []),
        ("sodp3d nonsense ", []),
    ],
)
def test_completion_offers_what_is_valid(line: str, expected: list[str]) -> None:
    assert candidates(line, VERBS) == expected


def test_completion_offers_every_verb() -> None:
    assert set(VERBS) <= set(candidates("sodp3d ", VERBS))


@pytest.mark.parametrize(
    ("line", "expected"),
    [("sodp3d con", "convert"), ("sodp3d train env=adroit_p", "adroit_pen"), ("sodp3d train algorithm=dp", "dppo")],
)
def test_bash_completes(tmp_path: Path, line: str, expected: str) -> None:
    """As bash itself does it: words are cut at `=`, so that only what stands behind it is replaced."""
    command = tmp_path / "sodp3d"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sodp3d "$@"\n')
    command.chmod(0o755)
    script = f"""
        eval "$(sodp3d completion bash)"
        complete -p sodp3d >&2
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_CWORD=1 COMP_WORDS=(sodp3d {line.split()[-1]})
        _sodp3d
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    around = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(paths.CHECKOUT)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100, env=around, check=True)
    assert done.stdout.split() == [expected], done.stderr
    assert "-F _sodp3d sodp3d" in done.stderr


def test_python_m_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sodp3d", "train", "pretrain.stepz=1"]
    around = {**os.environ, "PYTHONPATH": str(paths.CHECKOUT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=around)
    assert done.returncode == 2 and "Did you mean pretrain.steps" in done.stderr
    assert list(tmp_path.iterdir()) == []
