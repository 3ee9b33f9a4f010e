"""DIINN as an architecture of spandrel, the model loader of chaiNNer, ComfyUI and others.

    import diinn_fast.integrations.spandrel
    diinn_fast.integrations.spandrel.install(scale=4)

From then on ``spandrel.ModelLoader`` recognises DIINN's files. spandrel knows integer scales only:
`install` chooses one; for any other scale use `diinn_fast` itself.
"""

from __future__ import annotations

from pathlib import Path

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)
from torch import Tensor

from diinn_fast.checkpoints import Checkpoint
from diinn_fast.model import DIINN

TENSORS = ("decoder.K.0.0.weight", "decoder.Q.0.0.weight", "decoder.last_layer.weight")
"""Tensors that a DIINN has and, all together, no other architecture of spandrel."""


class DIINNArchitecture(Architecture[DIINN]):
    """Recognises and loads DIINN at one integer scale: our files, and official checkpoints.

    Modes 2 and 3 have the same tensors, and spandrel hands over nothing else: they are read as
    mode 3, with a warning.
    """

    def __init__(self, scale: int) -> None:
        super().__init__(id="DIINN", detect=lambda state: _prefix(state) is not None)
        self.scale = scale

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[DIINN]:
        """The model of a state_dict."""
        prefix = _prefix(state_dict) or ""
        own = ("encoder.", "decoder.")
        named = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        state = {key: value for key, value in named.items() if key.startswith(own)}
        model = DIINN.from_tensors(Checkpoint(Path("of spandrel"), state, {}, None))
        scale = self.scale

        def call(model: DIINN, picture: Tensor) -> Tensor:
            h, w = picture.shape[-2:]
            # Pictures in [0, 1] there, normalised to [-1, 1] here.
            result: Tensor = model(picture * 2 - 1, (h * scale, w * scale)) * 0.5 + 0.5
            return result

        return ImageModelDescriptor(
            model,
            model.state_dict(),
            architecture=self,
            purpose="SR",
            tags=[f"mode {model.decoder.mode}"],
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(minimum=1),
            tiling=ModelTiling.SUPPORTED,
            call_fn=call,
        )


def install(scale: int = 4, registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Make spandrel know DIINN, at an integer scale. Only the first call counts: a registry keeps
    one entry per architecture.
    """
    support = ArchSupport.from_architecture(DIINNArchitecture(scale))
    registry.add(support, ignore_duplicates=True)


def _prefix(state: StateDict) -> str | None:
    """What stands before the names of a DIINN's tensors (Lightning: ``net.``); None: no DIINN."""
    for key in state:
        if key.endswith(TENSORS[0]):
            prefix: str = key.removesuffix(TENSORS[0])
            if all(prefix + name in state for name in TENSORS):
                return prefix
    return None
