"""What the make targets run: `make test` the tests that are not long, `make check` every one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUICK = ' -m "not long"'


def pytests(*arguments: str) -> set[str]:
    """The calls of pytest that make would make."""
    # make hands its own options and variables on to what it starts, such as these tests.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls = {line.strip() for line in done.stdout.splitlines() if " -m pytest " in line}
    assert len(calls) == 3, done.stdout  # of the kernels, of the model, and the others
    return calls


def test_test_leaves_out_what_is_long_and_nothing_else() -> None:
    quick, everything = pytests("test"), pytests("check")
    assert all(call.endswith(QUICK) for call in quick)
    assert {call.removesuffix(QUICK) for call in quick} == everything


def test_all_tests_are_run_by_an_empty_choice_and_before_a_change_lands() -> None:
    assert pytests("test", "QUICK=") == pytests("check")
    assert (ROOT / ".ci/run").read_text().endswith("\nmake check\n")
