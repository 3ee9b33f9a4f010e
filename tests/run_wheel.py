"""A release as users get it: sdist, the wheel built from it, both checked, the wheel tried in an
environment of its own.

    python tests/run_wheel.py           # make wheel; files stay in dist/

The fresh environment sees this one's packages by a path file, so that nothing is downloaded twice;
the checkout is not on its path, so that a file which the wheel lacks is missed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"

TRIAL = """
import importlib.util, pathlib
import numpy as np
import diinn_fast
from diinn_fast import backends

where = pathlib.Path(diinn_fast.__file__)
assert "site-packages" in where.parts, where
assert not backends.load("cpu").unavailable(), backends.load("cpu").unavailable()
for name in ("py.typed", "kernels/launch.py", "kernels/trig.py", "_cuda/launch.cu"):
    assert (where.parent / name).exists(), name
if importlib.util.find_spec("triton"):
    import diinn_fast.kernels.launch
picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
assert diinn_fast.upscale(picture, scale=2.5).shape == (15, 20, 3)
print("the wheel works:", where.parent)
"""


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    files = sorted(DIST.iterdir())
    wheel = next(path for path in files if path.suffix == ".whl")
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    run(sys.executable, "-m", "check_wheel_contents", wheel)
    with tempfile.TemporaryDirectory() as folder:
        try_out(wheel, Path(folder))


def try_out(wheel: Path, folder: Path) -> None:
    """Install the wheel into an environment in ``folder`` and use it from there."""
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    # Packages of this environment come after those of the fresh one; its own editable
    # installation of diinn_fast is left out, since a path file does not read other path files.
    shared = Path(sysconfig.get_path("purelib"))
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(own.strip()) / "shared.pth").write_text(f"{shared}\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run(python, "-c", TRIAL, cwd=folder, env=environment)
    run(scripts / "diinn-fast", "info", cwd=folder, env=environment)


def run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    print("+", *(word if len(word) < 100 else "..." for word in words), flush=True)
    subprocess.run(words, cwd=cwd, env=env, check=True)


if __name__ == "__main__":
    main()
