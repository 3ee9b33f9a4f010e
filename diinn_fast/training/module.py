"""What is trained: a model, its loss, optimiser and schedule, and its scores on the validation
photos.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from diinn_fast.data import Crops, Pairs, degrade, make_pairs
from diinn_fast.data.degradations import Degradations
from diinn_fast.encoders import use_fast_weights
from diinn_fast.errors import DivergedError
from diinn_fast.formulation import FORMULATIONS
from diinn_fast.training.models import make_model
from diinn_fast.training.soap import Soap
from diinn_fast.training.teacher import Teacher

REWARM = 200
"""Steps over which the rate rises again where the optimiser's moments start from nothing (see
``portable``).
"""

OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "soap": Soap}


class SRModule(L.LightningModule):
    """L1 loss between a model's output and HR crops (or sampled HR pixels), mean over the step's
    scales.

    Checkpoints have the official layout: ``net.*``, ``sub``, ``div``; hyper-parameters ``arch``,
    ``mode``, ``init_q``.

    Args:
        arch: diinn, liif or metasr.
        mode: DIINN's formulation, 1 to 4.
        init_q: DIINN's initial modulation of content by position.
        encoder: name of an encoder (`diinn_fast.encoders.ENCODERS`).
        optimizer: adam, or soap (`diinn_fast.training.soap`).
        lr: peak learning rate.
        betas: decay rates of the optimiser's two moments.
        schedule: step multiplies the rate by lr_gamma every lr_step steps; cosine goes down to
            lr_final of the peak at the last step.
        lr_step: steps between reductions of schedule step.
        lr_gamma: factor of each reduction of schedule step.
        lr_final: last rate of schedule cosine, as a fraction of the peak.
        warmup: steps in which the rate rises linearly.
        fp32_from: fraction of the steps after which a run in mixed precision goes on in float32.
        frozen_encoder: train the decoder only, on the encoder's features as they are.
        teacher: name or path of a trained model that shows what to make of the LR crops as they
            were before they were spoiled; none: the photographs alone are the targets.
        teacher_share: of the teacher's output in the targets.
        teacher_features: weight of the distance between both encoders' features.
    """

    def __init__(
        self,
        arch: str = "diinn",
        mode: int = 3,
        init_q: bool = False,
        encoder: str = "rdn",
        optimizer: Literal["adam", "soap"] = "adam",
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Literal["step", "cosine", "constant"] = "constant",
        lr_step: int = 10_000,
        lr_gamma: float = 0.5,
        lr_final: float = 0.01,
        warmup: int = 0,
        fp32_from: float = 1.0,
        frozen_encoder: bool = False,
        teacher: str | None = None,
        teacher_share: float = 0.5,
        teacher_features: float = 0.03,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        net: Any = make_model(arch, encoder, mode, init_q)
        self.net = net
        use_fast_weights(net.encoder)
        if frozen_encoder:
            net.encoder.requires_grad_(False)
        # No submodule: checkpoints have the model in training only.
        self._teacher: Teacher | None = None
        self.register_buffer("sub", torch.full((1, 1, 1, 1), 0.5))
        self.register_buffer("div", torch.full((1, 1, 1, 1), 0.5))
        self._recent: deque[float] = deque()  # losses since the last one logged
        # Step at which the moments were last empty; at first the warm-up is `warmup`'s.
        self.moments_from = -REWARM

    def normalise(self, image: Tensor) -> Tensor:
        """[0, 1] to the network's [-1, 1]."""
        return (image - 0.5) / 0.5

    def forward(self, lr: Tensor, size: tuple[int, int]) -> Tensor:
        """SR image of an LR one, both in [0, 1]."""
        result: Tensor = (self.net(self.normalise(lr), size) * 0.5 + 0.5).clamp(0, 1)
        return result

    def setup(self, stage: str) -> None:
        """ValueError for crops sampled at points, of a mode that needs the grid."""
        data = getattr(self.trainer, "datamodule", None)
        if (
            self.hparams["arch"] == "diinn"
            and FORMULATIONS[self.hparams["mode"]].needs_grid
            and data
            and data.sampling["samples"]
        ):
            raise ValueError(
                f"mode {self.hparams['mode']} cannot be sampled at points: train it on "
                "whole crops, --data.samples null"
            )

    # -- training ----------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Load the teacher, if there is one."""
        h = self.hparams
        if h["teacher"] is not None:
            self._teacher = Teacher(h["teacher"], h["teacher_share"], h["teacher_features"])

    def training_step(self, batch: list[Crops], batch_idx: int) -> Tensor:
        """The loss of a step; DivergedError if it is not finite."""
        step = self.global_step
        full = step >= self.hparams["fp32_from"] * self.total_steps
        # Pairs are data: 16 bit would round the targets.
        with torch.autocast(self.device.type, enabled=False):
            groups = [make_pairs(crops, self.degradations) for crops in batch]
            lr = self.normalise(torch.cat([pairs.lr for pairs in groups]))
        # The last steps run in float32, where 16-bit gradients are mostly noise.
        if full:
            with torch.autocast(self.device.type, enabled=False):
                loss = self.loss(lr, groups)
        else:
            loss = self.loss(lr, groups)
        if not math.isfinite(value := loss.item()):
            raise DivergedError(
                f"loss is {value} at step {step}: the last good state is kept; train on from it "
                "with a lower --model.lr"
            )
        # A mean over as many steps as lie between two lines of the log.
        window: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._recent.maxlen != window:
            self._recent = deque(maxlen=window)
        self._recent.append(value)
        self.log("train/l1", fmean(self._recent), prog_bar=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def loss(self, lr: Tensor, groups: list[Pairs]) -> Tensor:
        """Mean over groups of L1, in normalised units, and what a teacher adds; the LR crops of
        all groups are encoded together.
        """
        net: Any = self.net
        found = net.encoder(lr)
        counts = [len(pairs.lr) for pairs in groups]
        targets = [self.normalise(pairs.target) for pairs in groups]
        distance = found.new_zeros(())
        if (teacher := self._teacher) is not None:
            shown = teacher.encode(self.normalise(torch.cat([pairs.clean for pairs in groups])))
            distance = teacher.distance(found, shown)
            targets = [
                teacher.target(feature, pairs, target)
                for feature, pairs, target in zip(shown.split(counts), groups, targets, strict=True)
            ]
        # Groups differ in scale, hence in size: encoded together, decoded one by one.
        losses = []
        for feature, pairs, target in zip(found.split(counts), groups, targets, strict=True):
            if pairs.yx is None:
                rgb = net.decode(feature, pairs.size)
            else:
                rgb = net.sample_pixels(feature, pairs.yx, pairs.size)
            losses.append(F.l1_loss(rgb.float(), target))
        result: Tensor = torch.stack(losses).mean() + distance
        return result

    @property
    def degradations(self) -> Degradations | None:
        """What spoils the LR crops of training; None: nothing."""
        data = getattr(self.trainer, "datamodule", None)
        return None if data is None else data.degradations

    @property
    def total_steps(self) -> float:
        """Steps of the whole run, or infinity."""
        return self.trainer.max_steps if self.trainer.max_steps > 0 else math.inf

    def rate_factor(self, step: int) -> float:
        """Learning rate of a step, as a fraction of the peak."""
        h = self.hparams
        factor = min(1.0, (step + 1) / max(1, h["warmup"])) * min(
            1.0, (step - self.moments_from + 1) / REWARM
        )
        if h["schedule"] == "step":
            factor *= h["lr_gamma"] ** (step // h["lr_step"])
        elif h["schedule"] == "cosine":
            progress = (step - h["warmup"]) / max(1, self.total_steps - h["warmup"])
            factor *= h["lr_final"] + (1 - h["lr_final"]) * 0.5 * (
                1 + math.cos(math.pi * min(1.0, max(0.0, progress)))
            )
        return float(factor)

    def configure_optimizers(self) -> Any:
        """The optimiser, with a rate for every step (`rate_factor`)."""
        trained = [p for p in self.parameters() if p.requires_grad]
        make = OPTIMIZERS[self.hparams["optimizer"]]
        optimizer = make(trained, self.hparams["lr"], betas=self.hparams["betas"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.rate_factor(step)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    # -- validation --------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of a validation."""
        self._scores: dict[float, Tensor] = {}

    def validation_step(self, batch: tuple[Tensor, float, float], batch_idx: int) -> None:
        """RGB PSNR of one photo at one scale, as the authors validate: HR whole, a border of scale
        + 6 left out.
        """
        hr = batch[0].float() / 255
        scale = batch[1]
        weight = batch[2]
        h, w = (round(n / scale) for n in hr.shape[-2:])
        with torch.autocast(self.device.type, enabled=False):
            sr = self(degrade(hr, (h, w)), hr.shape[-2:])
        shave = int(scale) + 6
        error = (sr - hr)[..., shave:-shave, shave:-shave].square().mean()
        score = torch.stack([-10 * torch.log10(error), torch.ones_like(error)]) * weight
        self._scores[scale] = self._scores.get(scale, 0) + score

    def on_validation_epoch_end(self) -> None:
        """Means over all ranks' photos, by scale (``val/psnr_x2``) and of the scales
        (``val/psnr``).
        """
        totals = torch.stack([self._scores[scale] for scale in sorted(self._scores)])
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        means = totals[:, 0] / totals[:, 1]
        for scale, mean in zip(sorted(self._scores), means, strict=True):
            self.log(f"val/psnr_x{scale:g}", mean)
        self.log("val/psnr", means.mean(), prog_bar=True)

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """DivergedError for weights that are not finite: they replace no good ones."""
        if bad := [name for name, value in self.named_parameters() if not value.isfinite().all()]:
            raise DivergedError(
                f"{bad[0]} is not finite after step {self.global_step - 1}: the last good state "
                "is kept"
            )
        checkpoint["hyper_parameters"] = {
            k: v for k, v in self.hparams.items() if not k.startswith("_")
        }
        checkpoint["moments_from"] = self.moments_from

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the step at which the moments were last empty. ValueError for another
        optimiser's.
        """
        was = checkpoint.get("hyper_parameters", {}).get("optimizer", "adam")
        if was != (now := self.hparams["optimizer"]):
            raise ValueError(
                f"this run's optimiser is {was}: go on with --model.optimizer {was}, or start a "
                f"new run with {now} from its weights by --init"
            )
        self.moments_from = checkpoint.get("moments_from", -REWARM)
