"""`sodp3d completion bash|zsh|fish`: a script that lets the shell complete verbs, options and their values.

The script asks `sodp3d completion --line "<command line up to the cursor>"`, which prints one candidate a line; where
there is none the shell offers files. Nothing heavy is imported: an answer takes a fraction of a second.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sodp3d.core import registry
from sodp3d.core.cli import compose, config_groups
from sodp3d.core.errors import InputError
from sodp3d.core.paths import CONFIGS

SCRIPTS = {
    # Bash cuts words at "=", so that candidates must lose what stands before it.
    "bash": """\
_sodp3d() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    local word="${line##* }"
    local found=($(sodp3d completion --line "$line" 2>/dev/null))
    COMPREPLY=("${found[@]#"${word%"${word##*=}"}"}")
    if [[ "${found[0]}" == *[=.] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _sodp3d sodp3d
""",
    "zsh": """\
_sodp3d() {
    local -a found
    found=(${(f)"$(sodp3d completion --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    if (( ${#found} )); then
        compadd -S '' -- $found
    else
        compset -P '*='
        _files
    fi
}
compdef _sodp3d sodp3d
""",
    "fish": """\
function __sodp3d
    set -l found (sodp3d completion --line (commandline --cut-at-cursor --current-process | string collect) 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline --current-token)
    end
end
complete --command sodp3d --no-files --arguments '(__sodp3d)'
""",
}
_FORMAT_AT = {"import": 0, "export": 1}  # which of the words that are no options names a format
HOW = """\
Shell completion is switched on by one line in the shell's start-up file:

  bash   ~/.bashrc                   eval "$(sodp3d completion bash)"
  zsh    ~/.zshrc, after compinit    eval "$(sodp3d completion zsh)"
  fish   ~/.config/fish/config.fish  sodp3d completion fish | source
"""


def candidates(line: str, verbs: Mapping[str, tuple[str, str]]) -> list[str]:
    """What the last word of a command line (up to the cursor) can become; none where only files fit.

    verbs: the command's table of verb to (module, what it does).
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an open quotation mark
        words = line.split()
    last = words.pop() if not line.endswith(" ") and len(words) > 1 else ""
    if len(words) < 2:
        return [verb for verb in (*verbs, "--help", "--version") if verb.startswith(last)]
    verb, given = words[1], words[2:]
    if verb not in verbs:
        return []
    config_name = "train" if verb == "eval" else verb.replace("-", "_")
    found: Iterable[str]
    plain = [word for word in given if "=" not in word and not word.startswith("-")]
    if _FORMAT_AT.get(verb) == len(plain) and "=" not in last:
        found = [*registry.FORMATS, *(registry.EXPORTS if verb == "export" else ())]
    elif (CONFIGS / f"{config_name}.yaml").is_file():
        found = list(_hydra_candidates(config_name, given, last))
    elif last.startswith("-"):
        found = [*_flags(verbs[verb][0]), "--help"]
    else:
        found = [shell for shell in SCRIPTS if verb == "completion" and not given]
    return sorted({word for word in found if word.startswith(last)})


def _hydra_candidates(config_name: str, given: list[str], last: str) -> Iterator[str]:
    """Groups and options as `name=`, sections as `name.`; after the `=` a group's choices, or true and false."""
    groups = config_groups(config_name)
    key, equals, _ = last.partition("=")
    if equals and key in groups:
        yield from (f"{key}={choice}" for choice in groups[key])
        return
    options = dict(_options(_composed(config_name, given)))
    if equals:
        yield from (f"{key}={word}" for word in ("true", "false") if isinstance(options.get(f"{key}="), bool))
        return
    yield from (f"{group}=" for group in groups)
    yield from (name for name in options if name.rstrip(".").count(".") == last.count("."))
    yield from ("--help", "--multirun")


def _composed(config_name: str, given: list[str]) -> dict[str, Any]:
    """The configuration with the options typed so far, or without them where one of them is wrong or unfinished."""
    try:
        return compose(config_name, [word for word in given if not word.startswith("-")])
    except InputError:
        return compose(config_name)


def _options(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names as they are typed (`pretrain.`, `pretrain.steps=`), with their values."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield f"{prefix}{key}.", value
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}=", value


def _flags(module: str) -> list[str]:
    """A verb's `--flags`, read from its source: importing it would take seconds."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return re.findall(r"""add_argument\(\s*["'](--[a-z-]+)["']""", Path(spec.origin).read_text(encoding="utf-8"))


def main(verbs: Mapping[str, tuple[str, str]]) -> int:
    """Command line: print a shell's script, or how to use it. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sodp3d completion",
        description="Print the script that switches completion on.",
        epilog=HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="which shell; none: how to switch it on")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.line is not None:
        sys.stdout.write("".join(f"{word}\n" for word in candidates(given.line, verbs)))
    else:
        sys.stdout.write(SCRIPTS[given.shell] if given.shell else HOW)
    return 0
