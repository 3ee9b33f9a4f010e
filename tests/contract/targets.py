"""What the contract is tested on: each backend, instruction set, machine and dtype.

A new one is one more `Target` in `_targets`; it writes no test. A target that cannot run here says
why (`test_targets.py` reports it); all others are held to every promise that applies to them.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diinn_fast import backends
from diinn_fast.backends import cpu
from tests.helpers import emulated_gpu, interpreter
from tests.helpers.measure import rms
from tests.helpers.problems import (
    MODES,
    Case,
    Geometry,
    Network,
    Operands,
    integers_alone,
    operands,
    random_geometry,
)

ALL_FORMS = ("content", "modulation", "direct")
PROJECTED = ("content", "modulation")

GEOMETRIES: dict[str, list[Geometry]] = {
    # 1x1 input, one row, integer scale, anisotropic, down-scaling (the direct form)
    "many": [
        (1, 1, 7, 5),
        (1, 9, 3, 40),
        (5, 6, 20, 24),
        (4, 7, 9, 41),
        (9, 8, 4, 5),
        (11, 3, 7, 25),
    ],
    "few": [(1, 1, 3, 5), (3, 4, 7, 9), (4, 4, 3, 2)],
    "fewest": [(2, 3, 5, 7), (3, 3, 2, 2)],
    "large": [(1, 1, 3, 5), (3, 4, 13, 18), (6, 5, 4, 4), (5, 6, 21, 17), (24, 31, 75, 111)],
}
"""By what a target can afford; "fewest": gradients of those that can afford "few"."""
FEW_MODES = [(1, False), (3, False), (4, False), (2, True)]
"""Every form and recurrence once, where time is scarce."""
BRIEF_MODES = [(1, False), (3, False), (3, True)]
"""Every form once, where another target takes all modes through the same source."""
FORMS_OF_MODES = [("content", 3), ("modulation", 1), ("direct", 1), ("direct", 3)]
"""Every form of the operator and each recurrence of the direct form."""


def _nothing(patch: pytest.MonkeyPatch) -> None:
    """Nothing to do: the backend runs as it is."""


def _always() -> str | None:
    """No reason against it."""
    return None


@dataclass(frozen=True)
class Target:
    """One implementation of the decode operator in one dtype."""

    name: str
    backend: str
    """The name by which a decode asks for it."""
    dtype: torch.dtype
    device: str = "cpu"
    unavailable: Callable[[], str | None] = _always
    install: Callable[[pytest.MonkeyPatch], None] = _nothing
    """Makes it the one that runs in this test."""

    forms: tuple[str, ...] = ALL_FORMS
    sizes: str = "many"
    """Which of GEOMETRIES; "few" also means smaller operands and FEW_MODES in the longer tests."""
    brief: bool = False
    """Whether a twin of another dtype goes through the longer tests, and this one through mode 3's.
    """
    width: int = 64
    layers: int = 4
    channels: int = 5
    shapes: tuple[tuple[int, int, int], ...] = ((32, 2, 3), (96, 3, 5), (256, 4, 3))
    """Other hidden widths, numbers of layers and of output channels that its kernels take."""
    foreign_width: int | None = None
    """A hidden width that its kernels leave to plain PyTorch."""
    foreign_dtype: torch.dtype | None = None
    """A dtype that it refuses."""

    yardstick: str = "definition"
    """Whose error it is judged by: the definition or eager in its own dtype, bfloat16, or the CPU's
    int8, whose integers it has (in the hidden products: content is in its own dtype).
    """
    trains: bool = True
    """Whether it is for training too."""
    gradients_of: str | None = None
    """The target whose kernels compute its gradients too, and are tested there."""
    floor: float = 1e-7
    """Error that is always allowed, as a part of the exact values' root mean square."""
    worst: float | None = 3.0
    """Largest error, as a multiple of plain PyTorch's largest error."""
    kinks: bool = True
    """Whether gradients are also compared where rounding decides about whole terms."""
    precision: str = "ieee"
    """How a device multiplies float32: ieee or tf32."""

    exact_cuts: bool = True
    """Whether windows, points and batches have the bits of the whole. On a device this is a promise
    of the operator: the convolution before it is PyTorch's.
    """
    outside: str = "refused"
    """What a point outside the source gives: an IndexError (refused) or nan."""
    schedules: tuple[Callable[[], object], ...] = (_always,)
    """Orders of the work among which bits must not differ; none where it has no other order."""
    concurrent: bool = False
    """Whether several Python threads may decode at once."""
    kernels: tuple[str, str] | None = None
    """Functions of the backend's module that its self-check trusts or not, forward and
    backward.
    """

    def __str__(self) -> str:
        return self.name

    @property
    def small(self) -> bool:
        return self.sizes == "few"

    @property
    def gradients(self) -> bool:
        """Whether its gradients are tested."""
        return self.trains and self.gradients_of is None

    @property
    def modes(self) -> list[tuple[int, bool]]:
        """Modes, with and without init_q (which needs the direct form)."""
        chosen = BRIEF_MODES if self.brief else MODES
        if "direct" in self.forms:
            return chosen
        # The form *modulation* does not know mode 2 from mode 1; where time is not scarce, all.
        return [(m, q) for m, q in chosen if not q and (m != 2 or self.device != "cpu")]

    @property
    def few_modes(self) -> list[tuple[int, bool]]:
        """The modes of tests that take long."""
        if self.brief:
            return [(3, False)]
        return [m for m in self.modes if m in FEW_MODES] if self.small else self.modes

    @property
    def few_forms(self) -> list[tuple[str, int]]:
        """Forms and modes of the operator, for tests that take long."""
        return [("content", 3)] if self.brief else self.all_forms

    @property
    def all_forms(self) -> list[tuple[str, int]]:
        """Forms of the operator that it takes, with a mode of each."""
        return [(form, mode) for form, mode in FORMS_OF_MODES if form in self.forms]

    @property
    def loose(self) -> float:
        """How far two ways to the same decode may be apart, as a part of its values."""
        if self.yardstick in ("bfloat16", "int8") or self.dtype == torch.bfloat16:
            return 0.1
        if self.dtype == torch.float16 or self.precision == "tf32":
            return 2e-2
        return 1e-11 if self.dtype == torch.float64 else 1e-4

    def network(self, mode: int, init_q: bool = False, kinks: bool = True) -> Network:
        return Network(
            mode, init_q, self.width, self.channels, self.layers,
            dtype=self.dtype, device=self.device, kinks=kinks,
        )  # fmt: skip

    def operands(self, form: str, mode: int, **changes: Any) -> Operands:
        """Operands of the operator in its own width, layers, dtype and device, unless changed."""
        own = {"width": self.width, "layers": self.layers}
        return operands(form, mode, dtype=self.dtype, device=self.device, **(own | changes))

    def cases(self, mode: int, init_q: bool, *, gradients: bool = False) -> Iterator[Case]:
        """Geometries it can afford, with changing batches, layouts and windows."""
        rng = random.Random(f"{mode}{init_q}{gradients}")
        shortened = self.small and (self.brief or init_q)  # init_q takes ten times as long
        if self.small and gradients:
            geometries = GEOMETRIES["fewest"][: 1 if shortened else None]
        else:
            geometries = GEOMETRIES[self.sizes][: 2 if shortened else None]
        drawn = 0 if self.small else 2 if gradients else 4
        geometries = geometries + [random_geometry(rng, mode) for _ in range(drawn)]
        network = self.network(mode, init_q, kinks=self.kinks or not gradients)
        for n, geometry in enumerate(geometries):
            layout = ("contiguous", "transposed", "channels_last")[n % 3]
            batch = (1, 2, 2 if self.small else 3)[n % 3]
            case = Case(network, geometry, batch, layout=layout)
            if "direct" in self.forms or not case.direct:
                yield case
        if not shortened and not (self.small and gradients):
            whole = geometries[1]
            yield Case(network, whole, 2, (whole[2] // 3, whole[2], 1, whole[3] - 1))

    def plain(self, problem: Operands) -> Tensor:
        """The operator by plain PyTorch, whose error it is judged by."""
        if self.yardstick == "int8":
            with integers_alone():
                return problem.cpu().decode("int8")
        judged = problem.to(torch.bfloat16) if self.yardstick == "bfloat16" else problem
        return judged.decode("eager")

    def judge(
        self, ours: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], what: str
    ) -> None:
        """Within twice plain PyTorch's error against the exact values, over all cases together: in
        one small output the ratio of errors is a matter of luck.
        """
        error, allowed, values = (
            torch.cat([v.detach().double().cpu().flatten() for v in side])
            for side in (
                [a - e for a, e in zip(ours, exact, strict=True)],
                [b - e for b, e in zip(plain, exact, strict=True)],
                exact,
            )
        )
        floor = self.floor * rms(values)
        found = f"{what}: {rms(error):.2e}, plain PyTorch {rms(allowed):.2e}, of {rms(values):.2e}"
        assert rms(error) <= 2 * rms(allowed) + floor, found
        if self.worst is not None:
            assert error.abs().max() <= self.worst * allowed.abs().max() + 30 * floor, what


# -- the list --------------------------------------------------------------------------------------


@cache
def all_targets() -> list[Target]:
    return [
        *_eager(),
        *_cpu(),
        *_int8(),
        *_interpreted(),
        *_interpreted_int8(),
        *_emulated(),
        *_emulated_int8(),
        *_device(),
    ]


@cache
def available() -> list[Target]:
    return [target for target in all_targets() if target.unavailable() is None]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _eager() -> Iterator[Target]:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        target = Target(
            f"eager-{_name(dtype)}",
            "eager",
            dtype,
            kinks=dtype in (torch.float64, torch.float32),
            exact_cuts=dtype == torch.float32,
            brief=dtype in (torch.bfloat16, torch.float16),
            concurrent=dtype == torch.float32,  # threads take the same way in any
        )
        # float64 is judged by itself: the definition's own rounding is all that may differ.
        yield replace(target, floor=1e-12) if dtype == torch.float64 else target


def _cpu() -> Iterator[Target]:
    def missing(isa: str) -> str | None:
        module = cpu._load()
        if isinstance(module, str):
            return module
        sets = module.instruction_sets()
        return None if isa in sets else f"this CPU and build have {', '.join(sets)}"

    common = Target(
        "cpu",
        "cpu",
        torch.float32,
        foreign_width=48,
        foreign_dtype=torch.float64,
        schedules=_threads(),
        concurrent=True,
        kernels=("forward", "backward"),
    )
    for isa in ("avx512", "avx2", "portable"):
        yield replace(
            common,
            name=f"cpu-{isa}-float32",
            unavailable=partial(missing, isa),
            install=partial(_choose_isa, isa),
        )
    # The best instruction set's: kernels of their own, or those of float32.
    for dtype in (torch.bfloat16, torch.float16):
        yield replace(
            common,
            name=f"cpu-{_name(dtype)}",
            dtype=dtype,
            unavailable=partial(missing, "portable"),
            brief=dtype == torch.float16,
            yardstick="eager",
        )


def _choose_isa(isa: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("DIINN_FAST_CPU_ISA", isa)


def _int8_missing() -> str | None:
    result: str | None = backends.load("int8").unavailable()
    return result


def _int8() -> Iterator[Target]:
    """Of the best instruction set: tests/kernels/test_int8.py holds all to the same bits."""
    yield Target(
        "int8-float32",
        "int8",
        torch.float32,
        unavailable=_int8_missing,
        foreign_width=48,
        foreign_dtype=torch.float64,
        yardstick="bfloat16",
        trains=False,
        worst=None,
        schedules=_threads(),
    )


def _threads() -> tuple[Callable[[], None], ...]:
    """Numbers of threads among which a CPU kernel's bits must not differ."""
    return tuple(partial(torch.set_num_threads, count) for count in (1, 2, 3, 5))


def _interpreted() -> Iterator[Target]:
    def missing() -> str | None:
        return None if importlib.util.find_spec("triton") else "Triton is not installed"

    # Wider than a program of the backward; several blocks of features; many layers.
    shapes = {
        torch.float32: (192, 3, 3),
        torch.float16: (256, 2, 3),
        torch.bfloat16: (48, 5, 5),
    }
    for dtype, shape in shapes.items():
        yield Target(
            f"interpreted-triton-{_name(dtype)}",
            "triton",
            dtype,
            unavailable=missing,
            install=interpreter.install,
            sizes="few",
            width=32,
            layers=3,
            channels=16,
            shapes=(shape,),
            brief=dtype != torch.float32,
            foreign_width=20,
            foreign_dtype=torch.float64,
            kinks=False,
            exact_cuts=False,  # NumPy's products depend on a row's place
            outside="nan",
            schedules=(),  # one program after the other
        )


def _interpreted_int8() -> Iterator[Target]:
    """float32 features; integer sums, and sums in a fixed order: the bits of any cut."""
    missing = None if importlib.util.find_spec("triton") else "Triton is not installed"
    yield Target(
        "interpreted-triton_int8-float32",
        "triton_int8",
        torch.float32,
        unavailable=lambda: missing,
        install=interpreter.install,
        forms=PROJECTED,
        sizes="few",
        width=32,
        layers=3,
        channels=16,
        shapes=((96, 3, 5), (64, 5, 5)),
        foreign_width=48,
        foreign_dtype=torch.float64,
        yardstick="bfloat16",
        trains=False,
        worst=None,
        outside="nan",
        schedules=(),
    )


def _orders() -> tuple[Callable[[], object], ...]:
    """Blocks at a time and seeds of the emulated machine among which bits must not differ."""
    orders = [(1, 1), (2, 2), (5, 3), (4, 4)]
    return tuple(partial(emulated_gpu.schedule, *order) for order in orders)


def _emulated() -> Iterator[Target]:
    # A backward recomputes by the portable kernel, whatever the forward's.
    recomputed = {"hopper": "portable"}
    for kernel in emulated_gpu.ARCHITECTURES:
        for dtype in (torch.float16, torch.bfloat16):
            other = recomputed.get(kernel)
            yield Target(
                f"emulated-cuda-{kernel}-{_name(dtype)}",
                "cuda",
                dtype,
                unavailable=emulated_gpu.unavailable,
                install=partial(emulated_gpu.install, kernel=kernel),
                forms=PROJECTED,
                gradients_of=other and f"emulated-cuda-{other}-{_name(dtype)}",
                sizes="few",
                width=256,
                layers=3,
                channels=4,
                shapes=((256, 2, 9), (256, 5, 1)),
                brief=dtype == torch.bfloat16,
                foreign_width=32,
                foreign_dtype=torch.float32,
                yardstick="eager",
                kinks=False,
                outside="nan",
                schedules=_orders(),
                kernels=("_forward", "_backward"),
            )


def _emulated_int8() -> Iterator[Target]:
    for dtype in (torch.float16, torch.bfloat16):
        yield Target(
            f"emulated-cuda_int8-{_name(dtype)}",
            "cuda_int8",
            dtype,
            unavailable=lambda: emulated_gpu.unavailable() or _int8_missing(),
            install=partial(emulated_gpu.install, kernel="portable"),
            forms=PROJECTED,
            sizes="few",
            width=256,
            layers=3,
            channels=4,
            shapes=((256, 2, 9), (256, 5, 1)),
            brief=dtype == torch.bfloat16,
            foreign_width=32,
            foreign_dtype=torch.float32,
            yardstick="int8",
            trains=False,
            worst=None,
            outside="nan",
            schedules=_orders(),
        )


def _device() -> Iterator[Target]:
    """The GPU backends where they run, at the published size."""

    def missing(backend: str) -> str | None:
        result: str | None = backends.load(backend).unavailable()
        return result

    def missing_int8(backend: str) -> str | None:
        return missing(backend) or _int8_missing()

    common = Target(
        "device",
        "triton",
        torch.float32,
        device="cuda",
        sizes="large",
        width=256,
        channels=64,
        shapes=((256, 4, 3),),  # no others: each takes seconds to compile
        worst=None,
        kinks=False,
        outside="nan",
        kernels=("_forward", "_backward"),
    )
    dtypes = {
        "float32": torch.float32,
        "tf32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    for name, dtype in dtypes.items():
        precision = "tf32" if name == "tf32" else "ieee"
        yield replace(
            common,
            name=f"device-triton-{name}",
            dtype=dtype,
            unavailable=partial(missing, "triton"),
            precision=precision,
            # For tiny shapes the framework's own convolution may be an exact one, and its error
            # says nothing then.
            floor=3e-3 if name == "tf32" else common.floor,
            install=partial(_multiply, precision),
            foreign_width=20,
            foreign_dtype=torch.float64,
        )
        if name != "tf32":
            yield replace(
                common,
                name=f"device-triton_int8-{name}",
                backend="triton_int8",
                dtype=dtype,
                unavailable=partial(missing_int8, "triton_int8"),
                forms=PROJECTED,
                install=partial(_multiply, precision),
                foreign_width=48,
                foreign_dtype=torch.float64,
                yardstick="int8",
                trains=False,
                kernels=None,
            )
        if dtype != torch.float32:
            cuda = replace(
                common,
                name=f"device-cuda-{name}",
                backend="cuda",
                dtype=dtype,
                unavailable=partial(missing, "cuda"),
                forms=PROJECTED,
                install=partial(_multiply, precision),
                foreign_width=32,
                foreign_dtype=torch.float32,
            )
            yield cuda
            yield replace(
                cuda,
                name=f"device-cuda_int8-{name}",
                backend="cuda_int8",
                unavailable=partial(missing_int8, "cuda_int8"),
                yardstick="int8",
                trains=False,
                kernels=None,
            )


def _multiply(precision: str, patch: pytest.MonkeyPatch) -> None:
    """Products of float32 as told, in both libraries."""
    for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        patch.setattr(setting, "fp32_precision", precision)


# -- parametrisation -------------------------------------------------------------------------------


def every(
    where: Callable[[Target], bool] = lambda target: True, quick: bool = False
) -> pytest.MarkDecorator:
    """The test for every target that can run here, or those of them that `where` is true for.
    It is a long one where a program plays the machine, and where a twin of another dtype goes
    through it too, unless it is said to be ``quick`` there as well.
    """
    chosen = [_values(target, quick=quick) for target in available() if where(target)]
    return pytest.mark.parametrize("target", chosen, indirect=True)


def every_mode(
    where: Callable[[Target], bool] = lambda target: True, few: bool = False, quick: bool = False
) -> pytest.MarkDecorator:
    """The same for each mode, with and without init_q; ``few``: some of them where time is
    scarce.
    """
    values = [
        _values(target, mode, init_q, name=f"mode{mode}{'-init_q' if init_q else ''}", quick=quick)
        for target in available()
        if where(target)
        for mode, init_q in (target.few_modes if few else target.modes)
    ]
    return pytest.mark.parametrize(("target", "mode", "init_q"), values, indirect=["target"])


def every_form(
    where: Callable[[Target], bool] = lambda target: True, few: bool = False, quick: bool = False
) -> pytest.MarkDecorator:
    """The same for each form of the operator, and each recurrence of the direct form."""
    values = [
        _values(target, form, mode, name=f"{form}-of-mode{mode}", quick=quick)
        for target in available()
        if where(target)
        for form, mode in (target.few_forms if few else target.all_forms)
    ]
    return pytest.mark.parametrize(("target", "form", "mode"), values, indirect=["target"])


def _values(target: Target, *rest: object, quick: bool, name: str = "") -> Any:
    """A test's parameters, which begin with the target."""
    marks = [pytest.mark.long] if (target.small or target.brief) and not quick else []
    return pytest.param(target, *rest, id=f"{target}-{name}" if name else str(target), marks=marks)
