"""``diinn-fast serve``: show pictures in a browser, at any zoom."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from diinn_fast.cli.common import Parser, Refused, make_parser
from diinn_fast.cli.upscale import values
from diinn_fast.inference import Upscaler
from diinn_fast.inference.devices import AUTO, PRECISIONS
from diinn_fast.inference.memory import parse_size
from diinn_fast.inference.ranges import DTYPE

LOCAL = ("127.0.0.1", "localhost")
"""Names under which only programs of this machine can reach a server."""

EXAMPLE = """\
  diinn-fast serve photo.jpg
  diinn-fast serve scan.tif map.tif --port 9000 --cache tiles --cors '*'
"""


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = make_parser(
        "serve",
        "[options] PICTURE [PICTURE ...]",
        "Show pictures in a browser, enlarged up to 64 times as far as you look, next to bicubic "
        "interpolation; and serve them by IIIF Image API 3.0 to other viewers.",
        EXAMPLE,
    )
    add_arguments(parser, port=8000)
    return run(parse(parser, arguments), print_address)


def parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """The options; ``--range 0 4095`` is one of them."""
    return parser.parse_args(values.join_pairs(arguments))


def run(options: argparse.Namespace, ready: Callable[[str], None]) -> int:
    """Serve until Ctrl-C; ``ready`` is told the page's address as soon as it can be opened."""
    try:
        from diinn_fast.serve import DiskCache, Picture, make_app
        from diinn_fast.serve.gallery import MAX_DROPPED, dropped_view
        from diinn_fast.serve.http import serve
    except ImportError as error:
        raise Refused(f"{error.name} is missing: pip install 'diinn_fast[serve]'") from None
    # Answers have 8 bits per channel, whatever the pictures have.
    upscaler = Upscaler(
        options.weights, device=options.device, precision=options.precision
    ).for_bits(8)
    local = options.host in LOCAL
    # Features of all pictures together stay within the bound.
    count = len(options.pictures) + (MAX_DROPPED if local else 0)
    features = parse_size(options.max_features) // count
    pictures = [
        Picture(name, upscaler.open(path, max_features=features, range=options.range))
        for name, path in zip(names(options.pictures), options.pictures, strict=True)
    ]
    try:
        disk = DiskCache(options.cache, parse_size(options.cache_size)) if options.cache else None
    except OSError as error:
        raise Refused(
            f"{options.cache} cannot be used as a cache ({error.strerror}): choose another --cache"
        ) from None
    app = make_app(
        pictures,
        max_cache=parse_size(options.max_cache),
        disk=disk,
        opener=partial(dropped_view, upscaler, max_features=features, range=options.range)
        if local
        else None,
        hosts=LOCAL if local else ["*"],
        origins=options.cors,
    )
    for picture in pictures:
        print(f"{picture.name}: {picture.width} x {picture.height}")
    listening = listen(options.host, options.port)
    ready(f"http://{options.host}:{listening.getsockname()[1]}/")
    serve(app, listening)
    return 0


def print_address(address: str) -> None:
    """Say where the server listens."""
    print(f"open {address} in a browser; Ctrl-C ends", flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections already, so that a browser may be sent there at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise Refused(
            f"cannot listen on {host}, port {port} ({reason}): choose another --port or --host"
        ) from None


def port_number(text: str) -> int:
    """A port, or 0 for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number up to 65535")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    """The options of `serve` and `view`; ``port`` is the default, 0 a free one."""
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="what to show")
    parser.add_argument(
        "--host", default=LOCAL[0], help="address to listen on (default: %(default)s, this machine)"
    )
    # A fixed port for servers, any free one for a window on this machine.
    default = "%(default)s" if port else "a free one"
    parser.add_argument("--port", type=port_number, default=port, help=f"(default: {default})")
    parser.add_argument("--weights", help="model: bundled name, folder or file")
    parser.add_argument("--device", help="where to compute: cpu, cuda, mps")
    parser.add_argument(
        "--precision",
        choices=[AUTO, *PRECISIONS],
        default=AUTO,
        help="auto: fp16 on CUDA, int8 on a CPU with instructions for it, else fp32",
    )
    parser.add_argument(
        "--range",
        type=values.sample_range,
        default=DTYPE,
        metavar="auto|LOW HIGH",
        help="sample values that are black and white, to the network and on the screen; auto: each "
        "picture's lowest and highest (default: all of the type)",
    )
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
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder in which sharp tiles are kept for the next start (default: none)",
    )
    parser.add_argument(
        "--cache-size", default="1GiB", help="most bytes in that folder (default: %(default)s)"
    )
    parser.add_argument(
        "--max-features", default="1GiB", help="most memory for features (default: %(default)s)"
    )


def names(paths: Sequence[Path]) -> list[str]:
    """Names of pictures in URLs: their files', in letters that need no escape, each once."""
    from diinn_fast.serve.gallery import plain_name

    found: list[str] = []
    for path in paths:
        first = plain_name(path.stem)
        name = first
        count = 1
        while name in found:
            count += 1
            name = f"{first}-{count}"
        found.append(name)
    return found
