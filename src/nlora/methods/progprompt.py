"""ProgPrompt: a soft prompt per task, before those of the earlier tasks, which are frozen.

Source: Progressive Prompts, arXiv 2301.12314, and its released code. The model itself is frozen. Task k adds a prompt
P_k of `tokens` vectors, which is all that trains. A text of task k begins with

    P_k, P_{k-1}, ..., P_1, text

in training and, if its task is known (`task_id: true`, as in the paper), whenever it is answered later, too. Nothing
that answers a task ever changes, so nothing is forgotten. Without the task (`task_id: false`), every text begins with
all prompts learned so far. A new prompt starts as the embeddings of random tokens of the vocabulary.

Each stage's folder holds all prompts so far (`soft_prompts.safetensors` and `soft_prompts.json`) instead of an adapter.

Departures: the paper's optional residual MLP over a prompt in training is left out; the released code leaves it out by
default. The released code cuts prompts and text together at 512 tokens; here `train.max_source_tokens` is for the text
alone. The paper has T5 and BERT; here a causal model's prompts come before its text as well. It keeps the prompt of the
epoch with the best validation score, which `train.early_stopping` cannot do yet. A task that is not learned yet is
answered with all prompts so far.

Pitfalls:
- The learning rate: the released code trains the prompts with 0.3, a few hundred times what LoRA needs. With 1e-3 they
  hardly move. Set `train.learning_rate`.
- With `task_id: true` it solves an easier problem than most methods, as `pertask` does. The published tables of O-LoRA
  and N-LoRA print it at 75 to 78; SAPT (arXiv 2401.08295), which withholds the task, prints 8 for the same method (both
  from second-hand notes).
- A text gets longer with each task: by 150 tokens at the fifteenth. A model with a table of positions may have too few;
  then the run is refused.
- The prompts train through the whole frozen model, so a step costs about as much as one of LoRA.
- `lora.*` has no effect. There are no updates to analyze or to export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.data.columns import TokenizedExamples
    from nlora.models.trainable import Trainable


class ProgPromptOptions(MethodOptions):
    """How long a prompt is, and whether the task of a text is known."""

    tokens: int = Field(10, ge=1, description="Soft tokens of each task's prompt (released code: 10).")
    task_id: bool = Field(
        True,
        description="true: a text is answered with the prompts up to its own task's, as in the paper; false: with all "
        "prompts, so that its task need not be known.",
    )


class ProgPrompt(Method[ProgPromptOptions]):
    """Trains one prompt per task before the frozen ones of the earlier tasks."""

    trains = "prompts"

    def soft_tokens(self, tasks: int) -> int:
        return self.options.tokens * tasks

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.soft_prompts import SoftPrompts

        return SoftPrompts.attach(model, tokens=self.options.tokens, stage=stage, seed=seed)

    def beginning(self, index: int, model: nn.Module, prompts: TokenizedExamples) -> TokenizedExamples:
        from nlora.models.soft_prompts import chain
        from nlora.models.soft_tokens import soft_tokens_of

        soft = soft_tokens_of(model)
        if soft is None:
            return prompts
        count = index + 1 if self.options.task_id else len(soft.lengths)
        return prompts.beginning_with(chain(soft, count))
