"""Tiles kept as files: found again by the next server, and never more than the bound."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from diinn_fast.serve.disk import DiskCache
from diinn_fast.serve.tiles import Tiles

KEYS = [f"{n:032x}" for n in range(5)]


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_next_server_finds_what_was_kept(tmp_path: Path) -> None:
    DiskCache(tmp_path / "tiles", 100).put(KEYS[0], b"tile")
    again = DiskCache(tmp_path / "tiles", 100)
    assert again.get(KEYS[0]) == b"tile"
    assert again.get(KEYS[1]) is None


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    for key in KEYS[:2]:
        cache.put(key, bytes(40))
    cache.get(KEYS[0])
    cache.put(KEYS[2], bytes(40))
    assert stored(tmp_path) == 80
    assert [cache.get(key) is not None for key in KEYS[:3]] == [True, False, True]
    cache.put(KEYS[3], bytes(101))
    assert stored(tmp_path) == 80


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    for age, key in enumerate(KEYS):
        cache.put(key, bytes(40))
        os.utime(tmp_path / f"{key}.tile", (1000 + age, 1000 + age))
    os.utime(tmp_path / f"{KEYS[0]}.tile", (2000, 2000))
    small = DiskCache(tmp_path, 100)
    assert stored(tmp_path) == 80
    assert [small.get(key) is not None for key in KEYS] == [True, False, False, False, True]


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "photo.tile"
    other.write_bytes(bytes(500))
    cache = DiskCache(tmp_path, 100)
    cache.put(KEYS[0], bytes(90))
    assert other.exists()
    assert cache.get(KEYS[0]) is not None


def test_a_file_or_folder_that_vanished_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path / "tiles", 100)
    cache.put(KEYS[0], b"tile")
    (tmp_path / "tiles" / f"{KEYS[0]}.tile").unlink()
    assert cache.get(KEYS[0]) is None
    (tmp_path / "tiles").rmdir()
    cache.put(KEYS[0], b"tile")
    assert cache.get(KEYS[0]) == b"tile"
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path / "tiles", 100)
    (tmp_path / "tiles").rmdir()
    (tmp_path / "tiles").write_bytes(b"a file in its place")
    for key in KEYS:
        cache.put(key, b"tile")
        assert cache.get(key) is None
    assert [record.getMessage()[:18] for record in caplog.records] == ["tiles are not kept"]
    (tmp_path / "tiles").unlink()
    cache.put(KEYS[0], b"tile")
    assert cache.get(KEYS[0]) == b"tile"


def test_servers_that_share_a_folder_take_nothing_wrong_from_it(tmp_path: Path) -> None:
    """Each knows what it has put there, and what was there at its start."""
    first = DiskCache(tmp_path, 100)
    second = DiskCache(tmp_path, 100)
    first.put(KEYS[0], bytes(40))
    second.put(KEYS[0], bytes(40))
    second.put(KEYS[1], bytes(40))
    second.put(KEYS[2], bytes(40))  # takes the place of the first
    assert first.get(KEYS[0]) is None
    first.put(KEYS[0], bytes(40))
    assert first.get(KEYS[0]) == bytes(40)
    assert second.get(KEYS[1]) == bytes(40)


def test_only_sharp_tiles_are_kept_and_a_new_server_makes_none(tmp_path: Path) -> None:
    async def present() -> bool:
        return False

    async def use(tiles: Tiles) -> None:
        assert await tiles.get(KEYS[0], lambda: b"sharp", False, present) == b"sharp"
        assert await tiles.get(KEYS[1], lambda: b"quick", True, present) == b"quick"

    first = Tiles(1 << 20, DiskCache(tmp_path, 100))
    asyncio.run(use(first))
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEYS[0]}.tile"]
    second = Tiles(1 << 20, DiskCache(tmp_path, 100))
    asyncio.run(use(second))
    assert (first.made, second.made) == (2, 1)
