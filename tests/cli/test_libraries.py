"""What reaches the standard streams: no library's words, and every name of a file."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from diinn_fast.cli.streams import UnbreakableStream
from diinn_fast.cli.upscale import batch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that warns, logs and mentions while a picture is upscaled."""
    work = batch.upscale_job

    def talk(*arguments: object) -> object:
        warnings.warn("odd,\n odd", UserWarning, stacklevel=1)
        logging.getLogger("some.library").warning("really\nodd")
        return work(*arguments)

    monkeypatch.setattr(batch, "upscale_job", talk)


@pytest.mark.usefixtures("talkative")
@pytest.mark.filterwarnings("always")
def test_what_they_say_is_shown_with_verbose_alone(upscale: Run, folder: Path) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    shown = warnings.showwarning
    assert upscale("in.png", "out.png", "--scale", 2)[::2] == (0, "")
    assert upscale("in.png", "out.png", "--scale", 2, "-q", "--overwrite") == (0, "", "")
    code, _, err = upscale("in.png", "out.png", "--scale", 2, "-v", "--overwrite")
    assert code == 0
    assert "diinn-fast: UserWarning: odd, odd\n" in err
    assert "diinn-fast: some.library: really odd\n" in err
    # The process is as it was.
    assert root.handlers == handlers
    assert warnings.showwarning is shown


def test_names_that_a_terminal_cannot_show_do_not_end_its_output() -> None:
    written = io.BytesIO()
    stream = UnbreakableStream(io.TextIOWrapper(written, "ascii"))
    stream.write("\udcff.png \xb5.png\n")
    stream.write("2 done\n")
    stream.flush()
    assert written.getvalue().split(b"\n")[:2] == [rb"\udcff.png \xb5.png", b"2 done"]
