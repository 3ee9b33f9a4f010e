"""What ``diinn-fast upscale`` says of its work."""

from __future__ import annotations


def factor_text(
    asked: float | tuple[float, ...] | None, lr: tuple[int, int], hr: tuple[int, int]
) -> str:
    if isinstance(asked, float):
        return f"x{asked:g}"
    vertical, horizontal = (f"x{out / n:.3g}" for out, n in zip(hr, lr, strict=True))
    return vertical if vertical == horizontal else f"{vertical} down, {horizontal} across"
