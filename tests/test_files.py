"""Files under their names, sizes as text, the cache folder, and free memory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diinn_fast
from diinn_fast import files, host
from diinn_fast.data.images import list_photos
from diinn_fast.files import address, atomic_file, cache_folder, explain, parse_size, size_text
from diinn_fast.formats import read_image


def test_a_file_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_file(path, overwrite=False) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), atomic_file(path, overwrite=False) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    with atomic_file(path, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["https://example.org/a b.png?w=1#x", "s3://bucket/a.zarr"])
def test_an_address_is_told_from_a_path(text: str) -> None:
    """A Path has made one slash of two."""
    for name in (text, Path(text)):
        assert address(name) == f"{text} is an address, not a file: download it first and give it."
    said = address("file:///home/a.png")
    assert said == "file:///home/a.png is an address: give the path, /home/a.png."


@pytest.mark.parametrize(
    "path", ["a.png", "/a/b.png", "C:/a.png", "C:\\a.png", "a:b.png", "12://a", "https:", "x/y:/z"]
)
def test_a_path_is_no_address(path: str) -> None:
    assert address(path) is None


@pytest.mark.parametrize(
    "use",
    [
        read_image,
        diinn_fast.open,
        diinn_fast.load_model,
        diinn_fast.DIINN.from_pretrained,
        diinn_fast.DIINN.from_checkpoint,
        list_photos,
        lambda text: diinn_fast.render(text, "out.png", scale=2),
    ],
)
def test_every_entry_says_that_an_address_must_be_downloaded(use: Callable[[str], Any]) -> None:
    for text in ("https://example.org/a", "https://example.org/a.tar"):
        with pytest.raises(diinn_fast.Error, match=f"{text} is an address, .*download it first"):
            use(text)


WRITES = """
import runpy, signal, sys, time
# A shell's background ignores the one, nohup the other.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
atomic_file = runpy.run_path(sys.argv[1])["atomic_file"]
with atomic_file(sys.argv[2], overwrite=True) as file:
    file.write(b"half")
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", WRITES, files.__file__, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        assert list(tmp_path.iterdir())
        process.send_signal(getattr(signal, name))
        assert process.wait(30) != 0
    assert not list(tmp_path.iterdir())


def test_a_handler_of_the_program_stays(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, handler := lambda *_: None)
    try:
        with atomic_file(tmp_path / "file", overwrite=False):
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space") as raised, atomic_file(path, overwrite=False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "the disk is full: free some space" in explain(path, raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["40M", "40m", "40MB", "40MiB", "40 MiB", "40960K", 40 << 20])
def test_a_size_means_the_same_however_it_is_written(text: str | int) -> None:
    assert parse_size(text) == 40 << 20


@pytest.mark.parametrize("text", ["", "much", "-1G", "1.5.2M", "40X", "1,5G"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 600MiB"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (12, 3 << 10, 600 << 20, 3 << 29)] == [
        "12 B",
        "3 KiB",
        "600 MiB",
        "1.50 GiB",
    ]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIINN_FAST_CACHE", "/a/b")
    assert str(cache_folder()) == "/a/b"
    monkeypatch.delenv("DIINN_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/diinn_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the specification says to ignore")
    monkeypatch.setenv("HOME", "/h")
    assert str(cache_folder()) == "/h/.cache/diinn_fast"


def control_group(folder: Path, names: tuple[str, str, str], values: tuple[str, int, int]) -> None:
    folder.mkdir(parents=True)
    limit, used, cache = names
    most, now, cached = values
    (folder / limit).write_text(f"{most}\n")
    (folder / used).write_text(f"{now}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cache} {cached}\n")


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/", "", V2),
        ("0::/job/step", "job", V2),  # the limit of a parent counts
        ("4:memory:/job", "memory/job", V1),
        ("4:cpu,memory:/elsewhere", "memory", V1),  # a container sees its group as the root
    ],
)
def test_free_memory_is_what_the_control_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, names: Any
) -> None:
    groups = tmp_path / "groups"
    control_group(groups / folder, names, ("1000000", 700_000, 50_000))
    own = tmp_path / "own"
    own.write_text(f"1:name=systemd:/x\n{line}\n")
    monkeypatch.setattr(host, "_GROUPS", groups)
    monkeypatch.setattr(host, "_OWN_GROUPS", own)
    assert host.free_bytes() == 350_000


def test_free_memory_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control_group(tmp_path / "groups", V2, ("max", 700_000, 0))
    monkeypatch.setattr(host, "_GROUPS", tmp_path / "groups")
    assert host.free_bytes() > 1 << 20
    assert host.resident_bytes() > 1 << 20


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(files.os, "link", refuse)
    path = tmp_path / "file"
    with atomic_file(path, overwrite=False) as file:
        file.write(b"first")
    with pytest.raises(FileExistsError), atomic_file(path, overwrite=False) as file:
        file.write(b"second")
    assert path.read_bytes() == b"first"
