"""What the page does in Chromium, with a stand-in for the network that shows the negative.

    python -m tests.run_page [--shots FOLDER] [CASE ...]

Each case opens the page anew, does as a person would, and looks at what is asked for, said and
drawn. That tiles are those of the network, and what other viewers do, is for `run_browser`.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tifffile
import uvicorn

from bench.browser import Browser
from diinn_fast.cli.serve import listen
from diinn_fast.inference import Upscaler
from diinn_fast.serve import Picture, make_app
from diinn_fast.serve.gallery import dropped_view
from diinn_fast.serve.picture import Cut
from tests.helpers.known_models import random_model

WIDTH = 1000
HEIGHT = 640
PATIENCE = 240

SHARP = (
    "performance.getEntriesByType('resource').filter((e) => e.name.includes('default.png')).length"
)
LOADED = "shown && shown.bicubic.getFullyLoaded()"
SETTLED = f"{LOADED} && ['sharp', 'reduced'].includes($('state').textContent)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    parser.add_argument("cases", nargs="*", help="names of cases; default: all")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as address:
        shots = options.shots or Path(folder)
        shots.mkdir(exist_ok=True)
        for name in options.cases or CASES:
            with Browser(WIDTH, HEIGHT) as page:
                try:
                    CASES[name](page, address)
                    assert not page.failed, page.failed
                except Exception:
                    traceback.print_exc()
                    failed.append(name)
                page.screenshot(shots / f"{name}.png")
            print(f"{name}: {'failed' if name in failed else 'as it should be'}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


# -- the server ------------------------------------------------------------------------------------


class StandIn(Picture):
    """The negative of bicubic interpolation, in no time."""

    def sharp(self, cut: Cut) -> np.ndarray:
        samples = self.bicubic(cut)
        colours = samples[..., :-1] if self.alpha else samples
        np.subtract(255, colours, out=colours)
        return samples


def make_pictures(folder: Path) -> dict[str, Path]:
    """One of each kind, by its name."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:600, :900].astype(np.float32)
    smooth = np.stack([x / 900, y / 600, (x + y) / 1500], -1)
    small = smooth[::20, ::20]
    disc = ((x - 450) ** 2 + (y - 300) ** 2 < 250**2)[::20, ::20].astype(np.float32)
    kinds: dict[str, np.ndarray] = {
        "small": small * 255,
        "large": np.kron(smooth, np.ones((2, 2, 1))) * 255,
        "grey": small[..., 0] * 255,
        "clear": np.dstack([np.full_like(small, 200), 128 * disc]),
        "dot": np.full((1, 1, 3), 90),
        "line": np.tile(rng.integers(0, 256, (1, 5000, 1)), (1, 1, 3)),
        "column": np.tile(rng.integers(0, 256, (5000, 1, 1)), (1, 1, 3)),
    }
    paths = {}
    for name, samples in kinds.items():
        paths[name] = folder / f"{name}.png"
        PIL.Image.fromarray(samples.astype(np.uint8)).save(paths[name])
    paths["deep"] = folder / "deep.tif"
    tifffile.imwrite(paths["deep"], (small * 65535).astype(np.uint16), photometric="rgb")
    paths["map"] = folder / "map.tif"
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0)), (33922, "d", 6, (0.0,) * 3 + (5e5, 4e6, 0.0))]
    samples = (small * 255).astype(np.uint8)
    tifffile.imwrite(paths["map"], samples, photometric="rgb", extratags=tags)
    return paths


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of all kinds of pictures."""
    upscaler = Upscaler(random_model(), device="cpu")
    pictures = [StandIn(n, upscaler.open(p)) for n, p in make_pictures(folder).items()]
    opener = partial(dropped_view, upscaler, max_features=1 << 20)
    listening = listen("127.0.0.1", 0)
    app = make_app(pictures, opener=opener)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def shown(page: Browser, address: str, place: str = "") -> None:
    """Open the page, or a link, and wait for all that it asks for."""
    page.open(f"{address}{place}")
    page.wait(
        f"document.readyState === 'complete' && typeof shown !== 'undefined' && {SETTLED}", PATIENCE
    )
    time.sleep(0.5)
    page.wait(SETTLED, PATIENCE)


def press(page: Browser, key: str) -> None:
    code = {"+": "Equal", "-": "Minus", "0": "Digit0"}.get(key, key)
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=code)


def mouse(page: Browser, kind: str, x: float, y: float, **more: Any) -> None:
    page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def colours(page: Browser) -> np.ndarray:
    """What is seen, [rows, columns, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        page.screenshot(Path(folder) / "seen.png")
        return np.asarray(PIL.Image.open(Path(folder) / "seen.png").convert("RGB")).astype(int)


# -- cases -----------------------------------------------------------------------------------------


def whole(page: Browser, address: str) -> None:
    """A picture larger than the screen is reduced: nothing is asked of the network."""
    shown(page, address, "#large,900,600,0.4,0.5")
    assert page.run("$('state').textContent") == "reduced"
    assert page.run(SHARP) == 0


def still(page: Browser, address: str) -> None:
    """Nothing is drawn when nothing happens: the network needs the cores."""
    shown(page, address, "#small,20,15,12,0.5")
    page.run("window.drawn = 0; viewer.addHandler('update-viewport', () => { window.drawn += 1; })")
    time.sleep(2)
    assert page.run("window.drawn") == 0


def halves(page: Browser, address: str) -> None:
    """The network is left of the line, bicubic right of it."""
    shown(page, address, "#grey,22,15,20,0.5")
    seen = colours(page)
    row = seen[page.run("innerHeight") // 2 - 40]
    assert row[450, 0] > 140 and row[550, 0] > 110  # the negative of dark is bright


def transparent(page: Browser, address: str) -> None:
    """What is half transparent is so on both sides of the line: bicubic does not show through."""
    shown(page, address, "#clear,22.5,15,20,0.5")
    page.run("document.body.classList.remove('alpha'); document.body.style.background = '#000'")
    page.run("document.querySelector('main').style.background = '#000'")
    time.sleep(1)
    row = colours(page)[page.run("innerHeight") // 2 - 40]
    assert abs(row[450] - 55 * 128 / 255).max() < 4, row[450]
    assert abs(row[550] - 200 * 128 / 255).max() < 4, row[550]


def keyboard(page: Browser, address: str) -> None:
    """The keys that the buttons name work at once; none turns or mirrors the picture."""
    shown(page, address, "#small,20,15,12,0.5")
    for key, wanted in (("+", 24), ("-", 12)):
        press(page, key)
        page.wait(f"Math.abs(scale() - {wanted}) < 0.1")
    press(page, "ArrowRight")
    page.wait("Math.abs(viewer.viewport.getCenter(true).x * shown.width - 80 / 12 - 20) < 0.2")
    page.run("viewer.canvas.focus()")
    for key in ("r", "f"):
        press(page, key)
    assert page.run("viewer.viewport.getRotation()") == 0
    assert not page.run("viewer.viewport.getFlip()")
    press(page, "0")
    page.wait("Math.abs(viewer.viewport.getCenter(true).x - 0.5) < 0.01")
    page.run("$('split').focus()")
    press(page, "ArrowLeft")
    assert page.run("split") == 0.48
    press(page, "Home")
    assert page.run("split") == 0


def line(page: Browser, address: str) -> None:
    """The line is drawn with the mouse; the wheel zooms on it as elsewhere."""
    shown(page, address, "#small,20,15,8,0.5")
    before = page.run("scale()")
    mouse(page, "mouseWheel", WIDTH // 2, HEIGHT // 2, deltaX=0, deltaY=-120)
    page.wait(f"scale() > 1.1 * {before}")
    mouse(page, "mouseMoved", WIDTH // 2, HEIGHT // 2)
    mouse(page, "mousePressed", WIDTH // 2, HEIGHT // 2, button="left", clickCount=1)
    mouse(page, "mouseMoved", WIDTH // 4, HEIGHT // 2, button="left")
    mouse(page, "mouseReleased", WIDTH // 4, HEIGHT // 2, button="left", clickCount=1)
    assert abs(page.run("split") - 0.25) < 0.01


def links(page: Browser, address: str) -> None:
    """A link leads back to the same place; one that was damaged still shows a picture."""
    shown(page, address, "#map,11.00,7.00,24.00,0.30")
    page.run("remember()")
    assert page.run("location.hash") == "#map,11.00,7.00,24.00,0.30"
    page.run("location.hash = '#deep%2C20.00%2C10.00%2C16.00%2C0.70'")
    page.wait("shown?.name === 'deep' && split === 0.7")
    # Followed, although the end of an earlier movement writes its own place over it.
    page.run("location.hash = '#small,20,15,32,0.4'; remember()")
    page.wait("shown?.name === 'small' && Math.abs(scale() - 32) < 0.1")
    for damaged in ("#%,,,,", "#small,1,1,0,1", "#small,1e300,5,1e300,9"):
        page.open("about:blank")
        shown(page, address, damaged)
        assert 0 < page.run("scale()") < 1000, damaged
    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    page.run("$('link').click()")
    page.wait("$('state').textContent.startsWith('copy the link')")


def download(page: Browser, address: str) -> None:
    """The file has the size that is said, and what is seen."""
    shown(page, address, "#small,20,15,12,0.5")
    for width in ("", "300", "99999"):
        page.run(f"$('width').querySelector('input').value = '{width}'; describe()")
        columns, rows = page.run("$('download').title.match(/\\d+ x \\d+/)[0]").split(" x ")
        with urllib.request.urlopen(page.run("$('download').href")) as answer:
            image = PIL.Image.open(io.BytesIO(answer.read()))
        assert image.size == (int(columns), int(rows))
        assert image.width == 300 or width != "300"
        assert image.width * image.height <= page.run("all.maxArea")


def kinds(page: Browser, address: str) -> None:
    """Every picture is shown whole, chosen from the list, however quickly one follows the other."""
    shown(page, address)
    names = page.run("all.pictures.map((picture) => picture.name)")
    for name in names:
        page.run(f"$('picture').value = '{name}'; $('picture').onchange()")
    page.wait(f"shown?.name === '{names[-1]}' && {SETTLED}", PATIENCE)
    assert page.run("viewer.world.getItemCount()") == 2
    for name in names:
        page.run(f"$('picture').value = '{name}'; $('picture').onchange()")
        page.wait(f"shown?.name === '{name}' && {SETTLED}", PATIENCE)
        for _ in range(3):
            page.run("zoom(4)")
            time.sleep(1)
            page.wait(SETTLED, PATIENCE)


DROP = """
(() => {
  const data = new DataTransfer();
  const file = FILE;
  if (file) data.items.add(file);
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
})()
"""


def dropped(page: Browser, address: str) -> None:
    """What cannot be shown is said in one sentence, and the picture stays."""
    shown(page, address, "#small,20,15,8,0.5")
    said = {
        "null": "drop a file",
        "new File(['no picture'], 'a.txt')": "none of the pictures",
        "new File([new Uint8Array(all.maxFile + 1)], 'a.png')": "at most",
        "new File([], 'a.png')": "empty",
    }
    for file, words in said.items():
        page.run(DROP.replace("FILE", file))
        page.wait(f"$('state').textContent.includes('{words}')")
    assert page.run("shown.name") == "small"
    page.failed = [failure for failure in page.failed if not failure.startswith("415 ")]
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.run(DROP.replace("FILE", "new File(['x'], 'a.png')"))
    page.wait("$('state').textContent.includes('cannot be reached')")


def phone(page: Browser, address: str) -> None:
    """A narrow window has no second scroll, and the picture has most of it."""
    metrics = {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    page.call("Emulation.setDeviceMetricsOverride", **metrics)
    shown(page, address, "#small,20,15,16,0.5")
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.run("document.documentElement.scrollHeight") <= 640
    assert page.run("$('viewer').clientHeight") > 400


def slow(page: Browser, address: str) -> None:
    """On a slow line the picture is there before the viewer."""
    limits = {"latency": 300, "downloadThroughput": 60_000, "uploadThroughput": 60_000}
    page.call("Network.emulateNetworkConditions", offline=False, **limits)
    page.open(address)
    page.wait("document.getElementById('first')?.complete && typeof OpenSeadragon === 'undefined'")
    page.wait(f"typeof shown !== 'undefined' && {SETTLED} && !$('first')", PATIENCE)


CASES: dict[str, Callable[[Browser, str], None]] = {
    case.__name__: case
    for case in (
        whole,
        still,
        halves,
        transparent,
        keyboard,
        line,
        links,
        download,
        kinds,
        dropped,
        phone,
        slow,
    )
}

if __name__ == "__main__":
    main()
