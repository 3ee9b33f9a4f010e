"""Files that appear complete or not at all, addresses, sizes as text, and the cache folder.

Everything here raises OSError or ValueError; callers translate into the error of their own work,
with the sentence of `explain`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE)
_UNITS = " KMGT"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])(.*)", re.DOTALL)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[BinaryIO]:
    """Binary file that takes the name `path` when the block ends well, and vanishes otherwise.

    The bytes go to a temporary file in the same folder, reach the disk (fsync) and only then take
    the name, so that a full disk, an exception, a signal or a power cut leaves the old file
    intact.

    Raises:
        FileExistsError: `path` exists and `overwrite` is False, also if it appeared meanwhile.
        OSError: the system refuses, for example because the disk is full.
    """
    target = Path(os.path.realpath(path))  # writes through a symbolic link instead of replacing it
    partial = target.with_name(f".diinn-{secrets.token_hex(8)}.part")
    with interruptible():
        try:
            with open(partial, "x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            publish(partial, target, overwrite)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP come as KeyboardInterrupt, so that it is left in order.

    Only in the main thread, and only where nobody else handles the signal.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    # Python lets the main thread alone set handlers.
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has one of them
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give a complete file its name, as a second link where the file system has hard links.

    Raises:
        FileExistsError: `target` exists and `overwrite` is False.
    """
    if overwrite:
        with suppress(OSError):  # a new file has no mode to keep
            shutil.copymode(target, partial)
        os.replace(partial, target)
    else:
        _publish_new(partial, target)
    sync_folder(target.parent)


def _publish_new(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)  # unlike replace, fails if another process made the file meanwhile
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError):  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(partial, target)


def sync_folder(folder: Path) -> None:
    """Make a new name itself survive a power cut, where the system can (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether the system refused for want of space, on the disk or within a quota."""
    return error.errno in _DISK_FULL


def no_folder(path: Path) -> str:
    """What to say of an output whose folder is none."""
    return (
        address(path, "write a file, then send it there")
        or f"{path} cannot be written, {path.parent} is not a folder: create it first."
    )


def explain(path: str | os.PathLike[str], error: OSError) -> str:
    """One sentence that says why `path` could not be written, and what to do."""
    if is_disk_full(error):
        return (
            f"{path} could not be written, the disk is full: free some space or choose another "
            "folder."
        )
    if isinstance(error, FileExistsError):
        return f"{path} already exists: pass --overwrite (overwrite=True) or choose another name."
    reason = error.strerror or str(error)
    return (
        f"{path} could not be written ({reason}): check the folder and the disk, or choose "
        "another folder."
    )


def address(
    path: str | os.PathLike[str], remedy: str = "download it first and give it"
) -> str | None:
    """What to say of a name that is no path but an address, such as ``https://example.org/a.jpg``;
    None for all others. A drive of Windows, which has one letter, is none.
    """
    # A Path has made one slash of two, and another sign of it on Windows.
    found = _ADDRESS.fullmatch(path.as_posix() if isinstance(path, Path) else os.fspath(path))
    if found is None:
        return None
    scheme, rest = found.groups()
    if scheme.lower() == "file":
        return f"file:///{rest} is an address: give the path, /{rest}."
    return f"{scheme}://{rest} is an address, not a file: {remedy}."


def parse_size(text: str | int) -> int:
    """Bytes of ``40M``, ``40MB``, ``40MiB`` (all the same), ``1.5G``, ``800K``, or a plain number.

    K, M, G and T are powers of 1024. Raises ValueError for anything else.
    """
    found = _SIZE.fullmatch(str(text))
    if found is None:
        raise ValueError(f"size {text!r} is not understood: write it as 600MiB or 1.5GiB")
    number, unit = found.groups()
    return int(float(number) * 1024 ** _UNITS.index((unit or " ").upper()))


def size_text(size: float) -> str:
    """A number of bytes for people: ``600 MiB``, ``1.50 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def cache_folder() -> Path:
    """Where what can be made again is kept: compiled kernels, tuned tiles, decoded photographs.

    ``DIINN_FAST_CACHE``, else ``diinn_fast`` in the user's cache folder (``XDG_CACHE_HOME``, which
    must be absolute, else ``~/.cache``). Raises RuntimeError if there is no home folder.
    """
    if override := os.environ.get("DIINN_FAST_CACHE"):
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "diinn_fast"
