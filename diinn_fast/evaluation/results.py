"""Scores per image in a CSV file, a line per metric, that grows image by image, so that an
interrupted evaluation can be resumed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from diinn_fast.files import atomic_file
from diinn_fast.metrics import METRICS

Key = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Row:
    """Scores of one model on one image at one scale, by name of the metric; NaN if undefined."""

    protocol: str
    set: str
    image: str
    scale: str
    model: str
    weights: str
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of every metric that was asked for; beside them ``seconds``, the time of the upscale."""

    @property
    def key(self) -> Key:
        """What no two rows share."""
        return self.protocol, self.set, self.image, self.scale, self.model, self.weights

    def has(self, metrics: Iterable[str]) -> bool:
        """Whether all these metrics have been measured."""
        return all(name in self.scores for name in metrics)


KEYS = [each.name for each in fields(Row) if each.name != "scores"]
COLUMNS = [*KEYS, "metric", "value"]
WIDE_COLUMNS = [*KEYS, "psnr", "ssim", "lr_psnr", "seconds"]
"""Of older files: a column per metric. They are read, and written anew as lines."""


class Results:
    """The rows of ``folder/images.csv``, by key; of lines with the same key and metric the last
    one counts.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "images.csv"
        self.rows: dict[Key, Row] = {}
        folder.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if text and not text.endswith("\n"):  # a write that was cut off: that image is done again
            with self.path.open("r+b") as file:
                file.truncate(len(text[: text.rfind("\n") + 1].encode()))
            text = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(io.StringIO(text)))
        header = lines[0] if lines else []
        if header not in ([], COLUMNS, WIDE_COLUMNS):
            raise ValueError(
                f"{self.path} has other columns than {', '.join(COLUMNS)}: choose another --out "
                "folder"
            )
        for values in lines[1:]:
            self._merge(_parse(header, values))
        # An older file gets today's form once, so that rows can be appended.
        if header != COLUMNS:
            with atomic_file(self.path, overwrite=True) as file:
                file.write(
                    _csv([COLUMNS, *(line for row in self.rows.values() for line in _lines(row))])
                )

    def add(self, row: Row) -> None:
        """Merge a row in, and write it."""
        self._merge(row)
        with self.path.open("ab") as file:
            file.write(_csv(_lines(row)))

    def _merge(self, row: Row) -> None:
        before = self.rows.pop(row.key, row)  # so that the order says which is the latest
        self.rows[row.key] = replace(row, scores={**before.scores, **row.scores})

    def current(self, weights: dict[str, str]) -> list[Row]:
        """One row per protocol, set, image, scale and model: of the given weights, else of the
        latest ones.
        """
        latest = {row.model: row.weights for row in self.rows.values()} | weights
        return [row for row in self.rows.values() if row.weights == latest[row.model]]


def _lines(row: Row) -> list[list[str]]:
    """The row's lines in the file, one per metric."""
    return [[*row.key, name, _text(name, value)] for name, value in row.scores.items()]


def _text(name: str, value: float) -> str:
    digits = METRICS[name].stored_digits if name in METRICS else 5
    return f"{value:.{digits}f}"


def _csv(lines: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def _parse(header: list[str], values: list[str]) -> Row:
    """A line of either kind."""
    named = dict(zip(header, values, strict=True))
    protocol, data_set, image, scale, model, weights = (named.pop(name) for name in KEYS)
    scores = named if header == WIDE_COLUMNS else {named["metric"]: named["value"]}
    numbers = {name: float(value) for name, value in scores.items() if value}
    return Row(protocol, data_set, image, scale, model, weights, numbers)


@dataclass(frozen=True)
class Mean:
    """Means over the images of a set."""

    protocol: str
    set: str
    scale: str
    model: str
    weights: str
    images: int
    scores: Mapping[str, float]
    """By name of the metric, of those that every image has; NaN where all are undefined."""


def means(rows: Iterable[Row]) -> list[Mean]:
    """Mean scores per protocol, set, scale and model, in order of first appearance; undefined
    scores do not count.
    """
    groups: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.set, row.scale, row.model, row.weights), []).append(
            row
        )
    found = []
    for key, group in groups.items():
        names = [name for name in METRICS if all(row.has([name]) for row in group)]
        scores = {name: _mean([row.scores[name] for row in group]) for name in names}
        found.append(Mean(*key, len(group), scores))
    return found


def _mean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def write_summary_csv(rows: Iterable[Row], path: Path) -> None:
    """A line per mean and metric."""
    lines: list[Sequence[object]] = [
        ["protocol", "set", "scale", "model", "weights", "images", "metric", "value"]
    ]
    for m in means(rows):
        key = (m.protocol, m.set, m.scale, m.model, m.weights, m.images)
        lines += [[*key, name, _text(name, value)] for name, value in m.scores.items()]
    path.write_bytes(_csv(lines))
