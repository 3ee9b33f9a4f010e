"""OUT.part: every combination of what there is and what is asked; journals of other versions."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from diinn_fast.errors import UpscaleError
from diinn_fast.inference import Upscaler, rendering
from diinn_fast.inference.plan import Plan
from diinn_fast.inference.rendering.journal import Journal, JournalError, read_journals
from diinn_fast.inference.rendering.partial import Decision, Out, Part, decide
from tests.helpers.small_models import picture, small_model

START = Decision.START
CONTINUE = Decision.CONTINUE
NOTHING = Decision.NOTHING
EXISTING = Decision.REFUSE_EXISTING
UNFINISHED = Decision.REFUSE_UNFINISHED
PLAN = Plan((4, 4), (8, 8), (1, 1), 2, (1, 2), (8, 4), 4, 0, 0)

# Neither option given; --resume alone. With the output's name free, and borne by another file.
WITHOUT_OVERWRITE = {
    (Part.EMPTY, Out.ABSENT): (START, START),
    (Part.EMPTY, Out.OTHER): (EXISTING, EXISTING),
    (Part.UNREADABLE, Out.ABSENT): (Decision.REFUSE_UNREADABLE, Decision.REFUSE_UNREADABLE),
    (Part.UNREADABLE, Out.OTHER): (EXISTING, EXISTING),
    (Part.OTHER_JOB, Out.ABSENT): (UNFINISHED, Decision.REFUSE_OTHER_JOB),
    (Part.OTHER_JOB, Out.OTHER): (EXISTING, EXISTING),
    (Part.BEGUN, Out.ABSENT): (UNFINISHED, CONTINUE),
    (Part.BEGUN, Out.OTHER): (EXISTING, EXISTING),
    (Part.MADE, Out.ABSENT): (UNFINISHED, CONTINUE),
    (Part.MADE, Out.OTHER): (EXISTING, CONTINUE),
    (Part.PUBLISHED, Out.ABSENT): (START, START),
    (Part.PUBLISHED, Out.OTHER): (EXISTING, NOTHING),
}


@pytest.mark.parametrize(("case", "expected"), WITHOUT_OVERWRITE.items())
def test_nothing_is_lost_unasked(case: Any, expected: Any) -> None:
    assert decide(*case, resume=False, overwrite=False) is expected[0]
    assert decide(*case, resume=True, overwrite=False) is expected[1]


@pytest.mark.parametrize(("part", "out"), list(product(Part, Out)))
def test_overwrite_begins_anew_but_resume_comes_first(part: Part, out: Out) -> None:
    if part is Part.NOT_OURS:
        return
    assert decide(part, out, resume=False, overwrite=True) is START
    kept = part in (Part.BEGUN, Part.MADE, Part.PUBLISHED) and out is not Out.ABSENT
    both = decide(part, out, resume=True, overwrite=True)
    if out is Out.DONE:
        assert both is NOTHING
    elif kept:
        assert both is (NOTHING if part is Part.PUBLISHED else CONTINUE)


@pytest.mark.parametrize(("resume", "overwrite"), list(product([False, True], repeat=2)))
def test_what_is_not_ours_is_never_touched(resume: bool, overwrite: bool) -> None:
    for out in Out:
        found = decide(Part.NOT_OURS, out, resume=resume, overwrite=overwrite)
        assert found is Decision.REFUSE_NOT_OURS


@pytest.mark.parametrize("part", [part for part in Part if part is not Part.NOT_OURS])
def test_a_finished_output_is_left_as_it_is(part: Any) -> None:
    assert decide(part, Out.DONE, resume=True, overwrite=False) is NOTHING
    if part is not Part.PUBLISHED:
        assert decide(part, Out.DONE, resume=False, overwrite=False) is EXISTING


# -- journals --------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    written = Journal(tmp_path, 0, "job", PLAN)
    written.add([(0, 0)])
    written.close()
    return tmp_path / "journal-0.jsonl"


def change_header(journal: Path, **fields: Any) -> None:
    first, *others = journal.read_bytes().splitlines(keepends=True)
    header = json.loads(first) | fields
    header = {name: value for name, value in header.items() if value is not None}
    journal.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(others))


def test_a_journal_says_what_is_done(journal: Path) -> None:
    state = read_journals(journal.parent)
    assert state is not None
    assert (state.job, state.plan, state.done) == ("job", PLAN, {(0, 0)})
    assert not state.complete and not state.published


def test_a_journal_says_that_the_output_has_its_name(journal: Path) -> None:
    again = Journal(journal.parent, 0, "job", PLAN)
    again.add([(1, 0)])
    again.publish()
    again.close()
    state = read_journals(journal.parent)
    assert state is not None and state.complete and state.published


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": "99.0"}, "was written by diinn_fast 99.0"),
        ({"format": None, "version": None}, r"was written by diinn_fast 0\.1 or older"),
        ({"format": "diinn_fast journal 2"}, "was written by diinn_fast"),
        ({"plan": {**PLAN.as_json(), "colour": 3}}, "damaged journal"),
        ({"plan": "none"}, "damaged journal"),
        ({"job": None}, "damaged journal"),
    ],
)
def test_journals_of_other_versions_and_damaged_ones_are_refused(
    journal: Path, fields: dict[str, str] | dict[str, None] | dict[str, Any], reason: str
) -> None:
    change_header(journal, **fields)
    with pytest.raises(JournalError, match=reason):
        read_journals(journal.parent)


def test_a_damaged_first_line_is_refused_and_a_torn_one_is_nothing(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(b"?" + whole)
    with pytest.raises(JournalError, match="damaged journal"):
        read_journals(journal.parent)
    journal.write_bytes(whole[:40])
    assert read_journals(journal.parent) is None


@pytest.mark.parametrize("resume", [False, True])
def test_work_of_another_version_is_kept_unless_overwritten(tmp_path: Path, resume: bool) -> None:
    """Not computed again in silence, nor deleted."""
    out = tmp_path / "out.npy"
    part = tmp_path / "out.npy.part"
    part.mkdir()
    journal = Journal(part, 0, "job", PLAN)
    journal.close()
    change_header(part / "journal-0.jsonl", version="99.0")
    (part / "samples").write_bytes(b"an hour of work")
    upscaler = Upscaler(small_model(), device="cpu")
    spec = rendering.prepare(upscaler, picture(30, 40), out, scale=2)
    with pytest.raises(UpscaleError, match=r"was written by diinn_fast 99\.0: pass --overwrite"):
        rendering.run(spec, resume=resume)
    assert (part / "samples").read_bytes() == b"an hour of work"
    assert rendering.run(spec, resume=resume, overwrite=True)
    assert out.exists() and not part.exists()
