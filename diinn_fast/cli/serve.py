"""``diinn-fast serve``: pictures in a browser, zoomed without end."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from diinn_fast.cli.common import Refused, make_parser
from diinn_fast.inference import Upscaler
from diinn_fast.inference.memory import parse_size

LOCAL = "127.0.0.1"

EXAMPLE = """\
  diinn-fast serve photo.jpg
  diinn-fast serve scan.tif map.tif --port 9000 --cors '*'
"""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        import uvicorn

        from diinn_fast.serve import Picture, make_app
    except ImportError as error:
        raise Refused(f"{error.name} is missing: pip install 'diinn_fast[serve]'") from None
    upscaler = Upscaler(options.weights, device=options.device)
    # Features of all pictures together stay within the bound.
    features = parse_size(options.max_features) // len(options.pictures)
    pictures = [
        Picture(name, path, upscaler.model, device=options.device, max_features=features)
        for name, path in zip(names(options.pictures), options.pictures, strict=True)
    ]
    everywhere = options.host != LOCAL
    app = make_app(
        pictures,
        max_cache=parse_size(options.max_cache),
        hosts=["*"] if everywhere else [LOCAL, "localhost"],
        origins=options.cors,
    )
    for picture in pictures:
        print(f"{picture.name}: {picture.width} x {picture.height}")
    print(f"open http://{options.host}:{options.port}/ in a browser; Ctrl-C ends", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", backlog=128)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(
        "serve",
        "[options] PICTURE [PICTURE ...]",
        "Show pictures in a browser, enlarged up to 64 times as far as you look, next to bicubic "
        "interpolation; and serve them by IIIF Image API 3.0 to other viewers.",
        EXAMPLE,
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="what to show")
    parser.add_argument(
        "--host", default=LOCAL, help="address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--weights", help="model: bundled name, folder or file")
    parser.add_argument("--device", help="where to compute: cpu, cuda, mps")
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="site whose pages may read the pictures, '*' for all (default: none)",
    )
    parser.add_argument(
        "--max-cache", default="256MiB", help="most memory for answers (default: %(default)s)"
    )
    parser.add_argument(
        "--max-features", default="1GiB", help="most memory for features (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def names(paths: Sequence[Path]) -> list[str]:
    """Names of pictures in URLs: their files', in letters that need no escape, each once."""
    found: list[str] = []
    for path in paths:
        plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "picture"
        first = name
        count = 1
        while name in found:
            count += 1
            name = f"{first}-{count}"
        found.append(name)
    return found
