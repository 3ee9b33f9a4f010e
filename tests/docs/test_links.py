"""Every relative link of the documents leads to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


PAGES = sorted((ROOT / "docs").glob("**/*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_of_the_site_is_in_its_menu_and_links_inside_it(path: Path) -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert f": {path.relative_to(ROOT / 'docs')}\n" in menu
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    local = [(path.parent / link).resolve() for link in links if "://" not in link]
    assert [link for link in local if not link.is_relative_to(ROOT / "docs")] == []


def test_every_variable_of_the_package_is_documented() -> None:
    listed = (ROOT / "docs" / "environment.md").read_text()
    sources = [ROOT / "setup.py", *ROOT.glob("diinn_fast/**/*.py"), *ROOT.glob("kernels/*.py")]
    text = "".join(path.read_text() for path in sources)
    assert {name for name in re.findall(r"DIINN_FAST_[A-Z_]+", text) if name not in listed} == set()
