"""The thin base of every method: builds late, saves only what was trained, owns the optimizer step.

One loader batch is one optimizer step: a list of micro-batches. So `on_train_batch_end` is the step boundary for every
method and callback, and eight micro-batches of one row train exactly like one micro-batch of eight.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nexus.errors import NexusError
from nexus.functional.packing import split_micro_batch
from nexus.hardware.memory_remedies import KNOBS
from nexus.methods.gradients import Gradients
from nexus.methods.loraplus import raise_rates, scale_rates
from nexus.methods.step_guard import StepGuard
from nexus.models.adapters import apply_adapter
from nexus.models.checkpointing import checkpoint_layers
from nexus.models.compiled import compile_layers
from nexus.models.embedding import gradient_by_index
from nexus.models.loader import load_model, stored_weight
from nexus.models.neftune import add_noise
from nexus.models.saved_state import read_state
from nexus.types import LossOutput, LossUnit, MicroBatch

log = logging.getLogger(__name__)

#: Share of the steps in which `wsd` decays.
_WSD_DECAY = 0.2


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Rates of the step that comes: `train/lr`, and `train/lr_NAME` where a rule has a rate of its own.

    Args:
        optimizer: one whose groups may name their rule under `rate`; of several groups of a name the first one counts.

    Returns:
        Plain numbers by log key.
    """
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        found.setdefault("_".join(["train/lr", *filter(None, [group.get("rate")])]), float(group["lr"]))
    return found


def schedule_factor(step: int, *, schedule: str, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) uses.

    Args:
        step: index of the optimizer step.
        schedule: after a linear warm-up `cosine`, `linear`, `constant`, or `wsd` (warm-up, stable, decay: constant
            until the last fifth of the steps, then linear; arXiv 2404.06395, section 4).
        warmup_steps: steps of warm-up; the first step already learns.
        total_steps: steps of the whole phase.
        min_ratio: share that is left at the end of all but `constant`.

    Returns:
        A number in (0, 1].

    Raises:
        ValueError: for an unknown schedule.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        decay_steps = max(1, round(_WSD_DECAY * total_steps))
        return 1.0 - (1.0 - min_ratio) * min(1.0, max(0.0, (step - total_steps + decay_steps) / decay_steps))
    if schedule == "linear":
        return 1.0 - (1.0 - min_ratio) * progress
    if schedule == "cosine":
        return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {schedule!r}")


def seed_micro_batch(seed: int, *, step: int, index: int) -> None:
    """Make what a micro-batch draws (dropout, noise) a formula of its place; so nothing else can shift it.

    Neither pauses nor samples nor a resume change what is drawn, and no state of a generator needs to be saved.

    Args:
        seed: seed of the run.
        step: index of the optimizer step, from 0.
        index: of the micro-batch in the step, from 0.
    """
    key = hashlib.blake2b(f"nexus/{seed}/{step}/{index}".encode(), digest_size=8).digest()
    number = int.from_bytes(key, "big") >> 1
    torch.default_generator.manual_seed(number)
    # torch.manual_seed would queue the call with a stack trace, in every step, where CUDA is never used
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)


class Method(LightningModule):
    """Common ground of all methods; a method adds `loss(micro_batch)`, and what its class attributes say.

    Attributes:
        loss_unit: what the loss is a mean over.
        needs_reference: whether the loss reads `completion_values["ref_logprobs"]`, log-probabilities of the
            completions under the policy as its phase began.

    Args:
        base_model: settings of `conf/base_model` that `models.loader.load_model` takes.
        adapter: settings of `conf/adapter`.
        optimizer: factory that takes the trainable parameters with their names.
        schedule: shape of the learning rate after warm-up.
        warmup_ratio: share of the steps that warm up.
        min_lr_ratio: share of the peak rate left at the end.
        gradient_clip: largest gradient norm; None leaves gradients alone.
        neftune_alpha: strength of the noise on the embeddings; None for no noise.
        gradient_checkpointing: True computes layers again in the backward pass; `offload` also keeps their inputs in
            host memory.
        compile_model: whether the layers are compiled.
        total_steps: optimizer steps of this phase.
        seed: seeds random weights of a new model and of a new adapter, and what is drawn while training.
        guard: decides which steps are skipped.
    """

    loss_unit: ClassVar[LossUnit] = LossUnit.TOKEN
    needs_reference: ClassVar[bool] = False

    def __init__(
        self,
        *,
        base_model: dict[str, Any],
        adapter: dict[str, Any],
        optimizer: Callable[[Iterator[tuple[str, nn.Parameter]]], Optimizer],
        schedule: str,
        warmup_ratio: float,
        min_lr_ratio: float,
        gradient_clip: float | None,
        neftune_alpha: float | None,
        gradient_checkpointing: bool | str,
        compile_model: bool,
        total_steps: int,
        seed: int,
        guard: StepGuard,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trained weights alone; on_load_checkpoint compares the keys
        self.base_model = base_model
        self.adapter = adapter
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = round(warmup_ratio * total_steps)
        self.min_lr_ratio = min_lr_ratio
        self.gradient_clip = gradient_clip
        self.neftune_alpha = neftune_alpha
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_model = compile_model
        self.total_steps = total_steps
        self.seed = seed
        self.guard = guard
        self.model: nn.Module | None = None
        self._trained: list[nn.Parameter] = []  # what the optimizer moves
        self._step = 0  # index of the optimizer step that is computed
        self.micro_batch_limit: int | None = None  # positions, once memory was short; part of the checkpoint
        self.tokens_seen = 0  # real tokens consumed so far, part of the checkpoint
        self.step_metrics: dict[str, Tensor | float] = {}  # of the last step, on the device until somebody logs them
        self.batch_metrics: dict[str, Tensor] = {}  # of them, what `prepare_step` found

    def loss(self, batch: MicroBatch) -> LossOutput:
        """The algorithm: mean loss over the micro-batch's units (`MicroBatch.loss_unit`)."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def prepare_step(self, batch: list[MicroBatch]) -> list[MicroBatch]:
        """What the loss must know of the whole step; runs before the first micro-batch, and again after a halving.

        Args:
            batch: the micro-batches of one optimizer step.

        Returns:
            The micro-batches that `loss` gets.
        """
        return batch

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether sampled answers come with log-probabilities under the policy that sampled, even if used once."""
        return False

    def scaled_rates(self) -> list[tuple[nn.Module, float]]:
        """Parts that learn at a multiple of the peak rate, a head that starts from nothing for example."""
        return []

    @property
    def policy(self) -> Any:
        """The model that is trained.

        Raises:
            RuntimeError: before `configure_model`.
        """
        if self.model is None:
            raise RuntimeError("configure_model() has not run")
        return self.model

    def configure_model(self) -> None:
        """Load the base and put the adapter on; called once, before the first score."""
        if self.model is not None:
            return
        model = load_model(**self.base_model, seed=self.seed)
        if self.gradient_checkpointing:
            checkpoint_layers(model, offload=self.gradient_checkpointing == "offload")
        if self.neftune_alpha is not None:
            add_noise(model, alpha=self.neftune_alpha)
        path = self.base_model["path"]
        self.model = apply_adapter(
            model,
            self.adapter,
            seed=self.seed,
            read_weight=None if path is None else stored_weight(path, self.base_model["revision"]),
        )
        gradient_by_index(self.model)
        if self.compile_model:
            compile_layers(self.model)

    def configure_optimizers(self) -> Any:
        """Optimizer over what is trained, with a learning rate per optimizer step."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        self._trained = [p for _, p in trained]
        optimizer = self.make_optimizer(iter(trained))
        ratio = self.adapter.get("loraplus_ratio")  # full fine-tuning has none
        if ratio is not None:
            raise_rates(optimizer, trained, ratio=ratio)
        for part, factor in self.scaled_rates():
            scale_rates(optimizer, part.parameters(), ratio=factor)
        scheduler = LambdaLR(
            optimizer,
            lambda step: schedule_factor(
                step,
                schedule=self.schedule,
                warmup_steps=self.warmup_steps,
                total_steps=self.total_steps,
                min_ratio=self.min_lr_ratio,
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: list[MicroBatch], batch_idx: int) -> None:
        """One optimizer step over all micro-batches."""
        optimizer: Any = self.optimizers()
        self._step = self.trainer.global_step
        metrics = self.accumulate(self.within_limit(batch))
        gradients = Gradients(self._trained)
        rates = learning_rates(optimizer.optimizer)
        judged = self._judge(metrics["train/loss"], gradients, batch)
        optimizer.step()
        gradients.drop()  # the optimizer's own way begins and ends a profile each time
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.tokens_seen += sum(micro_batch.num_tokens for micro_batch in batch)
        self.step_metrics = {**metrics, **judged, **self.batch_metrics, **rates}

    def _judge(self, loss: Tensor, gradients: Gradients, batch: list[MicroBatch]) -> dict[str, float]:
        """Clip the gradients, or take them away from a step that must not be taken; optimizers then pass by.

        Args:
            loss: of the step.
            gradients: of the step.
            batch: for the names of its rows.

        Returns:
            What was read from the device for that, by log key.
        """
        value, norm = torch.stack([loss.float(), gradients.norm.float()]).tolist()  # the one read in a step
        rows = [name for micro_batch in batch for name in micro_batch.ids]
        if not self.guard.passes(step=self._step + 1, loss=value, grad_norm=norm, clip=self.gradient_clip, rows=rows):
            gradients.drop()
        elif self.gradient_clip is not None:
            gradients.clip(self.gradient_clip, norm=norm)
        found = {"train/loss": value, "train/grad_norm": norm}
        return {**found, "train/skipped_steps": float(len(self.guard.skipped))} if self.guard.skipped else found

    def accumulate(self, batch: list[MicroBatch]) -> dict[str, Tensor]:
        """Sum the gradients of all micro-batches; on lack of memory, halve them all and begin the step again.

        Halving keeps the step's meaning, since every share of the loss is counted in the loss's own units, and no group
        of completions is ever parted.

        Args:
            batch: the micro-batches of one optimizer step.

        Returns:
            Detached metrics of the step, weighted as the loss is.

        Raises:
            NexusError: `E-MEM-02` if a single row or group does not fit.
        """
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError as error:
                self.zero_grad(set_to_none=True)
                if all(micro_batch.num_groups == 1 for micro_batch in batch):
                    longest = max(batch, key=lambda micro_batch: micro_batch.num_tokens)
                    what = "row" if longest.completions_per_group == 1 else "group of completions"
                    raise NexusError(
                        "E-MEM-02",
                        f"a single {what} of {longest.num_tokens} tokens does not fit the memory",
                        where=longest.ids[0],
                        remedy=f"{KNOBS}; or a smaller base_model",
                        status=75,
                    ) from error
                tokens = max(micro_batch.input_ids.numel() for micro_batch in batch)
                batch = [half for micro_batch in batch for half in split_micro_batch(micro_batch)]
                self._shrink(tokens, max(micro_batch.input_ids.numel() for micro_batch in batch))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _shrink(self, failed: int, limit: int) -> None:
        """Keep to the smaller size from here on, and say so: a step that is begun twice takes twice as long."""
        self.micro_batch_limit = limit
        log.warning(
            "W-MEM-02  a micro-batch of %d tokens did not fit the memory; it is halved and the step begun again. From "
            "here on none has more than %d, with the same batch and gradient. hardware.micro_batch_tokens=%d avoids "
            "that; %s", failed, limit, limit, KNOBS,
        )  # fmt: skip

    def within_limit(self, batch: list[MicroBatch]) -> list[MicroBatch]:
        """Micro-batches no larger than what did fit when memory was short.

        Args:
            batch: any number.

        Returns:
            The same rows, split where they have to be.
        """
        limit = self.micro_batch_limit
        if limit is None:
            return batch
        while any(part.input_ids.numel() > limit and part.num_groups > 1 for part in batch):
            batch = [
                half
                for part in batch
                for half in (
                    split_micro_batch(part) if part.input_ids.numel() > limit and part.num_groups > 1 else [part]
                )
            ]
        return batch

    def _accumulate(self, batch: list[MicroBatch]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for index, micro_batch in enumerate(self.prepare_step(batch)):
            seed_micro_batch(self.seed, step=self._step, index=index)
            output = self.loss(micro_batch)
            scale = micro_batch.loss_scale
            share = output.loss if scale == 1.0 else output.loss * scale
            self.manual_backward(share)
            shares = {name: value * scale for name, value in output.metrics.items()}
            for name, value in {"train/loss": share.detach(), **shares}.items():
                metrics[name] = metrics[name] + value if name in metrics else value
        return metrics

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Only what was trained; frozen weights are loaded again from their source."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        full = super().state_dict(*args, **kwargs)
        return {name: value for name, value in full.items() if name in trained}

    def load_trained(self, path: Path) -> None:
        """Take over the trained weights of a checkpoint, and nothing else of it.

        Args:
            path: as `callbacks.checkpoint` wrote it, of the same model and adapter.

        Raises:
            NexusError: `E-RES-03` if names or shapes differ.
        """
        checkpoint = read_state(path)
        self._insist_on_tensors(checkpoint)
        self.load_state_dict(checkpoint["state_dict"], strict=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the method counts.

        Args:
            checkpoint: what Lightning gathered.

        Raises:
            NexusError: `E-NUM-04` if a trained weight is not finite.
        """
        for name, value in checkpoint["state_dict"].items():
            if not value.isfinite().all():
                raise NexusError(
                    "E-NUM-04",
                    "a trained weight is not finite; the checkpoint is not written",
                    where=name,
                    remedy="lower method.lr; resume=RUN goes on from the last checkpoint, whose weights are finite",
                )
        checkpoint["nexus"] = {
            "schema": 1,
            "tokens_seen": self.tokens_seen,
            "micro_batch_limit": self.micro_batch_limit,
            "guard": self.guard.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not hold exactly what is trained here; take up what the method counts.

        Args:
            checkpoint: as `on_save_checkpoint` left it.

        Raises:
            NexusError: `E-RES-03` if names or shapes differ.
        """
        self._insist_on_tensors(checkpoint)
        own = checkpoint["nexus"]
        self.tokens_seen = own["tokens_seen"]
        self.micro_batch_limit = own["micro_batch_limit"]
        self.guard.load_state_dict(own["guard"])

    def _insist_on_tensors(self, checkpoint: dict[str, Any]) -> None:
        """`E-RES-03` unless the checkpoint's weights have the names and shapes of those that are trained here."""
        saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        wanted = {name: tuple(p.shape) for name, p in self.named_parameters() if p.requires_grad}
        if saved != wanted:
            wrong = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
            raise NexusError(
                "E-RES-03",
                f"the checkpoint's trained weights differ from this run's in {len(wrong)} tensors",
                where=wrong[0],
                remedy="resume with the run's own config (resume=RUN alone)",
            )
