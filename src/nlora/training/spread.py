"""What the training of one task needs if several processes share it.

Each optimizer step has the same examples as with one process. Its micro-batches are dealt out
(`nlora.data.sampler.ProcessBatches`), and torch's DistributedDataParallel, into which the Trainer wraps the model,
averages the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler
from accelerate.utils import set_seed
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from nlora.data.collate import IGNORED
from nlora.data.sampler import Order, ProcessBatches
from nlora.models import processes
from nlora.models.inspection import Batch, drops_layers
from nlora.models.soft_prompts import ANSWER_TOKENS, SoftPrompts
from nlora.models.target_modules import is_of_expert
from nlora.training.counted_batches import SIZE
from nlora.training.finite_guard import ROWS
from nlora.training.weighted_batches import WEIGHTS

if TYPE_CHECKING:
    from nlora.models.trainable import Trainable


def arguments(trainable: Trainable) -> dict[str, Any]:
    """The keyword arguments of TrainingArguments that several processes need; none for one process."""
    if processes.size() == 1:
        return {}
    return {
        "use_cpu": not torch.accelerator.is_available(),  # else the Trainer leaves each process alone on a CPU
        # It costs a walk over the graph in each step.
        "ddp_find_unused_parameters": may_leave_out(trainable),
        "ddp_broadcast_buffers": False,
    }


def prepare(trainable: Trainable, seed: int) -> None:
    """Make this process ready to train, after the Trainer has set the seed."""
    if processes.size() == 1:
        return
    # Dropout that does not depend on the example (`keyed_masks`) would otherwise have the same masks on all of them.
    set_seed(seed, device_specific=True)
    if trainable.factors() or isinstance(trainable, SoftPrompts):
        # The backbone is the same everywhere, and only what is trained has to be sent around.
        sent = {id(tensor) for tensor in trainable.live_tensors().values()}
        model: nn.Module = trainable.model
        named = [*model.named_parameters(), *model.named_buffers()]
        ddp: Any = DistributedDataParallel
        ddp._set_params_and_buffers_to_ignore_for_model(
            model, [n for n, tensor in named if id(tensor) not in sent]
        )


def loader(
    examples: Any,
    order: Order | None,
    collate: Callable[[Any], Batch],
    *,
    batch_size: int,
    micro: int,
    seed: int,
    device: torch.device,
) -> DataLoader[Any]:
    """This process's micro-batches. order: None for the Trainer's random one.

    batch_size: examples per optimizer step, over all processes. micro: per micro-batch.
    """
    if order is None:  # as accelerate makes it for one process
        order = SeedableRandomSampler(examples, data_seed=seed, generator=torch.Generator())
    batches = ProcessBatches(
        order, batch_size=batch_size, micro=micro, rank=processes.rank(), size=processes.size()
    )

    def with_empty(some: Sequence[Any]) -> Batch:
        return collate(some) if some else _nothing_counts(collate([examples[0]]))

    made: DataLoader[Any] = DataLoaderShard(examples, device, batch_sampler=batches, collate_fn=with_empty)
    return made


def _nothing_counts(batch: Batch) -> Batch:
    """The batch of a process that has none: its gradient is 0, but it takes the step with the others."""
    batch["labels"].fill_(IGNORED)
    batch[SIZE], batch[ROWS] = (0, 0), batch[ROWS][:0]
    for key in {WEIGHTS, ANSWER_TOKENS} & batch.keys():
        batch[key].zero_()
    return batch


def may_leave_out(trainable: Trainable) -> bool:
    """Whether a step of several processes may not use all trained weights: those of an expert, of a layer that is left
    out at random, or of a whole model.
    """
    # All soft prompts are used, but their keys not in the forward pass, where DDP would look.
    if processes.size() == 1 or isinstance(trainable, SoftPrompts):
        return False
    factors = trainable.factors()
    return not factors or any(map(is_of_expert, factors)) or drops_layers(trainable.model)
