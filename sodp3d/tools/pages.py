"""HTML pages from the templates beside this file: everything inlined, everything that comes from data escaped."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from sodp3d.core.errors import InputError
from sodp3d.core.files import replace_file

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The text of `templates/<template>` with `values` in it.

    Values are escaped, and `value|tojson` writes `<`, `>` and `&` as `\\u003c` and the like, so that no value can end a
    script element. Templates have `asset(name)`, the text of another file in the folder, and `plotly()`, plotly.js.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "sort_keys": True}
    environment.globals |= {"asset": _asset, "plotly": _plotly}
    return environment.get_template(template).render(values)


def write_page(path: Path, text: str) -> None:
    """Write a page in one step; makes its folder. Raises InputError where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error}).") from error


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
