"""The evaluation itself: every image of every set at every scale by every model, one row at a
time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from diinn_fast.data.images import Photo, decode_photo, list_photos
from diinn_fast.evaluation.candidates import Candidate
from diinn_fast.evaluation.inputs import Inputs
from diinn_fast.evaluation.results import Results, Row
from diinn_fast.metrics import Protocol, degrade, score


class DataSet(NamedTuple):
    """A folder of HR images, the protocol of its scores, and the degradation of its LR images."""

    name: str
    photos: list[Photo]
    protocol: Protocol
    metrics: tuple[str, ...]
    inputs: Inputs = Inputs()

    def suffering(self, inputs: Inputs) -> DataSet:
        """The same set under other inputs, ``Set5-jpeg40``."""
        name = self.name if inputs == Inputs() else f"{self.name}-{inputs.name}"
        return self._replace(name=name, inputs=inputs)

    def pair(self, pixels: Tensor, image: str, scale: float) -> Pair:
        """LR as a model gets it and HR, of an image uint8 ``[3, H, W]`` called ``image``."""
        lr, hr = make_pair(pixels, scale, self.protocol)
        return Pair(self.inputs(lr, image), hr)


def open_set(folder: Path, protocol: Protocol, metrics: tuple[str, ...]) -> DataSet:
    """Raises DataError where there are no images; of a training set's layout the validation images
    are taken.
    """
    return DataSet(folder.resolve().name, list_photos(folder, "valid"), protocol, metrics)


class Pair(NamedTuple):
    """LR and HR image of a scale, ``[1, 3, ., .]`` in [0, 1]."""

    lr: Tensor
    hr: Tensor


def make_pair(pixels: Tensor, scale: float, protocol: Protocol) -> Pair:
    """LR and HR of an image, uint8 ``[3, H, W]``."""
    lr_size, size = protocol.sizes(pixels.shape[1], pixels.shape[2], scale)
    hr = pixels[None, :, : size[0], : size[1]].float() / 255
    return Pair(degrade(hr, lr_size, protocol.mirrored), hr)


def read_pixels(photo: Photo, device: torch.device) -> Tensor:
    """uint8 ``[3, H, W]``; grey is repeated."""
    return torch.from_numpy(decode_photo(photo)).permute(2, 0, 1).to(device)


def scale_text(scale: float) -> str:
    """The scale as it stands in results and file names."""
    return f"{scale:g}"


@torch.inference_mode()
def evaluate(
    candidates: Sequence[Candidate],
    sets: Sequence[DataSet],
    scales: Sequence[float],
    results: Results,
    device: torch.device,
    quiet: bool = False,
) -> None:
    """Add to ``results`` the rows that it does not have yet."""
    # What is in the results already is neither read nor computed.
    todo = {
        (n, photo.name): jobs
        for n, data in enumerate(sets)
        for photo in data.photos
        if (jobs := _missing(data, photo, candidates, scales, results))
    }
    with tqdm(
        total=sum(map(len, todo.values())), unit="image", disable=True if quiet else None
    ) as progress:
        for n, data in enumerate(sets):
            for photo in data.photos:
                jobs = todo.get((n, photo.name), [])
                pixels = read_pixels(photo, device) if jobs else torch.empty(0)
                pair: Pair | None = None
                at: float | None = None
                for candidate, scale in jobs:
                    progress.set_postfix_str(
                        f"{data.name} {Path(photo.name).name} x{scale:g} {candidate.label}"
                    )
                    # Candidates of one scale share the pair: making it costs as much as a small
                    # model.
                    if pair is None or scale != at:
                        pair = data.pair(pixels, Path(photo.name).name, scale)
                        at = scale
                    results.add(_measure(candidate, data, photo, pair, scale))
                    progress.update()


def _missing(
    data: DataSet,
    photo: Photo,
    candidates: Sequence[Candidate],
    scales: Sequence[float],
    results: Results,
) -> list[tuple[Candidate, float]]:
    jobs = [(candidate, scale) for scale in scales for candidate in candidates]
    return [
        (candidate, scale)
        for candidate, scale in jobs
        if (row := results.rows.get(_blank(candidate, data, photo, scale).key)) is None
        or not row.has(data.metrics)
    ]


def _blank(candidate: Candidate, data: DataSet, photo: Photo, scale: float) -> Row:
    name = Path(photo.name).name
    return Row(
        data.protocol.name, data.name, name, scale_text(scale), candidate.label, candidate.weights
    )


def _measure(candidate: Candidate, data: DataSet, photo: Photo, pair: Pair, scale: float) -> Row:
    lr, hr = pair
    begin = time.perf_counter()
    sr = candidate.upscale(lr, (hr.shape[-2], hr.shape[-1]))
    if not torch.isfinite(sr).all():
        raise FloatingPointError(
            f"{candidate.label} gave NaN or infinity on {photo.name} at x{scale:g}"
        )
    seconds = time.perf_counter() - begin
    scores = score(sr, hr, scale, data.protocol, data.metrics, (lr.shape[-2], lr.shape[-1]))
    blank = _blank(candidate, data, photo, scale)
    return replace(blank, scores={**scores, "seconds": seconds})
