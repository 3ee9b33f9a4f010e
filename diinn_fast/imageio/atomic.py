"""A file appears complete under its name, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diinn_fast.errors import ImageError
from diinn_fast.imageio.formats import already_exists

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def atomic_file(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Binary file that takes the name `path` when the block ends well, and vanishes when it does
    not.

    The bytes go to a temporary file in the same folder, reach the disk (fsync) and only then take
    the name, so that a full disk, an exception, Ctrl-C or a power cut leaves the old file intact.

    Raises:
        ImageError: `path` exists and `overwrite` is False (also if it appeared meanwhile), the disk
            is full, or the system refuses otherwise.
    """
    target = Path(os.path.realpath(path))  # writes through a symbolic link instead of replacing it
    partial = target.with_name(f".diinn-{secrets.token_hex(8)}.part")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(partial, target, overwrite)
    except OSError as error:
        raise ImageError(_explain(path, error)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Give a complete file its name, as a second one where hard links exist; ImageError if it may
    not replace.
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
        raise already_exists(target) from None
    except (OSError, AttributeError, NotImplementedError):  # a file system without hard links
        if target.exists():
            raise already_exists(target) from None
        os.replace(partial, target)


def sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system can (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    return error.errno in _DISK_FULL


def _explain(path: Path, error: OSError) -> str:
    if is_disk_full(error):
        return (
            f"{path} could not be written, the disk is full: free some space or choose another "
            "folder."
        )
    reason = error.strerror or str(error)
    return (
        f"{path} could not be written ({reason}): check the folder and the disk, or choose "
        "another folder."
    )
