"""Crop sheets: the same detail by every model, side by side, to be judged by eye."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diinn_fast.evaluation.candidates import Candidate
from diinn_fast.evaluation.results import Results, Row
from diinn_fast.evaluation.run import DataSet, read_pixels, scale_text
from diinn_fast.metrics import score

PANEL = 288
"""Side of a panel on the sheet, pixels."""
CROP = 72
"""Side of the detail, HR pixels; larger at large scales, where less is to be seen."""
GAP = 16
CAPTION = 38
MARGIN = 24
INK = "#1d1d1f"
GREY = "#6b6b70"
ACCENT = "#d1495b"


@torch.inference_mode()
def write_sheets(
    candidates: Sequence[Candidate],
    data: DataSet,
    scale: float,
    count: int,
    results: Results,
    folder: Path,
    device: torch.device,
) -> list[Path]:
    """Sheets of the ``count`` images where models differ most, one file each; returns what was
    written.
    """
    written = []
    for name in _chosen_images(candidates, data, scale, results)[:count]:
        photo = next(p for p in data.photos if Path(p.name).name == name)
        lr, hr = data.pair(read_pixels(photo, device), name, scale)
        size = (hr.shape[-2], hr.shape[-1])
        lr_size = (lr.shape[-2], lr.shape[-1])
        outputs = [(c.label, c.upscale(lr, size).clamp(0, 1)) for c in candidates]
        # Larger scales show a larger crop: about as many LR pixels.
        side = min(*size, CROP if scale <= 4 else round(CROP * scale / 4))
        y, x = interesting_place([sr for _, sr in outputs], hr, side, int(scale))
        scores = [
            score(sr, hr, scale, data.protocol, ("psnr",), lr_size)["psnr"] for _, sr in outputs
        ]
        panels = [("LR", "", F.interpolate(lr, size, mode="nearest-exact"))]
        # The image's PSNR below each crop; a star marks the best.
        best = max(scores, default=0.0)
        for (label, sr), psnr in zip(outputs, scores, strict=True):
            panels.append(
                (label, f"{psnr:.2f} dB" + (" *" if len(scores) > 1 and psnr == best else ""), sr)
            )
        panels.append(("HR", "", hr))
        title = (
            f"{data.name} {Path(name).stem}, x{scale_text(scale)}",
            f"PSNR of the image, {data.protocol.name}",
        )
        path = folder / f"{data.name}-{Path(name).stem}-x{scale_text(scale)}.png"
        crops = [(a, b, v[0, :, y : y + side, x : x + side]) for a, b, v in panels]
        sheet(title, crops, hr[0], (y, x, side)).save(path)
        written.append(path)
    return written


def _chosen_images(
    candidates: Sequence[Candidate], data: DataSet, scale: float, results: Results
) -> list[str]:
    """File names, those first where the models' PSNR differs most; bicubic counts where there are
    too few others.
    """
    # Bicubic differs from every model on every image: it would hide where models differ.
    learned = [c for c in candidates if c.model is not None]
    chosen = learned if len(learned) > 1 else candidates
    spread = {}
    for photo in data.photos:
        name = Path(photo.name).name
        values = []
        for c in chosen:
            key = Row(
                data.protocol.name, data.name, name, scale_text(scale), c.label, c.weights
            ).key
            row = results.rows.get(key)
            psnr = row.scores.get("psnr", math.nan) if row is not None else math.nan
            if not math.isnan(psnr):
                values.append(psnr)
        spread[name] = max(values) - min(values) if values else 0.0
    return sorted(spread, key=lambda name: -spread[name])


def interesting_place(
    outputs: Sequence[Tensor], hr: Tensor, side: int, border: int
) -> tuple[int, int]:
    """Upper left corner of the square where outputs differ most from each other, or, of one output,
    from HR.
    """
    stack = torch.cat([*outputs] if len(outputs) > 1 else [*outputs, hr])
    difference = stack.var(dim=0, correction=0).mean(0)[None, None]  # [1, 1, H, W]
    mean = F.avg_pool2d(difference, side, stride=1)[0, 0]
    inside = mean[border : mean.shape[0] - border, border : mean.shape[1] - border]
    if not inside.numel():
        inside = mean
        border = 0
    place = int(inside.argmax())
    return place // inside.shape[1] + border, place % inside.shape[1] + border


def sheet(
    title: tuple[str, str],
    panels: Sequence[tuple[str, str, Tensor]],
    hr: Tensor,
    place: tuple[int, int, int],
) -> Image.Image:
    """The whole HR image with the place marked, then a panel (name, note, crop ``[3, n, n]``) each,
    in two rows.
    """
    y, x, side = place
    columns = (len(panels) + 1) // 2
    height = 2 * (PANEL + CAPTION) + GAP
    whole = _picture(hr)
    # Two lines of text stand below the image.
    width = min(round(whole.width * (height - CAPTION - 16) / whole.height), 3 * PANEL)
    zoom = width / whole.width
    whole = whole.resize((width, round(whole.height * zoom)), Image.Resampling.LANCZOS)
    ImageDraw.Draw(whole).rectangle(
        [round(v * zoom) for v in (x, y, x + side, y + side)], outline=ACCENT, width=3
    )
    canvas = Image.new(
        "RGB",
        (2 * MARGIN + width + 2 * GAP + columns * (PANEL + GAP) - GAP, 2 * MARGIN + height),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    canvas.paste(whole, (MARGIN, MARGIN))
    draw.text((MARGIN, MARGIN + whole.height + 6), title[0], INK, _font(18))
    draw.text((MARGIN, MARGIN + whole.height + 30), title[1], GREY, _font(15))
    # Crops are enlarged without interpolation: pixels must be seen as they are.
    for n, (name, note, crop) in enumerate(panels):
        row, column = divmod(n, columns)
        left = MARGIN + width + 2 * GAP + column * (PANEL + GAP)
        top = MARGIN + row * (PANEL + CAPTION + GAP)
        canvas.paste(_picture(crop).resize((PANEL, PANEL), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + PANEL + 6), name, INK, _font(18))
        draw.text(
            (left + PANEL, top + PANEL + 6),
            note,
            ACCENT if note.endswith("*") else GREY,
            _font(18),
            "ra",
        )
    return canvas


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
