"""Three ways to a larger picture: in memory, into a file of any size, and by windows on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diinn_fast.encoders.convolutions import with_halo
from diinn_fast.formats import Image
from diinn_fast.formats.bands import check_asked
from diinn_fast.formats.missing import Missing
from diinn_fast.formats.sample_range import SampleRange
from diinn_fast.geometry import Window
from diinn_fast.inference import rendering
from diinn_fast.inference.bicubic import resize_bicubic
from diinn_fast.inference.bleed import bleed_picture
from diinn_fast.inference.engine import Engine, to_unit
from diinn_fast.inference.kinds import as_request, each_channel
from diinn_fast.inference.memory import check_memory, parse_size
from diinn_fast.inference.neutral import is_neutral
from diinn_fast.inference.parts import Part
from diinn_fast.inference.progress import Bar, Progress, make_bar
from diinn_fast.inference.ranges import (
    DTYPE,
    Asked,
    check_range,
    choose_range,
    in_range,
    visible,
    warn_of_unused,
)
from diinn_fast.inference.reduced import needs_network, reduce_planes, reduced, reduced_size
from diinn_fast.inference.sizes import TargetSize, target_size, warn_of_aspect, warn_of_scale
from diinn_fast.inference.sources import open_source
from diinn_fast.inference.sources.inpainted import inpainted
from diinn_fast.inference.sources.memory import ImageSource
from diinn_fast.inference.sources.missing import without_missing
from diinn_fast.inference.view import View
from diinn_fast.inference.windows import copy_samples, put, resized_alpha
from diinn_fast.inference.wrapped import MARGIN, frame_of_copies, radius_of, wrapped
from diinn_fast.metadata import KEEP

if TYPE_CHECKING:
    from typing import Unpack

STRIP_PIXELS = 1 << 19
"""Output pixels decoded at a time: about a second's work of a CPU, a few MiB of floats."""

DEVICE_STRIP_PIXELS = 1 << 22
"""The same on a GPU: some ten milliseconds' work, after which the host looks at the numbers and
takes them.
"""


@dataclass(frozen=True)
class _Way:
    """How one picture in memory becomes samples: their range and type, whom to tell, and whether
    the picture tiles.
    """

    samples: SampleRange
    dtype: torch.dtype
    progress: Progress
    wrap: bool


class Upscaler(Engine):
    """A model made ready once, for any number of pictures; arguments as of `Engine`.

    Call it for a picture in memory, `render` into a file of any size, or `open` a picture to see
    windows of it. Afterwards ``used_backend`` names the backend that decoded, and
    ``used_precision`` the precision.
    """

    def __call__(
        self,
        image: Any,
        *,
        progress: Progress = False,
        metadata: str = KEEP,
        range: Asked = DTYPE,
        wrap: bool = False,
        bands: str | None = None,
        **target: Unpack[TargetSize],
    ) -> Any:
        """The picture at another size, as the same kind as it was given (a path gives an `Image`,
        which has a method `save`).

        Args:
            image: a path; an `Image`; a PIL image; an array [h, w] or [h, w, 1 to 4]
                of uint8, uint16 or float in [0, 1]; a float tensor [3, h, w] or [B, 3, h, w] in
                [0, 1].
            metadata: "keep", or "none": only profiles and what else tells what pixels mean.
            range: the sample values that are black and white to the network. "dtype": 0 and the
                largest of the type, for floats [0, 1]. "auto": the lowest and the highest that the
                picture has, which is right for data of 10 to 14 bits in 16-bit samples and for
                floats of any range. (low, high): these, the same for all tiles of a mosaic; what is
                beyond is cut off. The output has samples of the same range.
            wrap: the picture is a texture that tiles, and so is the output: beyond an edge lies the
                opposite one.
            bands: "each": every channel of an array [h, w, C] or tensor [..., C, h, w] is a grey
                picture of its own, whatever their number.
            progress: show a bar on stderr; or a function, see `Progress`.
            target: how large, as of `TargetSize`.

        Alpha is resized bicubically, and colour is bled under transparent pixels before the network
        sees them. Grey stays grey, and so do pictures whose three channels are equal everywhere. An
        axis that gets shorter is reduced by antialiased bicubic interpolation. Bit depth and
        metadata are kept; resolution grows with the pixels, so that the size on paper stays.

        Raises:
            UpscaleError: a request that cannot be met. ImageError, BackendError: likewise.
            FloatingPointError: the network's output is not finite (fp16 can overflow).
        """
        asked = check_range(range)
        if check_asked(bands):
            grey = partial(self, progress=progress, range=range, wrap=wrap, **target)
            return each_channel(grey, image)
        request = as_request(image, metadata, any_range=asked != DTYPE)
        height, width = request.images[0].rgb.shape[-2:]
        lr = height, width
        hr = target_size(lr, **target)
        engine = self.for_bits(request.bits)
        # Everything is refused before the first picture of a batch is computed.
        engine.check(lr, hr, request.images, request.dtype)
        warn_of_scale(lr, hr, self.model.trained_scales)
        warn_of_aspect(lr, hr, target)
        outputs = []
        for picture in request.images:
            samples = self._range_of(picture, asked, request.top)
            way = _Way(samples, request.dtype, progress, wrap)
            outputs.append(engine._upscale(picture, hr, way))
        return request.finish(outputs)

    def _range_of(self, picture: Image, asked: Asked, top: float) -> SampleRange:
        """The sample range of a picture in memory; says if it uses little of its own."""

        def parts() -> Iterator[Tensor]:
            yield visible(*_seen(picture))

        warn_of_unused(asked, top, parts)
        return choose_range(asked, top, parts, picture.metadata.levels)

    def render(
        self,
        picture: Any,
        out: str | os.PathLike[str],
        *,
        max_memory: int | str | None = None,
        halo: int | None = None,
        resume: bool = False,
        overwrite: bool = False,
        pyramid: bool = False,
        compress: bool = True,
        metadata: str = KEEP,
        range: Asked = DTYPE,
        wrap: bool = False,
        bands: str | None = None,
        progress: Progress = False,
        **target: Unpack[TargetSize],
    ) -> Path:
        """Upscale a picture of any kind and size into a file; returns its path.

        Args:
            picture: as of a call; files of tiled TIFF, .npy and Zarr are read by region.
            out: .png, .tif, .npy, .zarr or .ome.zarr.
            max_memory: bound on the process's peak resident memory (of the device's memory, where
                that is not the CPU): bytes, or "600MiB", "1.5GiB". Default: most of what is free.
            halo: LR pixels read around a tile; default: the encoder's receptive
                radius, so that tile borders are invisible. Fewer are an approximation, whose error
                is logged.
            resume: continue what was interrupted; a finished output of the same job is left as it
                is.
            overwrite: replace an existing output, or what was interrupted.
            pyramid: TIFF: add copies of half, a quarter, ... of the size (OME-Zarr always has
                them).
            compress: TIFF and Zarr: compress without loss; False is faster and larger.
            metadata: "keep", or "none": only profiles and what else tells what pixels mean.
            range, wrap: as of a call.
            bands: "each": every band is upscaled as a grey picture of its own, whatever their
                number; into .tif, .npy, .zarr or .ome.zarr.
            progress: show a bar on stderr; or a function, see `Progress`.
            target: how large, as of `TargetSize`.

        Started by ``torchrun``, processes share the tiles.

        Raises:
            UpscaleError, ImageError: what cannot be done. UnfinishedError, an UpscaleError: what
            could not go on, such as of a full disk; what is done is kept. FloatingPointError:
            likewise, the network's output is not finite.
            KeyboardInterrupt: on SIGINT and SIGTERM, when what is done has been kept.
        """
        spec = rendering.prepare(
            self,
            picture,
            out,
            max_memory=max_memory,
            halo=halo,
            pyramid=pyramid,
            compress=compress,
            metadata=metadata,
            range=range,
            wrap=wrap,
            bands=bands,
            **target,
        )
        rendering.run(spec, resume=resume, overwrite=overwrite, progress=progress)
        return spec.out

    def open(self, picture: Any, *, max_features: int | str = "1GiB", range: Asked = DTYPE) -> View:
        """A picture of which any window can be rendered at any size.

        Nothing is computed before a window asks for it. ``max_features`` bounds the features that
        are kept for further windows (256 bytes per LR pixel in fp32).
        """
        source = open_source(picture, range=range)
        return View(self, source, parse_size(max_features), picture)

    def check(
        self, lr: Sequence[int], hr: tuple[int, int], images: list[Image], dtype: torch.dtype
    ) -> None:
        """Refuse before the work what cannot be done in memory."""
        height, width = lr
        samples = sum(
            (1 if i.grey else 3) * dtype.itemsize + (4 if i.alpha is not None else 0)
            for i in images
        )
        ensemble = 12 if self.self_ensemble else 0
        bytes_out = hr[0] * hr[1] * (samples + ensemble)
        item = self.dtype.itemsize
        decoder = self.model.decoder
        self.check_sizes(lr, hr)
        small = reduced_size((height, width), hr)
        check_memory(self.model.encoder, decoder.in_channels, small, bytes_out, self.device, item)

    def strips(
        self, rgb: Tensor, hr: tuple[int, int], rows: int | None = None, bar: Bar | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The output of an LR picture ``[3, h, w]`` in [0, 1] from top to bottom: (first row,
        ``[3, n, W]``).

        Each has ``n <= rows`` rows (all at once with self_ensemble), float32 in [0, 1], on the
        device; the pixels do not depend on ``rows``. ``bar`` is told of every pixel decoded.
        """
        yield from self._strips(Part.whole(rgb, hr), rows, bar)

    def _strips(
        self, part: Part, rows: int | None, bar: Bar | None
    ) -> Iterator[tuple[int, Tensor]]:
        """`strips` of a window; rows are counted from its first."""
        ensemble = self.self_ensemble
        parts = self._ensemble(part, bar) if ensemble else self._decode(part, rows, bar)
        for y, strip in parts:
            yield y, to_unit(strip)

    @torch.inference_mode()
    def _decode(
        self, part: Part, rows: int | None, bar: Bar | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Bands of the network's raw output, in [-1, 1] or slightly beyond."""
        y0, y1, x0, x1 = part.window
        most = STRIP_PIXELS if self.device.type == "cpu" else DEVICE_STRIP_PIXELS
        step = rows or max(1, most // (x1 - x0))
        features = self.encode(part.rgb)
        for y in range(y0, y1, step):
            window = y, min(y + step, y1), x0, x1
            strip = self.decode(features, part.hr, window, (part.lr, part.origin))
            if bar is not None:
                bar.update(strip[0].numel())
            yield y - y0, strip

    @torch.inference_mode()
    def _ensemble(self, part: Part, bar: Bar | None) -> Iterator[tuple[int, Tensor]]:
        """The mean over the 8 symmetries of the square, of the raw outputs turned back, as one
        strip.
        """
        total = torch.zeros(3, *part.window.shape, device=self.device)
        for symmetry in range(8):
            transposed = bool(symmetry & 4)
            flipped = [d for d in (1, 2) if symmetry & d]
            sum_of_all = total.transpose(1, 2) if transposed else total
            height = sum_of_all.shape[1]
            for y, strip in self._decode(part.turned(transposed, flipped), None, bar):
                stop = y + strip.shape[1]
                place = slice(height - stop, height - y) if 1 in flipped else slice(y, stop)
                sum_of_all[:, place] += strip.flip(flipped)
        yield 0, total.div_(8)

    def _upscale(self, picture: Image, hr: tuple[int, int], way: _Way) -> Tensor:
        """Planes ``[C, H, W]``, on the CPU; colour (or grey), then alpha."""
        if way.wrap:
            return self._upscale_texture(picture, hr, way)
        rgb, alpha = _seen(picture)
        rgb = way.samples.to_unit(rgb)
        if alpha is not None:
            rgb = bleed_picture(rgb, alpha)
        neutral = picture.grey or is_neutral(rgb)
        # What gets smaller is reduced before the network, which enlarges the rest.
        lr = rgb.shape[1], rgb.shape[2]
        small = reduced_size(lr, hr)
        rgb = reduce_planes(rgb, small)
        alpha = None if alpha is None else reduce_planes(alpha, small)
        kind = _Kind(picture.grey, picture.alpha is not None, way.samples, picture.missing)
        out = torch.empty(*hr, (1 if kind.grey else 3) + kind.alpha, dtype=way.dtype)
        samples = out.numpy()
        # Made once, in its own dtype: beside it only strips of floats are held.
        if not needs_network(lr, hr):
            put(samples, kind, rgb[:1] if kind.grey else rgb, alpha)
            return out.permute(2, 0, 1)
        with make_bar(way.progress, hr[0] * hr[1] * (8 if self.self_ensemble else 1)) as bar:
            for y, strip in self.strips(rgb, hr, bar=bar):
                window = Window(y, y + strip.shape[1], 0, hr[1])
                colours = strip.mean(0, keepdim=True) if neutral else strip
                opacity = None if alpha is None else resize_bicubic(alpha, hr, window)
                put(samples[y : window.y1], kind, colours, opacity)
        return out.permute(2, 0, 1)

    def _upscale_texture(self, picture: Image, hr: tuple[int, int], way: _Way) -> Tensor:
        """The same of a picture that tiles: the middle one of many copies."""
        source = in_range(without_missing(ImageSource(picture)), way.samples)
        frame = frame_of_copies((source.height, source.width), hr, self.model.encoder)
        source = inpainted(wrapped(source, frame))
        # The order is that of a render, so that both give the same bits.
        neutral = picture.grey or is_neutral(picture.rgb)
        source = reduced(source, frame.hr)
        out = torch.empty(*hr, (1 if picture.grey else 3) + source.alpha, dtype=way.dtype)
        samples = out.numpy()
        whole = frame.place(Window(0, hr[0], 0, hr[1]))
        if not needs_network((picture.rgb.shape[1], picture.rgb.shape[2]), hr):
            copy_samples(samples, source, whole)
            return out.permute(2, 0, 1)
        # One copy and what is seen around it, turned or not, decoded in strips.
        needed = self.model.decoder.lr_window(whole, frame.lr, frame.hr)
        region = with_halo(needed, frame.lr, radius_of(self.model.encoder) + MARGIN)
        rgb = source.read(*region)[0]
        part = Part(rgb, (region.y0, region.x0), frame.lr, frame.hr, whole)
        with make_bar(way.progress, hr[0] * hr[1] * (8 if self.self_ensemble else 1)) as bar:
            for y, strip in self._strips(part, None, bar):
                window = Window(whole.y0 + y, whole.y0 + y + strip.shape[1], whole.x0, whole.x1)
                colours = strip.mean(0, keepdim=True) if neutral else strip
                opacity = resized_alpha(source, frame.hr, window) if source.masked else None
                put(samples[y : y + strip.shape[1]], source, colours, opacity)
        return out.permute(2, 0, 1)


@dataclass(frozen=True)
class _Kind:
    """See `diinn_fast.inference.windows.Kind`."""

    grey: bool
    alpha: bool
    range: SampleRange
    missing: Missing | None


def _seen(picture: Image) -> tuple[Tensor, Tensor | None]:
    """Colours and alpha, in which missing samples are transparent."""
    if picture.missing is None:
        return picture.rgb, picture.alpha
    return picture.missing.split(picture.rgb, picture.alpha)
