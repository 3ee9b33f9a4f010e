"""Per-image rows in a CSV file that grows row by row, so that an interrupted evaluation goes on
where it was.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

Key = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Row:
    """Scores of one model on one image at one scale. A metric that was not asked for is None, NaN
    if undefined.
    """

    protocol: str
    set: str
    image: str
    scale: str
    model: str
    weights: str
    psnr: float | None = None
    ssim: float | None = None
    lr_psnr: float | None = None
    seconds: float | None = None

    @property
    def key(self) -> Key:
        return self.protocol, self.set, self.image, self.scale, self.model, self.weights

    def has(self, metrics: Iterable[str]) -> bool:
        return all(getattr(self, name) is not None for name in metrics)


COLUMNS = [field.name for field in fields(Row)]
DIGITS = {"psnr": 4, "ssim": 6, "lr_psnr": 4, "seconds": 5}


class Results:
    """The rows of ``folder/images.csv``, by key; a later row replaces an earlier one with the same
    key.
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
        if not text:
            self._write(COLUMNS)
        elif text.splitlines()[0].split(",") != COLUMNS:
            raise ValueError(
                f"{self.path} has other columns than {', '.join(COLUMNS)}: choose another --out "
                "folder"
            )
        for values in list(csv.reader(io.StringIO(text)))[1:]:
            row = _parse(values)
            self.rows.pop(row.key, None)  # so that the order says which is the latest
            self.rows[row.key] = row

    def add(self, row: Row) -> None:
        self.rows.pop(row.key, None)
        self.rows[row.key] = row
        self._write([_text(name, value) for name, value in asdict(row).items()])

    def _write(self, values: list[str]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(values)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(line.getvalue())

    def current(self, weights: dict[str, str]) -> list[Row]:
        """One row per protocol, set, image, scale and model: of the given weights, else of the
        latest ones.
        """
        latest = {row.model: row.weights for row in self.rows.values()} | weights
        return [row for row in self.rows.values() if row.weights == latest[row.model]]


def _text(name: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.{DIGITS[name]}f}"


def _parse(values: list[str]) -> Row:
    numbers = [float(v) if v else None for v in values[6:]]
    return Row(*values[:6], *numbers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Mean:
    """Means over the images of a set."""

    protocol: str
    set: str
    scale: str
    model: str
    weights: str
    images: int
    psnr: float | None
    ssim: float | None
    lr_psnr: float | None


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
    for (protocol, name, scale, model, weights), group in groups.items():
        psnr = _mean([row.psnr for row in group])
        ssim = _mean([row.ssim for row in group])
        lr_psnr = _mean([row.lr_psnr for row in group])
        found.append(Mean(protocol, name, scale, model, weights, len(group), psnr, ssim, lr_psnr))
    return found


def _mean(values: list[float | None]) -> float | None:
    if any(v is None for v in values):
        return None
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def write_summary_csv(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Mean)])
        for mean in means(rows):
            *key, images = astuple(mean)[:6]
            scores = [_text(name, getattr(mean, name)) for name in ("psnr", "ssim", "lr_psnr")]
            writer.writerow([*key, images, *scores])
