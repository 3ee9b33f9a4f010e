"""Train DIINN on a folder of photographs: ``python -m diinn_fast.training --data DIR --out RUN``.

Continuous scales in [1, 4] and sampled HR pixels (as LIIF trains), L1 loss on normalised colours, Adam with warm-up
and a cosine schedule, and an exponential moving average (EMA) of the weights, which is what is exported. Crops depend
on seed and step number only, so an interrupted run resumes exactly where its last checkpoint was.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from diinn_fast.data import CropSampler, degrade, load_photos
from diinn_fast.model import DIINN


def normalise(image: Tensor) -> Tensor:
    """[0, 1] to the network's [-1, 1]."""
    return (image - 0.5) / 0.5


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train_step(model: DIINN, groups: list, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """One optimiser step on groups of crops; returns the mean L1 loss (normalised units)."""
    lr = torch.cat([g.lr for g in groups]).contiguous(memory_format=torch.channels_last)
    features = model.encoder(normalise(lr)).split([len(g.lr) for g in groups])
    losses = [
        F.l1_loss(model.decoder.sample_pixels(f, g.yx, g.size), normalise(g.rgb))
        for f, g in zip(features, groups, strict=True)
    ]
    loss = torch.stack(losses).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def update_ema(ema: DIINN, model: DIINN, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def validate(model: DIINN, photos: list[Tensor], scales: tuple[int, ...] = (2, 4)) -> dict[str, float]:
    """Mean RGB PSNR (dB) on the central 192-pixel squares of held-out photos."""
    result = {}
    for scale in scales:
        total = 0.0
        for photo in photos:
            y, x = (n // 2 - 96 for n in photo.shape[1:])
            hr = photo[None, :, y : y + 192, x : x + 192].float() / 255
            sr = model(normalise(degrade(hr, (192 // scale, 192 // scale))), (192, 192)) * 0.5 + 0.5
            error = (sr.clamp(0, 1) - hr)[..., scale:-scale, scale:-scale]
            total += -10 * math.log10(error.square().mean().item())
        if photos:
            result[f"x{scale}"] = round(total / len(photos), 3)
    return result


def save_atomically(content: Any, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def export(model: DIINN, folder: Path) -> None:
    """A model folder as ``from_pretrained`` reads it: config.json and fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of photographs")
    parser.add_argument("--out", required=True, type=Path, help="folder of the run; an existing run is resumed")
    parser.add_argument("--encoder", default="edsr-baseline")
    parser.add_argument("--mode", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--groups", type=int, default=4, help="scales per step")
    parser.add_argument("--batch", type=int, default=2, help="crops per scale")
    parser.add_argument("--lr-size", type=int, default=32, help="side of the LR crops")
    parser.add_argument("--samples", type=int, default=1024, help="HR pixels per crop")
    parser.add_argument("--rate", type=float, default=4e-4, help="peak learning rate")
    parser.add_argument("--clip", type=float, default=0.5, help="gradient norm limit")
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold-out", type=int, default=6, help="photos kept for validation")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    options = parser.parse_args(arguments)

    photos = load_photos(options.data, round(options.lr_size * 4))
    names = list(photos)
    held = names[:: max(1, len(names) // max(1, options.hold_out))][: options.hold_out]
    training = [photos[n] for n in names if n not in held]
    validation = [photos[n] for n in held if min(photos[n].shape[1:]) >= 192]
    sampler = CropSampler(training, options.lr_size, options.samples)

    torch.manual_seed(options.seed)
    model = DIINN(options.mode, encoder=options.encoder)
    model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), options.rate, betas=(0.9, 0.99))
    options.out.mkdir(parents=True, exist_ok=True)
    last, log, step, seconds = options.out / "last.pt", options.out / "log.jsonl", 0, 0.0
    if last.exists():
        state = torch.load(last, weights_only=True)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]

    def save() -> None:
        states = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        save_atomically({**states, "step": step, "seconds": seconds}, last)

    bar = tqdm(total=options.steps, initial=step, unit="step", mininterval=10)
    running, count, start = 0.0, 0, time.monotonic()
    while step < options.steps:
        rate = learning_rate(step, options.steps, options.rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        groups = sampler.groups(options.seed, step, options.groups, options.batch)
        loss = train_step(model, groups, optimizer, options.clip)
        if not math.isfinite(loss):
            raise SystemExit(f"loss is {loss} at step {step}; the last good state is in {last}")
        step, running, count = step + 1, running + loss, count + 1
        update_ema(ema, model, min(options.ema, (1 + step) / (10 + step)))
        bar.update()
        if step % options.every == 0 or step == options.steps:
            seconds, start = seconds + time.monotonic() - start, time.monotonic()
            save()
            row = {"step": step, "seconds": round(seconds), "rate": rate, "l1": round(running / count, 5)}
            row |= validate(ema, validation)
            running, count = 0.0, 0
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix(row)
    export(ema, options.out / "model")


if __name__ == "__main__":
    main()
