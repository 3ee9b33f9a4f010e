"""A record names a commit: `pytest bench --save` refuses to measure anything else."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import conftest, machine


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed module and a committed record, in place of this one."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "module.py").write_text("a = 1\n")
    (tmp_path / "bench" / "results" / "record.json").write_text("{}\n")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def configure(*, save: bool) -> None:
    options = SimpleNamespace(save=save, full=False, device="cpu", dtype="float32")
    conftest.pytest_configure(cast(Any, SimpleNamespace(option=options, stash={})))


def test_a_changed_file_is_refused_by_name(repository: Path) -> None:
    (repository / "module.py").write_text("a = 2\n")
    configure(save=False)
    with pytest.raises(pytest.UsageError, match=r"clean tree.*module\.py"):
        configure(save=True)


def test_new_records_do_not_make_the_tree_dirty(repository: Path) -> None:
    (repository / "bench" / "results" / "record.json").write_text('{"new": 1}\n')
    configure(save=True)
    assert machine.modified() == []
