"""What the pages say exists: links, verbs, public names; and the README stays one page."""

import re
from pathlib import Path

import pytest

import sodp3d
from sodp3d.__main__ import VERBS
from sodp3d.core.paths import CHECKOUT

assert CHECKOUT is not None
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
SHELL = re.compile(r"```bash\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [target for target in LINK.findall(text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shell_blocks_can_be_pasted(page: Path) -> None:
    for block in SHELL.findall(page.read_text()):
        commands = [line.split(" # ")[0] for line in block.splitlines()]
        assert not [line for line in commands if " | " in line], (
            f"{page.name}: an alternative that the shell takes as a pipe"
        )


def test_the_readme_is_one_page() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 90


def test_the_usage_page_has_every_verb() -> None:
    text = (CHECKOUT / "docs" / "usage.md").read_text()
    assert not [verb for verb in VERBS if f"`sodp3d {verb}`" not in text]


def test_the_reference_has_every_public_name() -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: sodp3d\.(\w+)$", text, re.MULTILINE)) == sorted(sodp3d.__all__)
