"""Sections of a configuration as frozen dataclasses: pydantic checks types and bounds, mistakes become one InputError.

@section("pretrain")
class PretrainSettings:
    steps: Count = 3000               # identity: another value makes another run
    log_every: Count = resource(default=20)   # resource: a run continues with another value

PretrainSettings(steps="many")   # pretrain.steps: expected a whole number of at least 1, got 'many'.
"""

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic.dataclasses
from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationError

from sodp3d.core.errors import InputError

T = TypeVar("T")
_RESOURCE = "resource"
_MOST = 10**15  # of a whole number: sums of such seeds and steps fit into 64 bits


@dataclass(frozen=True)
class Expected:
    """What a message says that a field expects; stands among the field's annotations."""

    words: str


def _whole(value: Any) -> Any:
    """1e6, as people write counts, is a float that is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = Annotated[int, BeforeValidator(_whole), Strict(), Field(ge=-_MOST), Field(le=_MOST)]
_Real = Annotated[float, Strict()]  # whole numbers too; neither bools nor words
Whole = Annotated[_Whole, Expected("a whole number")]
Count = Annotated[_Whole, Field(ge=1), Expected("a whole number of at least 1")]
Several = Annotated[_Whole, Field(ge=2), Expected("a whole number of at least 2")]
Natural = Annotated[_Whole, Field(ge=0), Expected("a whole number of at least 0")]
NotNegative = Annotated[_Real, Field(ge=0), Expected("a number of at least 0")]
Positive = Annotated[_Real, Field(gt=0), Expected("a number above 0")]
Share = Annotated[_Real, Field(gt=0), Field(le=1), Expected("a share above 0, up to 1")]
Fraction = Annotated[_Real, Field(ge=0), Field(le=1), Expected("a number from 0 to 1")]
Flag = Annotated[bool, Strict(), Expected("true or false")]
Text = Annotated[str, Strict(), Expected("a text")]
Name = Annotated[str, Strict(), Field(min_length=1), Expected("a text that is not empty")]


def resource(*, default: Any) -> Any:
    """A field that does not decide which run it is: threads, how often to log, where to look."""
    return field(default=default, metadata={_RESOURCE: True})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, resource))
def section(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen dataclass of keywords that raises InputError, with keys under `name.`."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def decorate(kind: type[T]) -> type[T]:
        made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(kind)
        validated = made.__init__

        @functools.wraps(validated)
        def initialize(self: Any, **values: Any) -> None:
            try:
                validated(self, **values)
            except ValidationError as error:
                raise InputError(_message(error, made, name)) from None

        made.__init__ = initialize
        made.section = name
        return made

    return decorate


def read_section(kind: type[T], values: Any) -> T:
    """The section of a composed configuration. Raises InputError naming what is wrong in it."""
    if not isinstance(values, dict):
        raise InputError(f"{kind.section}: expected a section of options, got {values!r}.")  # type: ignore[attr-defined]
    return kind(**values)


def read_keys(kind: type[T], config: Mapping[str, Any]) -> T:
    """A section whose keys stand at the top of a composed configuration, among others. Raises InputError as above."""
    names = (item.name for item in fields(kind))  # type: ignore[arg-type]
    return kind(**{name: config[name] for name in names if name in config})


def resource_names(kind: Any, prefix: str = "") -> Iterator[str]:
    """Names of the fields declared by `resource`, those of sections inside with a dot."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        if item.metadata.get(_RESOURCE):
            yield f"{prefix}{item.name}"
        elif is_dataclass(hints[item.name]):
            yield from resource_names(hints[item.name], f"{prefix}{item.name}.")


def _message(error: ValidationError, kind: Any, name: str) -> str:
    """Each wrong key once, a line each."""
    lines: dict[str, str] = {}
    for found in error.errors():
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # of a check across several fields
            lines.setdefault(str(cause), str(cause))
            continue
        key, hint, known = _field(kind, name, found["loc"])
        if known is not None:
            problem = f"{key}: unknown key {found['loc'][-1]!r}; valid keys are {', '.join(known)}."
        else:
            beyond = found["type"] == "less_than_equal" and found["ctx"]["le"] == _MOST
            problem = f"{key}: expected {_words(hint)}{' and at most 1e15' * beyond}, got {found['input']!r}."
        lines.setdefault(key, problem)
    return "\n".join(lines.values())


def _field(kind: Any, name: str, location: tuple[int | str, ...]) -> tuple[str, Any, list[str] | None]:
    """Dotted key and annotation of what `location` leads to; and the valid keys where it leads to none."""
    key, hint = name, kind
    for part in location:
        if not is_dataclass(hint):
            break  # inside a value: which of a union's kinds it failed to be
        hints = get_type_hints(hint, include_extras=True)
        if part not in hints:
            return key, hint, [item.name for item in fields(hint)]
        key, hint = f"{key}.{part}" if key else str(part), hints[part]
    return key, hint, None


def _words(hint: Any) -> str:
    """What a field of this annotation expects."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        own = [extra.words for extra in arguments[1:] if isinstance(extra, Expected)]
        return own[-1] if own else _words(arguments[0])
    if origin is Literal:
        values = [str(value) for value in arguments]
        return " or ".join(values) if len(values) < 3 else f"one of {', '.join(values)}"
    if origin in (Union, types.UnionType):
        told = [_words(argument) for argument in arguments if argument is not type(None)]
        return ", or ".join([*told, "null"] if type(None) in arguments else told)
    return "a section of options" if is_dataclass(hint) else str(getattr(hint, "__name__", hint))
