"""transformers' Trainer with our loss: cross-entropy on the answer tokens, and a penalty once per optimizer step.

The method's penalty is added once per optimizer step, however many micro-batches or processes there are. It is part of
the gradient that is clipped, unless it takes another route (`nlora.training.penalty_gradient`). A step that is not
finite is refused (`nlora.training.finite_guard`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from nlora.data.collate import IGNORED
from nlora.data.sampler import Order
from nlora.models import processes
from nlora.models.logits import answer_logits
from nlora.training import spread
from nlora.training.answer_losses import Choose
from nlora.training.counted_batches import SIZE
from nlora.training.finite_guard import ROWS, FiniteGuard
from nlora.training.keyed_masks import KeyedMasks
from nlora.training.penalty_gradient import PenaltyGradient
from nlora.training.resumable_trainer import ResumableTrainer
from nlora.training.weighted_batches import WEIGHTS

Penalty = Callable[[], Tensor | None]
ExtraLoss = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor | None]


class PenalizedTrainer(ResumableTrainer):
    """A Trainer whose loss is the mean over the answer tokens of an optimizer step, plus a penalty.

    penalty: called once per optimizer step; returns None, or a scalar with gradients, weight included.
    penalty_gradient: how its gradient is applied; also to be one of the callbacks.
    batch_size: examples per optimizer step, over all processes.
    order: which examples make up a batch; None: the Trainer's random order.
    extra_loss: what a method adds to a micro-batch's cross-entropy. without: a context manager in which the model is as
        it was before the stage.
    choose: settles what is open in a micro-batch until it is computed (`SoftPrompts.choose`); what it returns is added
        to the micro-batch's cross-entropy, too.
    masks: of dropout; None: those that do not depend on the examples.
    """

    # `compute_loss` divides by the answer tokens of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        penalty: Penalty,
        penalty_gradient: PenaltyGradient,
        batch_size: int,
        order: Order | None = None,
        extra_loss: ExtraLoss | None = None,
        choose: Choose | None = None,
        without: Callable[[], AbstractContextManager[None]] = nullcontext,
        masks: KeyedMasks | None = None,
        **kwargs: Any,
    ) -> None:
        self._order, self._batch_size = order, batch_size
        self._extra_loss, self._without, self._masks = extra_loss, without, masks
        self._choose = choose
        super().__init__(*args, **kwargs)
        # Makes the Trainer count the answer tokens of each optimizer step.
        self.model_accepts_loss_kwargs = True
        self._penalty, self._penalty_gradient = penalty, penalty_gradient
        self._penalty_sum: Tensor | float = 0.0
        self._mean_weight: Tensor | float = 1.0  # of the step's answer tokens
        self._guard: FiniteGuard | None = None
        # Of the optimizer step that is being computed: its examples, cross-entropy and penalty
        self._step_rows: list[Tensor] = []
        self._step_loss: Tensor | float = 0.0
        self._step_penalty: Tensor | float = 0.0
        self._logged = 0, 0.0  # optimizer steps and sum of the penalties at the last log entry
        self._positions = self._tokens = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Σ over this micro-batch of the answer tokens' cross-entropy / answer tokens of the step (+ penalty).

        With label weights w: Σ w·cross-entropy / Σ w over the step's answer tokens.
        """
        if self._masks is not None:
            self._masks.begin(self.state.global_step, inputs)
        added = [None if self._choose is None else self._choose(inputs)]
        logits, targets = answer_logits(model, inputs)  # (B, K, V), (B, K)
        weights = inputs.get(WEIGHTS)
        total = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum" if weights is None else "none",
        )
        if weights is not None:
            total = total @ weights[:, -targets.shape[1] :].flatten()
        if self._extra_loss is not None:
            added.append(self._extra_loss(logits, targets, lambda: self._logits_before(model, inputs)))
        for extra in added:
            if extra is not None:  # divided by the answer tokens, whatever their weights
                total = total + (extra if weights is None else extra * self._mean_weight)
        items = num_items_in_batch if num_items_in_batch is not None else targets.ne(IGNORED).sum()
        # Gradients are averaged over the processes, and `items` counts the tokens of all of them.
        loss = total / items * self.accelerator.num_processes
        self._step_loss = self._step_loss + loss.detach()
        if self.accelerator.sync_gradients:
            penalty = self._penalty()
            if penalty is not None:
                done, steps = self.state.global_step, self.state.max_steps
                penalty = self._penalty_gradient.entering(penalty, done, steps)
                loss = loss + penalty.to(loss.dtype)
                # A tensor, not a float: reading its value would wait for the device at every step.
                self._step_penalty = penalty.detach()
                self._penalty_sum = self._penalty_sum + self._step_penalty
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self._penalty_gradient.after_backward()
        return loss

    def get_batch_samples(self, *args: Any) -> Any:
        """The micro-batches of an optimizer step, with the number of its answer tokens; counts their padding."""
        batches, items = super().get_batch_samples(*args)
        for batch in batches:
            positions, tokens = batch.pop(SIZE)
            self._positions += positions
            self._tokens += tokens
        return batches, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The answer tokens of an optimizer step, over all processes; with label weights, the sum of their weights."""
        self._step_rows = [batch[ROWS] for batch in batch_samples if ROWS in batch]
        tokens: Any = super()._get_num_items_in_batch(batch_samples, device)
        if not batch_samples or WEIGHTS not in batch_samples[0]:
            return tokens
        weight = torch.stack([batch[WEIGHTS].sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        self._mean_weight = weight / tokens
        return weight

    def _logits_before(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """(B, K, V) of the model as it was before the stage."""
        with torch.no_grad(), self._without():
            return answer_logits(model, inputs)[0]

    @property
    def mean_penalty(self) -> float:
        """The penalty, weight included, averaged over the optimizer steps so far."""
        return float(self._penalty_sum) / max(self.state.global_step, 1)

    @property
    def padding_share(self) -> float:
        """Share of the positions computed so far that were padding."""
        counts = processes.gather((self._positions, self._tokens))
        positions, tokens = map(sum, zip(*counts, strict=True))
        return 1 - tokens / positions if positions else 0.0

    def sums(self) -> dict[str, Any]:
        """As `ResumableTrainer.sums`, with the penalty's and the padding's."""
        own = {
            "penalty": self._penalty_sum,
            "logged": self._logged,
            "batches": (self._positions, self._tokens),
        }
        return super().sums() | own

    def set_sums(self, sums: dict[str, Any]) -> None:
        """Continue with these sums."""
        super().set_sums(sums)
        penalty, (step, before) = sums["penalty"], sums["logged"]
        self._penalty_sum = penalty.to(self.args.device) if isinstance(penalty, Tensor) else penalty
        self._logged = step, before
        self._positions, self._tokens = sums["batches"]

    def mean_sums(self, sums: list[dict[str, Any]]) -> dict[str, Any]:
        """As `ResumableTrainer.mean_sums`; the penalty's is the same in all processes, and the batches are added up."""
        batches = zip(*(one["batches"] for one in sums), strict=True)
        share = tuple(sum(counts) / processes.size() for counts in batches)
        return super().mean_sums(sums) | {"batches": share}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's, or this process's share of the batches."""
        if processes.size() == 1:
            return super().get_train_dataloader()
        return spread.loader(
            self.train_dataset,
            self._order,
            self.data_collator,
            batch_size=self._batch_size,
            micro=self.args.per_device_train_batch_size,
            seed=self.args.seed,
            device=self.args.device,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order if self._order is not None else super()._get_train_sampler(train_dataset)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm. The Trainer asks for it just before an optimizer step, which is refused here.

        Raises NotFiniteError, on a GPU only at the next `check_finite`.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if self._guard is None:
            optimizer: Any = self.optimizer
            self._guard = FiniteGuard(getattr(optimizer, "optimizer", optimizer))
        self._guard.before_step(
            self.state.global_step + 1,
            loss=self._step_loss,
            penalty=self._step_penalty,
            gradient_norm=norm,
            rows=self._step_rows,
        )
        self._step_loss = self._step_penalty = 0.0
        self._penalty_gradient.after_clipping()
        return norm

    def check_finite(self) -> None:
        """Raise NotFiniteError if a step so far was not finite. To be called before anything is saved."""
        if self._guard is not None:
            self._guard.check()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_save:
            self.check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the penalty along with the loss, over the same steps."""
        if "loss" in logs:
            (step, before), now = self._logged, float(self._penalty_sum)
            logs["penalty"] = (now - before) / max(self.state.global_step - step, 1)
            self._logged = self.state.global_step, now
        super().log(logs, *args, **kwargs)
