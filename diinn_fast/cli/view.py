"""``diinn-fast view``: `serve`, and the browser opened on it."""

from __future__ import annotations

import threading
import webbrowser

from diinn_fast.cli.common import make_parser
from diinn_fast.cli.serve import add_arguments, parse, print_address, run

EXAMPLE = """\
  diinn-fast view photo.jpg
"""


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    parser = make_parser(
        "view",
        "[options] PICTURE [PICTURE ...]",
        "Open pictures in the browser, enlarged up to 64 times as far as you look, next to bicubic "
        "interpolation.",
        EXAMPLE,
    )
    add_arguments(parser, port=0)
    return run(parse(parser, arguments), open_browser)


def open_browser(address: str) -> None:
    """Send the browser there; a browser of the terminal would not return before it ends."""
    print_address(address)
    threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
