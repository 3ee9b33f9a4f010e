"""The page and other viewers in Chromium, as a person uses them.

    python -m tests.run_browser [--shots FOLDER] [--viewers FOLDER]

The page is opened and zoomed to 16 and 64 times the size; each tile that it asked for is compared
with `View.render` bit for bit, and the screen too. A picture is dropped onto it. With --viewers,
a folder with the npm packages `mirador` and `universalviewer` (``npm install``), these open the
picture by IIIF and are zoomed. Nothing that was asked for may fail.
"""

from __future__ import annotations

import argparse
import http.server
import io
import json
import re
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import diinn_fast
from bench.browser import Browser
from bench.first_paint import PICTURE, serving

WIDTH = 1000
HEIGHT = 640
PATIENCE = 400
"""Seconds for the network's tiles of one view, on a busy machine."""

DROP = """
(async () => {
  const canvas = new OffscreenCanvas(60, 40);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#206080";
  pen.fillRect(0, 0, 60, 40);
  const data = new DataTransfer();
  data.items.add(new File([await canvas.convertToBlob()], "sea & sky.png"));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
})()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    parser.add_argument("--viewers", type=Path, help="folder with node_modules of other viewers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shots = options.shots or Path(folder)
        shots.mkdir(exist_ok=True)
        with serving(PICTURE) as address:
            try_page(address, shots)
        if options.viewers:
            with serving(PICTURE, "--cors", "*") as address:
                try_viewers(address, options.viewers, shots)


# -- our page --------------------------------------------------------------------------------------


def try_page(address: str, shots: Path) -> None:
    view = diinn_fast.open(PICTURE, device="cpu")
    with Browser(WIDTH, HEIGHT) as page:
        page.open(address)
        page.wait("typeof shown !== 'undefined' && shown", 60)
        # The middle of the viewer between two pixels: those of the screen are those of render.
        odd = page.run("$('viewer').clientHeight % 2")
        page.resize(WIDTH, HEIGHT + odd)
        for scale in (16, 64):
            # All of the screen by the network, the middle of the picture in its middle.
            page.run(f"location.hash = '#coffee,150,100,{scale},1'")
            page.wait(f"$('scale').textContent.startsWith('\\u00d7{scale}')", 60)
            time.sleep(2)  # the tiles of this view are asked for
            page.wait("$('state').textContent === 'sharp'", PATIENCE)
            page.screenshot(shots / f"page-x{scale}.png")
            differing = compare_screen(page, shots / f"page-x{scale}.png", view, scale)
            print(f"x{scale}: {differing:.3f} grey levels between the screen and render")
            assert differing < 2, differing  # the viewer draws between pixels, half of one at most
        urls = page.run("performance.getEntriesByType('resource').map((e) => e.name)")
        tiles = {url for url in urls if "default.png" in url}
        compare_tiles(tiles, view)
        page.run(DROP)
        page.wait("$('picture').value.startsWith('sea-sky-')", PATIENCE)
        page.wait("shown.name.startsWith('sea-sky-') && shown.bicubic.getFullyLoaded()", PATIENCE)
        page.screenshot(shots / "page-dropped.png")
        print(f"page: {page.answers} answers, {len(tiles)} sharp tiles equal render bit for bit")
        assert not page.failed, page.failed


def compare_tiles(urls: set[str], view: diinn_fast.View) -> None:
    """Every sharp tile is that window of `render`."""
    assert urls
    for url in urls:
        found = re.search(r"@64/(\d+),(\d+),(\d+),(\d+)/(\d+),(\d+)/0/default", url)
        assert found, url
        x, y, w, _, columns, rows = map(int, found.groups())
        scale = 64 * columns // w
        y0 = y * scale // 64
        x0 = x * scale // 64
        size = view.shape[0] * scale, view.shape[1] * scale
        with urllib.request.urlopen(url) as answer:
            tile = np.asarray(PIL.Image.open(io.BytesIO(answer.read())))
        np.testing.assert_array_equal(
            tile, view.render((y0, y0 + rows, x0, x0 + columns), size), err_msg=url
        )


def compare_screen(page: Browser, shot: Path, view: diinn_fast.View, scale: int) -> float:
    """Mean difference of a part of the screen, left of its middle, from `render`."""
    box = page.run(
        "(({ x, y, width, height }) => [x, y, width, height])($('viewer').getBoundingClientRect())"
    )
    middle_x = round(box[0] + box[2] / 2)
    middle_y = round(box[1] + box[3] / 2)
    seen = np.asarray(PIL.Image.open(shot).convert("RGB")).astype(int)
    part = seen[middle_y - 90 : middle_y + 90, middle_x - 300 : middle_x - 20]
    y = 100 * scale
    x = 150 * scale
    size = view.shape[0] * scale, view.shape[1] * scale
    expected = view.render((y - 90, y + 90, x - 300, x - 20), size).astype(int)
    return float(abs(part - expected).mean())


# -- other viewers ---------------------------------------------------------------------------------


def try_viewers(address: str, packages: Path, shots: Path) -> None:
    mirador = packages / "node_modules" / "mirador"
    universal = packages / "node_modules" / "universalviewer"
    with tempfile.TemporaryDirectory() as folder, static(Path(folder)) as own:
        place = Path(folder)
        manifest = f"{own}manifest.json"
        (place / "manifest.json").write_text(
            json.dumps(manifest_of(own, f"{address}iiif/coffee@64"))
        )
        (place / "mirador.min.js").symlink_to((mirador / "dist" / "mirador.min.js").resolve())
        (place / "mirador.html").write_text(MIRADOR.replace("MANIFEST", manifest))
        (place / "uv").symlink_to((universal / "dist").resolve())
        try_viewer("mirador", mirador, f"{own}mirador.html", address, shots)
        try_viewer(
            "universalviewer", universal, f"{own}uv/uv.html#?manifest={manifest}", address, shots
        )


MIRADOR = """<!doctype html><meta charset="utf-8">
<body style="margin:0"><div id="m" style="position:absolute;inset:0"></div>
<script src="mirador.min.js"></script>
<script>Mirador.viewer({ id: "m", windows: [{ manifestId: "MANIFEST" }] });</script>
"""


def try_viewer(name: str, package: Path, url: str, address: str, shots: Path) -> None:
    version = json.loads((package / "package.json").read_text())["version"]
    with Browser(WIDTH, HEIGHT) as page:
        page.open(url)
        tiles = settled(page, address, 1)
        page.screenshot(shots / f"{name}-whole.png")
        # Turn the wheel over the middle until tiles above 100 % are asked for.
        for _ in range(10):
            page.call(
                "Input.dispatchMouseEvent",
                type="mouseWheel",
                x=WIDTH // 2,
                y=HEIGHT // 2,
                deltaX=0,
                deltaY=-240,
            )
            time.sleep(0.3)
        tiles = settled(page, address, tiles + 1)
        page.screenshot(shots / f"{name}-zoomed.png")
        failed = [failure for failure in page.failed if address in failure]
        print(f"{name} {version}: {tiles} tiles, {len(failed)} failed; other: {page.failed}")
        assert not failed, failed


def settled(page: Browser, address: str, least: int) -> int:
    """Tiles that have arrived once no more come for a while."""
    script = (
        f"performance.getEntriesByType('resource').filter((e) => e.name.startsWith('{address}iiif')"
        " && e.responseEnd > 0 && !e.name.endsWith('info.json')).length"
    )
    end = time.monotonic() + PATIENCE
    count = -1
    since = time.monotonic()
    while time.monotonic() < end:
        now = page.run(script)
        if now != count:
            count = now
            since = time.monotonic()
        if count >= least and time.monotonic() - since > 15:
            return count
        time.sleep(0.5)
    raise TimeoutError(f"{count} tiles after {PATIENCE} s, {page.failed}")


def manifest_of(own: str, service: str) -> dict[str, Any]:
    """A IIIF Presentation 3.0 manifest of one picture."""
    with urllib.request.urlopen(f"{service}/info.json") as answer:
        info = json.loads(answer.read())
    size = {"width": info["width"], "height": info["height"]}
    body = {
        "id": f"{service}/full/max/0/default.jpg",
        "type": "Image",
        "format": "image/jpeg",
        **size,
        "service": [{"id": service, "type": "ImageService3", "profile": "level2"}],
    }
    canvas = f"{own}canvas"
    painting = {
        "id": f"{own}painting",
        "type": "Annotation",
        "motivation": "painting",
        "target": canvas,
        "body": body,
    }
    page = {"id": f"{own}page", "type": "AnnotationPage", "items": [painting]}
    return {
        "@context": "http://iiif.io/api/presentation/3/context.json",
        "id": f"{own}manifest.json",
        "type": "Manifest",
        "label": {"en": ["coffee"]},
        "items": [{"id": canvas, "type": "Canvas", **size, "items": [page]}],
    }


@contextmanager
def static(folder: Path) -> Iterator[str]:
    """The address of a server of the files of a folder."""
    handler = partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    main()
