"""The arguments of a command line, before Hydra reads them: former options, words without names, switches."""

import re
from collections.abc import Iterable, Sequence

from sodp3d.core.errors import InputError

# Options of earlier releases, with what is typed now; "": nothing.
FORMER = {
    "reg": {
        "bc": "algorithm=sodp, the default (algorithm=sodp_chunk is what it was)",
        "none": "algorithm=sodp_none",
        "kl": "algorithm=sodp_kl",
        "pl": "algorithm=sodp_pl",
    },
    "updates": {"few": "algorithm=sodp_gae", "many": ""},
    "start": {"scratch": "algorithm=sodp_scratch", "pretrained": ""},
}


def refuse_former(arguments: Iterable[str]) -> None:
    """Raise InputError for options of an earlier release, naming today's."""
    found = []
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        if key in FORMER and equals and not value.startswith("{"):  # reg={name: kl} is a section
            now = FORMER[key].get(value, "algorithm=<name>, which configs/algorithm/<name>.yaml makes")
            found.append(f"{argument} is of an earlier release, {f'use {now}' if now else 'leave it out'}")
    if len(found) > 1:
        found.append("an algorithm is one choice: take the nearest, and set reg.name, reg.weight or finetune.<key>")
    if found:
        raise InputError(f"algorithm: {'; '.join(found)}.")


def switches_first(arguments: list[str]) -> list[str]:
    """A command line's arguments, with `-m` before the options, as argparse wants it, wherever it was typed."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def named(arguments: list[str], words: Sequence[str]) -> list[str]:
    """A command line's arguments, with those that are no options as the values of the options `words`, in this order.

    Raises InputError where there are more. A command without words leaves its arguments to Hydra.
    """
    if not words:
        return arguments
    left, completed = list(words), list[str]()
    for argument in arguments:
        if argument.startswith("-") or re.match(r"[+~]{0,2}[A-Za-z_][\w.]*=", argument):
            completed.append(argument)
            continue
        if not left:
            raise InputError(f"expected {told(words)} and options as name=value, got {argument!r} beside.")
        escaped = argument.replace("'", "\\'")
        completed.append(f"{left.pop(0)}='{escaped}'")
    return completed


def told(words: Sequence[str]) -> str:
    """How a usage line names them."""
    return " ".join(f"<{word}>" for word in words)
