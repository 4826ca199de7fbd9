"""HTML pages from the templates beside this file: everything inlined, everything that comes from data escaped."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, replace_file

TEMPLATES = Path(__file__).with_name("templates")
# Of our pages; the second and the third of those of earlier releases.
_MARKS = (b'<meta name="generator" content="sodp3d">', b": report of sodp3d</title>", b'<output id="episodeName">')


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


def require_page(path: Path) -> None:
    """Raise InputError where a file is in the way that is no page of ours: it is not replaced."""
    if not path.exists():
        return
    content = path.read_bytes() if path.is_file() else b""
    if not any(mark in content for mark in _MARKS):
        raise InputError(
            f"{path}: was not made by sodp3d and is not replaced; move it away, or choose another --output."
        )


def write_page(path: Path, text: str) -> None:
    """Write a page in one step; makes its folder. Raises InputError as `require_page`, and where the disk refuses."""
    require_page(path)
    with disk_errors(path, "no page was written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())


def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())
