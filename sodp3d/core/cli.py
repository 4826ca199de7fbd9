"""How every command starts: Hydra composes the configuration, mistakes become one clear message.

Imports stay light: worker processes import the command's module again.
"""

import difflib
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sodp3d.core import launch, registry
from sodp3d.core.arguments import named, refuse_former, switches_first, told
from sodp3d.core.errors import AlreadyFinishedError, InputError
from sodp3d.core.mappings import flat
from sodp3d.core.paths import CONFIGS
from sodp3d.core.stopping import Stopped, on_signal, stop_at_once

log = logging.getLogger(__name__)
MENDABLE = (InputError, FloatingPointError)  # wrong input, and learning that diverged


def command(
    config_name: str,
    complete: Callable[[list[str]], list[str]] = list,
    words: Sequence[str] = (),
    shared: Callable[[dict[str, Any]], bool] = lambda config: False,
) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[], None]]:
    """Decorator: `function(config)` gets the composed configuration as plain dicts and lists.

    `complete` may add to the command line's arguments. `words` are options that may be given by their values alone, in
    this order. `shared` says whether several processes may do it together.

    Mistakes and signals end it as `exit_status` says; misspelt options name the valid ones. A signal ends a sweep too.
    """

    def decorate(function: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def main() -> None:
            log_to_stderr()
            status = exit_status(lambda: _run(config_name, function, complete, words, shared), shared=True)
            if status:
                sys.exit(status)

        return main

    return decorate


def log_to_stderr() -> None:
    """Show what is logged. Of several processes the main one shows it, and the others only what they alone know."""
    level = logging.INFO if launch.is_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def exit_status(job: Callable[[], None], shared: bool = False) -> int:
    """Do a command's job: 0, or another number after one message on stderr, by the main one of several processes.

    2 where the user can mend what is wrong: wrong input, and learning that diverged. 130 or 143 where SIGINT or SIGTERM
    stopped it, so that no other command goes on with a part of its work. shared: it knows of several processes.
    """
    try:
        with on_signal(stop_at_once):
            launch.require_whole()
            if not shared:
                launch.require_one("this command")
            job()
    except MENDABLE as error:
        _tell(f"error: {error}")
        return 2
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        rest = (
            "this run was finished by then" if stopped.finished else "the same command goes on with what is left to do"
        )
        _tell(f"stopped by {stopped}; {rest}.")
        return 128 + stopped.number
    return 0


def _tell(message: str) -> None:
    if launch.is_main():
        sys.stderr.write(f"{message}\n")


def _run(
    config_name: str,
    function: Callable[[dict[str, Any]], None],
    complete: Callable[[list[str]], list[str]],
    words: Sequence[str],
    shared: Callable[[dict[str, Any]], bool],
) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us whole; we word them
    failures: list[Exception] = []  # raised after Hydra, which would print words of its own before ours
    here = os.getpid()

    def job(composed: DictConfig) -> None:
        config = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(config, dict)
        if failures:  # the rest of a sweep, -m
            return
        sweep, elsewhere = HydraConfig.get().mode is RunMode.MULTIRUN, os.getpid() != here
        if elsewhere:  # a job that Hydra's launcher has sent to another process, or machine
            log_to_stderr()
        try:
            refuse_targets(config)
            if sweep or not shared(config):  # type: ignore[arg-type]
                launch.require_one("a sweep" if sweep else "this command")
            function(config)  # type: ignore[arg-type]
        except AlreadyFinishedError as error:
            if not sweep:
                failures.append(error)
                return
            log.info("%s The sweep goes on.", error)  # as the same command does after a stop
        except MENDABLE as error:
            if elsewhere:  # whence the launcher brings it
                log.error("error: %s", error)
                raise
            failures.append(error)

    refuse_former(sys.argv[1:])
    _find_plugins(sys.argv[1:])
    sys.argv[1:] = switches_first(named(complete(sys.argv[1:]), words))
    if {"-h", "--help"}.intersection(sys.argv):
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        sys.stdout.write(help_text(config_name, overrides, words))
        return
    with _hydra_errors(config_name):
        _check_choices(config_name, sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    if failures:
        raise failures[0]


@contextmanager
def _hydra_errors(config_name: str) -> Iterator[None]:
    """Turn what Hydra says of an option into an InputError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(error, config_name)) from error


def compose(config_name: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """The configuration a command would get, as plain dicts (for tests, notebooks and the API).

    Raises InputError for options that there are not.
    """
    import hydra
    from omegaconf import OmegaConf

    refuse_former(overrides or [])
    _find_plugins(overrides or [])
    with _hydra_errors(config_name), _aside_of_a_command():
        _check_choices(config_name, overrides or [])
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = OmegaConf.to_container(hydra.compose(config_name, overrides or []), resolve=True)
    assert isinstance(composed, dict)
    refuse_targets(composed)
    return composed  # type: ignore[return-value]


@contextmanager
def _aside_of_a_command() -> Iterator[None]:
    """Hydra, of which there is one, as if no command were running."""
    from hydra.core.global_hydra import GlobalHydra

    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


def config_groups(config_name: str) -> dict[str, list[str]]:
    """The groups of a command's configuration, each with its choices: {"env": ["adroit_door", ...], ...}."""
    import yaml

    defaults = yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry if " " not in name]
    folders = list(registry.config_folders())
    return {name: sorted({file.stem for each in folders for file in (each / name).glob("*.yaml")}) for name in names}


def help_text(config_name: str, overrides: list[str], words: Sequence[str] = ()) -> str:
    """What `--help` prints: the groups with their choices, and all options with the values `overrides` give them."""
    program = sys.argv[0] if sys.argv[0].startswith("sodp3d ") else f"python {sys.argv[0]}"
    groups = [f"  {name}={' | '.join(choices)}" for name, choices in config_groups(config_name).items()]
    options = flat(compose(config_name, overrides))
    expected = [*([told(words)] if words else []), *(["[group=choice]"] if groups else []), "[option=value] ..."]
    lines = [
        " ".join(["usage:", program, *expected]),
        *(["", "Groups of options, with their choices:", *groups] if groups else []),
        "",
        "Options, with their values:",
        *(f"  {name}={_shown(value)}" for name, value in options.items()),
        "",
        "--multirun (-m) runs all combinations of comma-separated values, --hydra-help lists Hydra's own options.",
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """A value as it is typed: null, true, [1,2]."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _find_plugins(arguments: list[str]) -> None:
    """Load the plug-ins that are installed or named by `plugins=`, and let Hydra find their configurations.

    Before composing: their names may stand among the choices.
    """
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    named = [argument.partition("=")[2].strip("[]") for argument in arguments if argument.startswith("plugins=")]
    registry.use_plugins(name.strip() for names in named for name in names.split(",") if name.strip())

    class PluginConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in registry.config_folders():
                if folder != CONFIGS:
                    search_path.append("sodp3d-plugins", f"file://{folder}")

    if not any(kind.__name__ == PluginConfigs.__name__ for kind in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(PluginConfigs)


def _check_choices(config_name: str, arguments: Iterable[str]) -> None:
    """Raise InputError for what Hydra would take, and nobody read.

    A group that is given a number, a list or null; an option added with `+` to a section that there is not.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    groups = config_groups(config_name) if given else {}
    for override in OverridesParser.create().parse_overrides(given):
        group = override.key_or_group
        if group in groups and not override.is_sweep_override() and not isinstance(override.value(), str):
            raise InputError(f"{group}: expected one of {', '.join(groups[group])}, got {override.input_line}.")
        section = group.partition(".")[0]
        if (override.is_add() or override.is_force_add()) and section not in {*groups, "hydra"}:
            others = [argument for argument in given if not argument.startswith("+")]
            if section not in (valid := sorted(compose(config_name, others))):
                raise InputError(f"unknown option {group!r}. Valid here: {', '.join(valid)}.")


def refuse_targets(config: Any, where: str = "") -> None:
    """Raise InputError if a configuration holds `_target_`: ours never name code to be run."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_":
                raise InputError(f"{where}{key}: configurations cannot name code to run (got {value!r}); remove it.")
            refuse_targets(value, f"{where}{key}.")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            refuse_targets(value, f"{where}{index}.")


def _explain(error: Exception, config_name: str) -> str:
    """Hydra's message, with the closest valid names where an option was misspelt."""
    message = str(error).strip()
    if unread := getattr(error, "override", None):
        key, _, value = unread.partition("=")
        return f"{unread} cannot be read; a value with signs of Hydra's own needs quotes twice: \"{key}='{value}'\"."
    if choices := getattr(error, "options", None):  # of a group, which has no such one
        group, _, name = str(error.missing_cfg_file).rpartition("/")  # type: ignore[attr-defined]
        return f"{group}: expected one of {', '.join(choices)}, got {name!r}."
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "full_key", None) in (None, ""):
        cause = cause.__cause__
    absent = re.match(r"Could not override '([^'@]+)'", message)  # a group that this command has not
    if cause is None and absent is None:
        return message
    wrong = absent.group(1) if absent else str(cause.full_key)  # type: ignore[union-attr]
    valid = sorted(option_names(compose(config_name)))
    parent = wrong.rpartition(".")[0]
    siblings = [name for name in valid if name.rpartition(".")[0] == parent] or [n for n in valid if "." not in n]
    close = difflib.get_close_matches(wrong, valid, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"unknown option {wrong!r}.{hint} Valid here: {', '.join(siblings)}."


def option_names(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all options, sections included."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from option_names(value, f"{prefix}{key}.")
