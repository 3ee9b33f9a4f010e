"""Options, the fixtures that measure, and the table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import machine, memory, peers
from bench.cases import Case
from bench.table import text_table
from bench.timing import REPLAY, interleave, summary
from diinn_fast import BackendError

Report = Callable[[Case, str], None]
RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the benchmarks: sizes and peers, and where records go."""
    group = parser.getgroup("diinn_fast")
    group.addoption(
        "--full", action="store_true", help="all sizes and peers (tens of minutes on two cores)"
    )
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    group.addoption("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    group.addoption(
        "--save",
        action="store_true",
        help="write bench/results/<device>/<suite>.json (needs a clean tree)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse records of a tree with changes: nobody could repeat them."""
    if config.option.save and (files := machine.modified()):
        raise pytest.UsageError(
            f"--save needs a clean tree, so that the record's commit is what was measured: commit "
            f"or stash {', '.join(files[:3])}{' ...' if files[3:] else ''}"
        )
    config.option.benchmark_quiet = (
        True  # one table is enough; --benchmark-verbose brings pytest-benchmark's own back
    )
    config.stash[BOARD] = Board(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a suite runs for all its cases and the peers that take part in each."""
    if "peer" not in metafunc.fixturenames:
        return
    board = metafunc.config.stash[BOARD]
    module: Any = metafunc.module
    pairs = []
    for case in module.cases(board.full):
        case = replace(case, device=board.device, dtype=board.dtype)
        names = getattr(module, "peer_names", peers.names)(case, board.full)
        pairs += [pytest.param(case, peer, id=f"{case.name}-{peer}") for peer in names]
    metafunc.parametrize(("case", "peer"), pairs)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All peers of a case one after the other, as they are measured together."""
    config.stash[BOARD].items = items


class Board:
    """What has been measured in this run: one record per suite and case."""

    def __init__(self, config: pytest.Config) -> None:
        self.full: bool = config.option.full
        self.device: str = config.option.device
        self.dtype: str = config.option.dtype
        self.items: list[pytest.Item] = []
        self.tried: set[tuple[str, str, str]] = set()  # kind, encoder and peer that run
        self.records: dict[tuple[str, str], dict[str, Any]] = {}

    def record(self, suite: str, case: Case) -> dict[str, Any]:
        """The record of a case, made at first use."""
        if (suite, case.name) not in self.records:
            description = {
                "case": case.describe(),
                "name": case.name,
                "title": case.title,
                "size": list(case.size),
            }
            self.records[suite, case.name] = {**description, "peers": {}, "left_out": {}}
        return self.records[suite, case.name]

    def selected(self, suite: str, case: Case) -> list[str]:
        """Peers of a case that this run includes (``-k`` may have left some out)."""
        found = []
        for item in self.items:
            parameters = getattr(getattr(item, "callspec", None), "params", {})
            if suite_of(item) == suite and parameters.get("case") == case:
                found.append(parameters["peer"])
        return found

    def time(self, suite: str, case: Case) -> dict[str, Any]:
        """Time all selected peers of a case in the same rounds, with the machine's own products."""
        record = self.record(suite, case)
        if "rates" in record:
            return record
        calls: dict[str, Callable[[], object]] = {}
        for peer in self.selected(suite, case):
            if reason := peers.left_out(case, peer, self.full) or self._try(case, peer, calls):
                record["left_out"][peer] = reason
        rates = machine.rates(self.device)
        calls |= {name: call for name, (call, _) in rates.items()}
        samples = interleave(
            calls,
            lambda call: machine.seconds(call, self.device),
            *((5.0, 50) if self.full else (0.7, 15)),
        )
        record["rates"] = {
            name: {"flop_per_s": flops / summary(samples[name])["median"], **summary(samples[name])}
            for name, (_, flops) in rates.items()
        }
        for peer in self.selected(suite, case):
            if peer in samples:
                record["peers"][peer] = self._entry(case, peer, samples[peer], record["rates"])
        return record

    def _try(self, case: Case, peer: str, calls: dict[str, Callable[[], object]]) -> str | None:
        """Set a peer up, on a small case first: its call goes to ``calls``, or why it cannot run is
        returned.
        """
        key = (case.kind, case.encoder, peer)
        try:
            if key not in self.tried:
                peers.build(replace(case, lr=(4, 4), scale=2.0), peer)()
                self.tried.add(key)
        except (BackendError, torch.OutOfMemoryError) as error:
            return str(error)
        except Exception as error:
            if peer != "official-compiled":
                raise
            return f"torch.compile failed: {str(error).splitlines()[0][:80]}"
        calls[peer] = peers.build(case, peer)
        return None

    def _entry(
        self, case: Case, peer: str, samples: list[float], rates: dict[str, Any]
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"title": peers.title(peer), **summary(samples), "samples": samples}
        if peer != "bicubic":
            entry["flops"] = case.flops(peer)
            entry["fraction"] = {
                name: case.flops(peer) / entry["median"] / rate["flop_per_s"]
                for name, rate in rates.items()
            }
        return entry

    def save(self) -> Iterator[Path]:
        """Write one file per suite; a file holds what this run measured."""
        folder = RESULTS / machine.slug(self.device)
        folder.mkdir(parents=True, exist_ok=True)
        about = machine.facts(self.device) | {
            "command": machine.command(),
            "dtype": self.dtype,
            "full": self.full,
        }
        for suite in dict.fromkeys(suite for suite, _ in self.records):
            records = [record for (name, _), record in self.records.items() if name == suite]
            dtype = "" if self.dtype == "float32" else f"-{self.dtype}"
            path = folder / f"{suite}{dtype}.json"
            path.write_text(
                json.dumps({**about, "suite": suite, "records": records}, indent=1) + "\n"
            )
            yield path


BOARD = pytest.StashKey[Board]()


def suite_of(item: pytest.Item) -> str:
    """Name of a benchmark's file, as records have it."""
    return item.path.stem.removeprefix("test_")


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Board:
    """All records of this session."""
    return request.config.stash[BOARD]


@pytest.fixture
def speed(board: Board, request: pytest.FixtureRequest, benchmark: Any) -> Report:
    """Report a peer's time on a case to pytest-benchmark; the first peer asked for times all of
    them together.
    """

    def report(case: Case, peer: str) -> None:
        record = board.time(suite_of(request.node), case)
        if peer in record["left_out"]:
            pytest.skip(record["left_out"][peer])
        entry = record["peers"][peer]
        benchmark.group = case.title
        benchmark.extra_info = {k: entry[k] for k in ("flops", "fraction") if k in entry}
        replay(benchmark, entry["samples"])

    return report


def replay(benchmark: Any, samples: list[float]) -> None:
    """Give pytest-benchmark samples that were taken before."""
    REPLAY.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples))


@pytest.fixture
def peak(board: Board, request: pytest.FixtureRequest) -> Report:
    """Measure a peer's extra memory on a case."""

    def report(case: Case, peer: str) -> None:
        record = board.record(suite_of(request.node), case)
        if reason := peers.left_out(case, peer, board.full):
            record["left_out"][peer] = reason
            pytest.skip(reason)
        record["peers"][peer] = {"title": peers.title(peer), **memory.measure_in_child(case, peer)}

    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables, and store the records if asked."""
    board = config.stash[BOARD]
    if not board.records:
        return
    about = machine.facts(board.device)
    terminalreporter.section(
        f"{about['device']}, {about['threads']} threads, torch {about['versions']['torch']}"
    )
    for (suite, _), record in board.records.items():
        terminalreporter.write_line("\n" + text_table(suite, record))
    if config.option.save:
        for path in board.save():
            terminalreporter.write_line(f"wrote {path.relative_to(machine.ROOT)}")
    seconds = timedelta(seconds=round(sum(r.duration for r in _reports(terminalreporter))))
    terminalreporter.write_line(
        f"measured in {seconds}; docs/performance.md: python -m bench.report"
    )


def _reports(reporter: pytest.TerminalReporter) -> list[Any]:
    return [r for key in ("passed", "skipped", "failed") for r in reporter.stats.get(key, [])]
