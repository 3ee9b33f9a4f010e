"""What it costs or saves to put the package in the published class's place:

    python -m bench.drop_in x2          a training step of the paper's recipe at one scale (x3, x4)
    python -m bench.drop_in step        the whole step: x2, x3 and x4, one backward, Adam
    python -m bench.drop_in bfloat16    the step at x2 under autocast
    python -m bench.drop_in plain       the decoder run layer by layer beside the published one
    python -m bench.drop_in guard       finding out whether layers were changed

Peers take turns in one process of one thread; seconds are of processor time, since machines are
shared. Memory is the peak beyond what was there before, each peer in a process of its own. Writes
bench/results/MACHINE/drop_in.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import machine
from bench.memory import resident_peak
from diinn_fast import DIINN, ImplicitDecoder, guard
from tests.helpers.published import Published, PublishedDecoder

SIDE = 48
"""Of an LR crop, as in the paper. Its batch is four crops of each scale; here it is one."""
STEPS = {"x2": (2,), "x3": (3,), "x4": (4,), "step": (2, 3, 4), "bfloat16": (2,)}
"""Scales of each step that is measured."""
Call = Callable[[], object]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*STEPS, "plain", "guard"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", choices=PEERS, help=argparse.SUPPRESS)  # in a child
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak(options.what, options.peak))
        return
    if files := machine.modified():
        sys.exit(f"commit or stash {', '.join(files)} first: the record names a commit")
    if options.what == "plain":
        found = plain(options.rounds)
    elif options.what == "guard":
        found = guarded(options.rounds)
    else:
        found = trained(options.what, options.rounds)
    save(options.what, found)


def save(what: str, found: dict[str, Any]) -> None:
    """Put what was found into this machine's file, beside what is there."""
    target = machine.ROOT / "bench" / "results" / machine.slug("cpu") / "drop_in.json"
    target.parent.mkdir(exist_ok=True)
    record = json.loads(target.read_text()) if target.exists() else {}
    command = " ".join(["python -m bench.drop_in", *sys.argv[1:]])
    record[what] = {"command": command, **machine.facts("cpu"), "found": found}
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, Any]:
    """Seconds of processor time of each call, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(round(time.process_time() - start, 6))
    return {
        name: {"median": statistics.median(each), "samples": each} for name, each in seconds.items()
    }


# -- training --------------------------------------------------------------------------------------


def published() -> nn.Module:
    """The published formulation with the paper's encoder."""
    return Published(rdn=(64, 64, 16, 8), width=256)


def recomputing() -> nn.Module:
    """This package's model, whose encoder recomputes in the backward."""
    net = DIINN()
    encoder: Any = net.encoder
    encoder.recompute = True
    return net


PEERS: dict[str, Callable[[], nn.Module]] = {
    "published": published,
    "diinn_fast": DIINN,
    "diinn_fast, recompute": recomputing,
}


def training_step(what: str, peer: str) -> Callable[[int], None]:
    """A step as the authors' training module does it: the losses of all scales, one backward.

    It takes the side of the LR crops.
    """
    torch.manual_seed(0)
    net = PEERS[peer]()
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)

    def step(side: int) -> None:
        optimizer.zero_grad()
        losses = []
        with torch.autocast("cpu", torch.bfloat16, enabled=what == "bfloat16"):
            for scale in STEPS[what]:
                crop = torch.rand(1, 3, side, side) * 2 - 1
                target = torch.rand(1, 3, scale * side, scale * side) * 2 - 1
                losses.append(F.l1_loss(net(crop, target.shape[-2:]).float(), target))
        torch.stack(losses).mean().backward()
        optimizer.step()

    return step


def trained(what: str, rounds: int) -> dict[str, Any]:
    """Seconds and memory of a training step of each peer."""
    peers = list(PEERS)[: 3 if what == "x4" else 2]
    steps = {peer: training_step(what, peer) for peer in peers}
    for step in steps.values():
        step(8)  # warms up
    found = in_turn({peer: partial(step, SIDE) for peer, step in steps.items()}, rounds)
    for peer in peers:
        command = [sys.executable, "-m", "bench.drop_in", what, "--peak", peer]
        done = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=True)
        found[peer]["extra_mib"] = int(done.stdout) >> 20
    return found


def peak(what: str, peer: str) -> int:
    """Bytes that a step holds beyond weights, gradients and Adam's moments."""
    step = training_step(what, peer)
    step(8)  # what is there after any step
    return resident_peak(partial(step, SIDE))[0]


# -- decoding --------------------------------------------------------------------------------------


def decoders() -> tuple[PublishedDecoder, ImplicitDecoder, Tensor]:
    """Both with the same weights, and features of a picture of 48 x 48."""
    torch.manual_seed(0)
    theirs = PublishedDecoder(64, 256, 3, False)
    ours = ImplicitDecoder(64, mode=3)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(1, 64, SIDE, SIDE)


def plain(rounds: int) -> dict[str, Any]:
    """Seconds of a decode at x2 and x4, without and with gradients, by the published class, by our
    layers one by one, and by the operator.
    """
    theirs, ours, features = decoders()
    found = {}
    for scale in (2, 4):
        size = (scale * SIDE, scale * SIDE)
        calls: dict[str, Callable[[], Tensor]] = {
            "published": partial(theirs, features, size),
            "plain": partial(ours, features, size, backend="plain"),
            "operator": partial(ours, features, size),
        }
        with torch.no_grad():
            in_turn(calls, 1)  # warms up
            found[f"x{scale}"] = in_turn(calls, rounds)
        steps = {name: partial(_backward, call) for name, call in calls.items()}
        found[f"x{scale} with gradients"] = in_turn(steps, rounds)
    return found


def _backward(call: Callable[[], Tensor]) -> None:
    call().square().mean().backward()


def guarded(rounds: int) -> dict[str, Any]:
    """Seconds of all checks of one call of the model, and of what they are part of, at x2."""
    net = DIINN().eval()
    features = torch.randn(1, 64, SIDE, SIDE)
    encoder: Any = net.encoder

    def checks_of_the_decoder() -> Sequence[str | None]:
        return guard.transform(features), net.decoder.edit()

    def checks_of_the_encoder() -> Sequence[str | None]:
        blocks = [(guard.transform(features), block.edit()) for block in encoder.RDBs]
        return guard.transform(features), encoder.edit(), *(edit for _, edit in blocks)

    def hundred(call: Call) -> None:
        for _ in range(100):
            call()

    size = (2 * SIDE, 2 * SIDE)
    calls: dict[str, Call] = {
        "100 checks of the decoder": partial(hundred, checks_of_the_decoder),
        "100 checks of RDN": partial(hundred, checks_of_the_encoder),
        "decode": partial(net.decoder, features, size),
        "RDN": partial(encoder, features[:, :3].contiguous()),
    }
    with torch.no_grad():
        in_turn(calls, 1)  # warms up
        return in_turn(calls, rounds)


if __name__ == "__main__":
    main()
