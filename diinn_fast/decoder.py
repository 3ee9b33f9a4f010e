"""DIINN's implicit decoder: features and an HR size to RGB, by the decode operator.

Parameters and their names are the official ones, so that official checkpoints load; the computation
is not: the content products are done once per LR pixel (``project``), and one operator does the
rest per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from diinn_fast import backends, guard
from diinn_fast.borders import grow, lr_ranges
from diinn_fast.errors import EditError
from diinn_fast.formulation import Formulation, formulation
from diinn_fast.fused import Fused
from diinn_fast.geometry import Window, check_size, check_window, whole_number
from diinn_fast.packing import Layer, Layers
from diinn_fast.plain import Plain, Sine
from diinn_fast.problem import Problem
from diinn_fast.sampler import Sampler, Size

UNCALLED = ("step", "batched_step", "_make_pos_encoding")
"""Methods of the published class that this one does without."""


def _layer(in_channels: int, out_channels: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), activation)


class ImplicitDecoder(nn.Module):
    """Implicit decoder of DIINN (Nguyen & Beksi, WACV 2023, arXiv 2210.12593), modes 1 to 4.

    For a query with nearest-feature neighbourhood x (3x3xC) and position p = (dy, dx, area ratio),
    with q_0 = k_0 sin(Q_0 p) and k_0 = relu(K_0 x): q_i = k_i sin(Q_i q_{i-1}) and

    - mode 1: k_i = relu(K_i k_{i-1}) (eq. 6);  mode 2: k_i = relu(K_i [k_{i-1}, x]) (eq. 7);
    - mode 3: k_i = relu(K_i [q_{i-1}, x]) (eq. 4);  mode 4: as 3, the last layer a 3x3 convolution
      on the HR grid.

    ``init_q`` puts p' = sin(F p + f) in p's place and x * p' in x's (eq. 8-9).
    """

    def __init__(
        self,
        in_channels: int = 64,
        hidden_dims: Sequence[int] = (256, 256, 256, 256),
        mode: int = 1,
        init_q: bool = False,
    ) -> None:
        super().__init__()
        plan = formulation(mode, init_q)
        # Kernels and fused weights take layers as one matrix, hence of one width.
        if len(hidden_dims) < 2 or len(set(hidden_dims)) != 1:
            raise ValueError(
                "hidden_dims must be equal widths, two or more, such as [256] * 4: got "
                f"{list(hidden_dims)}"
            )
        self.in_channels = in_channels
        self.width = width = hidden_dims[0]
        self.mode = plan.mode
        self.init_q = plan.init_q
        # The 3x3 neighbourhood of the nearest feature, unfolded.
        content = in_channels * 9
        if init_q:
            self.first_layer = _layer(3, content, Sine())
        self.K = nn.ModuleList()
        self.Q = nn.ModuleList()
        # K_i and Q_i in turn, as the published class makes them: the same seed, the same weights
        for i in range(len(hidden_dims)):
            self.K.append(_layer(plan.modulation_inputs(i, width, content), width, nn.ReLU()))
            self.Q.append(_layer(width if i else (content if init_q else 3), width, Sine()))
        # Mode 4 mixes the neighbours of the output grid; the others work pixel by pixel.
        if plan.needs_grid:
            self.last_layer = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")
        else:
            self.last_layer = nn.Conv2d(width, 3, 1)

    @property
    def formulation(self) -> Formulation:
        """What this decoder's mode computes."""
        return formulation(self.mode, self.init_q)

    def forward(
        self,
        features: Tensor,
        size: Sequence[int],
        bsize: int | None = None,
        *,
        window: Sequence[int] | None = None,
        tile: tuple[tuple[int, int], tuple[int, int]] | None = None,
        backend: str | None = None,
        prepared: Fused | Plain | None = None,
    ) -> Tensor:
        """RGB ``[B, 3, H, W]`` of features ``[B, C, h, w]`` at HR ``size`` (H, W).

        ``window`` (y0, y1, x0, x1) returns exactly that part of the whole,
        ``[B, 3, y1-y0, x1-x0]``. ``tile`` ((h, w), (i, j)) says that the features are a part of
        those of an image of h x w, from row i and column j on; it must hold the `lr_window` of the
        window. ``bsize`` limits the queries processed at a time. ``prepared`` (see `prepare`) is
        used in place of ``backend`` and of the weights. Output dtype: autocast's, else the input's.
        """
        features = self._check_features(features)
        lr, origin = tile or ((features.shape[-2], features.shape[-1]), (0, 0))
        size = check_size(size, lr)
        # All sizes are checked before anything is computed: kernels read where they are told to.
        cut = check_window(window, size)
        if tile is not None:
            self._check_tile(features, lr, origin, size, cut)
        chunk = 0 if bsize is None else whole_number(bsize, "bsize")
        if bsize is not None and chunk < 1:
            raise ValueError(f"bsize must be at least 1 query, got {bsize}")
        if min(size) < self.formulation.least_side:
            raise ValueError(
                f"mode {self.mode} needs an output of at least 2x2 pixels, got {size[0]}x{size[1]}"
            )
        # Fused kernels, or the layers one by one where something was changed inside them.
        path = prepared or self._path(features, backend)
        if not self._needs_grad(features):
            return path.strips(features, lr, origin, size, cut, chunk)
        if prepared is not None:
            raise ValueError("what was prepared has no gradients: decode under torch.no_grad()")
        return path.window(features, lr, origin, size, cut, chunk)

    def prepare(self, features: Tensor, *, backend: str | None = None) -> Fused | Plain:
        """How to decode features of this dtype and device, for many calls of `forward` without
        gradients: weights are read and packed once, and must not change meanwhile.
        """
        return self._path(self._check_features(features), backend)

    def lr_window(self, window: Sequence[int], lr: tuple[int, int], size: Sequence[int]) -> Window:
        """Rows and columns of the features of an image of size ``lr`` that decoding ``window``
        looks at.
        """
        size = check_size(size, lr)
        cut = check_window(window, size)
        grown = grow(cut, size) if self.formulation.needs_grid else cut
        rows, columns = lr_ranges(grown, lr, size)
        top = max(rows.start - 1, 0)
        left = max(columns.start - 1, 0)
        return Window(top, min(rows.stop + 1, lr[0]), left, min(columns.stop + 1, lr[1]))

    def sample(
        self, features: Tensor, coords: Tensor, size: Size, *, backend: str | None = None
    ) -> Tensor:
        """RGB ``[B, N, 3]`` at coords ``[B, N, 2]``, (y, x) in [-1, 1], as if on an HR grid of
        ``size``: (height, width), or one for each image, ``[B, 2]``.

        The nearest feature is ``clamp(floor((v + 1) / 2 * n), 0, n - 1)``, offsets are
        ``(v + 1) * n - (2i + 1)``; the area ratio comes from ``size``. Where a pixel centre lies
        exactly between two features (at x1.5, for instance), `forward` may take the other one:
        `sample_pixels` equals it everywhere. Mode 4 is refused: its last layer needs a grid. For
        many calls on the same features, see `sampler`.
        """
        return self._sampler(features, coords, backend)(coords, size)

    def sample_pixels(
        self, features: Tensor, yx: Tensor, size: Size, *, backend: str | None = None
    ) -> Tensor:
        """RGB ``[B, N, 3]`` of the HR pixels yx ``[B, N, 2]`` int64 (row, column) on a grid of
        ``size``, one or ``[B, 2]``: equals ``forward`` at those.

        Raises IndexError for a pixel outside the grid.
        """
        return self._sampler(features, yx, backend).pixels(yx, size)

    def sampler(self, features: Tensor, *, backend: str | None = None) -> Sampler:
        """`sample` and `sample_pixels` of these features, which are projected once here.

        >>> sampler = decoder.sampler(features)
        >>> parts = [sampler(part, size) for part in coords.split(30000, dim=1)]
        """
        return self._sampler(features, None, backend)

    def _sampler(self, features: Tensor, points: Tensor | None, backend: str | None) -> Sampler:
        features = self._check_features(features)
        if self.formulation.needs_grid:
            raise ValueError(
                f"mode {self.mode} cannot be sampled at points: its last layer needs the whole grid"
            )
        lr = features.shape[-2], features.shape[-1]
        many = points is None or points.ndim != 3
        queries = lr[0] * lr[1] if many else points.shape[1]  # type: ignore[union-attr]
        path = self._path(features, backend, points)
        return Sampler(path, features, self.formulation.form(lr, queries))

    # -- the two paths -----------------------------------------------------------------------------

    def layers(self) -> Layers:
        """The values of all layers now."""
        return Layers(
            modulation=[_read(layer) for layer in self.K],
            synthesis=[_read(layer) for layer in self.Q],
            last=_read_convolution(self.last_layer),
            first=_read(self.first_layer) if self.init_q else None,
        )

    def project(self, padded: Tensor, backend: str | None = None) -> Tensor:
        """LR-size source of the decode operator; see `Fused.project`."""
        return self._fused(backend or backends.requested()).project(padded)

    def backend_for(
        self,
        lr: tuple[int, int],
        size: tuple[int, int],
        like: Tensor,
        backend: str | None = None,
    ) -> str:
        """Name of the backend that decodes LR to HR size in ``like``'s dtype and device;
        BackendError if the one asked for cannot.
        """
        name = backends.requested() if backend is None else backend
        if name == backends.PLAIN or self.edit():
            return backends.PLAIN
        form = self.formulation.form(lr, size[0] * size[1])
        channels = self.in_channels if form == "direct" else len(self.K) * self.width
        problem = Problem(form, self.mode, lr, (0, 0), size, None, None, None, 0)
        module = backends.choose(name, problem, like.new_empty(1, 3, 3, channels))
        return module.__name__.rpartition(".")[2]

    def edit(self) -> str | None:
        """What was changed inside the decoder so that its layers must be called, or None.

        Raises EditError for a method of the published class that would not be called.
        """
        self._check_methods()
        if reason := guard.list_edit(self.K) or guard.list_edit(self.Q):
            return f"decoder.K or decoder.Q {reason}"
        if len(self.K) != len(self.Q):
            return f"decoder.K has {len(self.K)} layers, decoder.Q {len(self.Q)}"
        plan = self.formulation
        content = 9 * self.in_channels
        # Shapes that the constructor has given; another shape means another layer.
        inputs = [plan.modulation_inputs(n, self.width, content) for n in range(len(self.K))]
        for name, layers, activation in (("K", self.K, nn.ReLU), ("Q", self.Q, Sine)):
            if name == "Q":
                inputs = [content if plan.init_q else 3, *[self.width] * (len(self.Q) - 1)]
            for n, layer in enumerate(layers):
                if reason := _layer_edit(layer, inputs[n], self.width, activation):
                    return f"decoder.{name}[{n}] {reason}"
        if plan.init_q and (reason := _layer_edit(self.first_layer, 3, content, Sine)):
            return f"decoder.first_layer {reason}"
        kernel = (3, 1, "reflect") if plan.needs_grid else (1, 0, "zeros")
        reason = guard.convolution_edit(self.last_layer, self.width, None, *kernel)
        return f"decoder.last_layer {reason}" if reason else None

    def _check_methods(self) -> None:
        for name in UNCALLED:
            if name in self.__dict__ or hasattr(type(self), name):
                raise EditError(
                    f"decoder.{name} is not called here: change the layers, or override forward"
                )

    def _path(
        self, features: Tensor, backend: str | None, points: Tensor | None = None
    ) -> Fused | Plain:
        """How to decode these features: by the operator, or layer by layer where that would not be
        the same.
        """
        name = backends.requested() if backend is None else backend
        if name == backends.PLAIN:
            return self._plain()
        reason = guard.transform(features) or self.edit()
        if points is not None and points.requires_grad and torch.is_grad_enabled():
            reason = "coordinates require a gradient"
        if reason:
            guard.say("the decoder", reason)
            return self._plain()
        fused = self._fused(name)
        self._check_dtype(features, fused.layers)
        return fused

    def _fused(self, backend: str) -> Fused:
        layers = self.layers()
        projection = backends.projection(backend, layers.width, len(layers.synthesis))
        return Fused(layers, self.formulation, backend, projection, {})

    def _plain(self) -> Plain:
        first = self.first_layer if self.init_q else None
        return Plain(self.formulation, self.K, self.Q, self.last_layer, first)

    # -- dtypes and checks -------------------------------------------------------------------------

    def _check_features(self, features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"features must be [B, {self.in_channels}, h, w], got {list(features.shape)}"
            )
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}")
        if _autocast(features) and features.dtype != torch.float64:
            return features.to(torch.get_autocast_dtype(features.device.type))
        return features

    def _check_dtype(self, features: Tensor, layers: Layers) -> None:
        others = layers.dtypes - {features.dtype}
        if others and not _autocast(features):
            found = " and ".join(sorted(map(str, others)))
            raise ValueError(
                f"features are {features.dtype}, the decoder has tensors of {found}: convert one "
                "of them or use autocast"
            )

    def _check_tile(
        self,
        features: Tensor,
        lr: tuple[int, int],
        origin: tuple[int, int],
        size: tuple[int, int],
        window: Window,
    ) -> None:
        top, bottom, left, right = self.lr_window(window, lr, size)
        i, j = origin
        rows, columns = features.shape[-2:]
        if not (i <= top and bottom <= i + rows and j <= left and right <= j + columns):
            raise ValueError(
                f"window {tuple(window)} needs features of LR rows {top} to {bottom} and columns "
                f"{left} to {right}, "
                f"the tile has {i} to {i + rows} and {j} to {j + columns}"
            )

    def _needs_grad(self, features: Tensor) -> bool:
        return torch.is_grad_enabled() and (
            features.requires_grad or any(p.requires_grad for p in self.parameters())
        )


def _autocast(features: Tensor) -> bool:
    return not features.is_meta and torch.is_autocast_enabled(features.device.type)


def _layer_edit(
    layer: nn.Module, inputs: int, outputs: int, activation: type[nn.Module]
) -> str | None:
    convolution = partial(guard.convolution_edit, inputs=inputs, outputs=outputs)
    return guard.sequence_edit(layer, (convolution, partial(guard.layer_edit, kind=activation)))


def _read(layer: nn.Module) -> Layer:
    """The 1x1 convolution of a (convolution, activation) layer."""
    assert isinstance(layer, nn.Sequential)
    return _read_convolution(layer[0])


def _read_convolution(layer: nn.Module) -> Layer:
    assert isinstance(layer, nn.Conv2d)
    return Layer.read(layer)
