"""What is in the source distribution, and in a wheel built from it and not from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from diinn_fast.model import bundled_names

ROOT = Path(__file__).resolve().parents[2]
MADE = (".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache", "demo")


def build(kind: str, project: Path, out: Path) -> Path:
    """The sdist or the wheel of a folder, without compiling the kernels; as in pip's isolated
    build, neither the package nor torch can be imported.
    """
    call = (
        "import sys; sys.modules['diinn_fast'] = sys.modules['torch'] = None; "
        f"from setuptools import build_meta as b; b.build_{kind}({str(out)!r})"
    )
    environment = {**os.environ, "DIINN_FAST_NO_KERNELS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked: all that someone without the repository has."""
    folder = tmp_path_factory.mktemp("distribution")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*MADE))
    with tarfile.open(build("sdist", folder / "checkout", folder)) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("diinn_fast-*/"))


def sources(folder: Path, *patterns: str) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)
    }


@pytest.mark.long
def test_the_source_distribution_builds_tests_and_documents(unpacked: Path) -> None:
    patterns = ["csrc/**/*.h", "csrc/**/*.c*", "docs/*.md", "examples/*", "bench/*.py"]
    patterns += ["tests/**/*.py", "Makefile", "CHANGELOG.md", "requirements.txt"]
    assert sources(ROOT, *patterns) <= sources(unpacked, *patterns)


@pytest.mark.long
def test_a_wheel_from_the_source_distribution_lacks_nothing(unpacked: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path)) as wheel:
        names = set(wheel.namelist())
        kernels = wheel.read("diinn_fast/kernels/__init__.py")
    modules = {f"diinn_fast/{name}" for name in sources(ROOT / "diinn_fast", "**/*.py")}
    triton = {f"diinn_fast/kernels/{name}" for name in sources(ROOT / "kernels", "*.py")}
    cuda = {f"diinn_fast/_cuda/{name}" for name in sources(ROOT / "csrc/cuda", "*.h", "*.cu")}
    models = {f"diinn_fast/weights/{name}/model.safetensors" for name in bundled_names()}
    data = {"diinn_fast/py.typed", *models}
    assert modules | triton | cuda | data <= names
    # the checkout's stand-in, which points at a folder beside the package, must not be shipped
    assert kernels == (ROOT / "kernels/__init__.py").read_bytes()
