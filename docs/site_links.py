"""A hook of mkdocs: links of a page that lead out of docs/, into the repository, are shown as the file's name.

The pages are read in the repository too, where these links work. A site has only the pages.
"""

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.site_links")
REPOSITORY = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """`[words](../file)` becomes `words (file)`; a file that does not exist is a warning, which --strict refuses."""
    folder = (REPOSITORY / "docs" / page.file.src_uri).parent

    def shown(match: re.Match[str]) -> str:
        words, target, _ = match.groups()
        path = (folder / target).resolve()
        if not path.exists():
            log.warning("%s: the link to %s leads nowhere", page.file.src_uri, target)
        name = path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else target
        return f"`{name}`" if words.strip("`/ ") == name.strip("/") else f"{words} (`{name}`)"

    return OUTSIDE.sub(shown, markdown)
