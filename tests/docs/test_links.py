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


def test_every_variable_of_the_package_is_documented() -> None:
    listed = (ROOT / "docs" / "environment.md").read_text()
    sources = [ROOT / "setup.py", *ROOT.glob("diinn_fast/**/*.py"), *ROOT.glob("kernels/*.py")]
    text = "".join(path.read_text() for path in sources)
    assert {name for name in re.findall(r"DIINN_FAST_[A-Z_]+", text) if name not in listed} == set()
