"""The commands and programs of each tutorial run as they are printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile

from diinn_fast.cli import main, serve, view

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
LARGE = {"3840": "64", "1080 1920": "24 32"}
"""Sizes of outputs that would take the tests long, and those taken in their place."""

OTHERS = ("pip", "curl", "mkdir", "ffmpeg")
"""Programs of others, which are not run here."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with small pictures under the names that the tutorials use."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (12, 16, 3), np.uint8)
    deep = random.integers(300, 3000, (12, 16), np.uint16)
    for name in ("photo.jpg", "holiday/summer/beach.jpg", "frames/000001.png", "frames/000002.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rgb).save(name)
    Path("pages").mkdir()
    for name in ("scan.tif", "pages/1.tif", "pages/2.tif"):
        tifffile.imwrite(name, rgb[..., 0], resolution=(300, 300), resolutionunit="inch")
    for name in ("dark.tif", "tile.tif"):
        tifffile.imwrite(name, deep)
    tifffile.imwrite("map.tif", rgb)
    bands = random.integers(0, 256, (12, 16, 5), np.uint8)
    tifffile.imwrite("bands.tif", bands, photometric="minisblack", planarconfig="contig")
    sizes = {"axes": "YX", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
    tifffile.imwrite("cells.ome.tif", deep, metadata=sizes)
    tifffile.imwrite("stack.tif", np.stack([deep, deep + 500]))
    Path("photos").mkdir()
    for n in range(4):
        photo = random.integers(0, 256, (150, 150, 3), np.uint8)
        PIL.Image.fromarray(photo).save(f"photos/{n}.png")
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_printed(
    tutorial: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (serve, view):  # would serve until Ctrl-C
        monkeypatch.setattr(module, "run", lambda options, ready: 0)
    for program, line in _parts(tutorial.read_text()):
        if program:
            exec(compile(program, str(tutorial), "exec"), {})
            continue
        for large, small in LARGE.items():
            line = line.replace(large, small)
        words = shlex.split(line, comments=True)
        if words[0] == "diinn-fast":
            assert _run(words[1:]) == 0, line
        else:
            assert words[0] in OTHERS, line


def _run(words: list[str]) -> int:
    """Exit status of a command. A bound on memory counts the whole process: this one's is not for
    the command alone.
    """
    if "--max-memory" in words:
        return subprocess.run([sys.executable, "-m", "diinn_fast", *words], check=False).returncode
    return main(words)


def _parts(text: str) -> list[tuple[str, str]]:
    """(program, "") of each block in Python and ("", line) of each line of shell, in order."""
    blocks = re.split(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    parts: list[tuple[str, str]] = []
    for n, block in enumerate(blocks):
        if n % 2:
            parts.append((block, ""))
        else:
            parts += [("", line) for line in re.findall(r"^ {4,}(\S.*)$", block, re.MULTILINE)]
    return parts
