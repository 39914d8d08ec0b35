"""L2P: a pool of soft prompts with keys; each text begins with those whose keys are nearest to it.

Source: Learning to Prompt, arXiv 2112.08654, for images; for language models as the code of TRACE (arXiv 2310.06762,
by authors of O-LoRA) has it. The model itself is frozen. A text is compared with the key k_i of each prompt P_i by

    s_i = q·k_i / (‖q‖ ‖k_i‖),  q the mean of the text's own input embeddings

and begins with the `top_k` prompts of the largest cosines, the largest first. The pool trains on from task to task, on

    loss = cross-entropy - pull · Σ s_i over the prompts that were chosen

and needs no task at inference. Prompts start as the embeddings of random tokens of the vocabulary, keys as the means of
their prompts.

Each stage's folder holds the pool (`soft_prompts.safetensors` and `soft_prompts.json`) instead of an adapter.

Departures: the defaults (`top_k: 3`, `pull: 0.5`) are those of TRACE's code. There the keys are the means of the first
prompts and stay there; here they are parameters of their own, as in the paper. TRACE divides the first prompts by 100.
The query is taken from the prompt without its answer; TRACE's is the mean over everything that the model reads,
padding included. A text's cosines count in the loss once for each of its answer tokens, as its cross-entropy does; the
paper takes the mean over texts, which is the same if all answers have the same number of tokens. The paper's optional
penalty on prompts that are chosen often is left out.

Pitfalls:
- The learning rate: prompts need a larger one than LoRA. ProgPrompt's code takes 0.3.
- The query is a mean over instruction, options and text, so texts of one task have almost the same query, and choose
  the same prompts; texts of different tasks often do, too. What a later task does to a prompt that an earlier one
  chose is not held back by anything.
- Texts begin with different tokens, so packed batches have no common beginning, and a long instruction is computed once
  for each text.
- Which settings gave the rows of the published tables of O-LoRA and N-LoRA is documented nowhere.
- `lora.*` has no effect. There are no updates to analyze or to export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from nlora.errors import Problem
from nlora.methods.base import Method, MethodOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from nlora.config.schema import LoraOptions
    from nlora.data.columns import TokenizedExamples
    from nlora.models.lora_adapter import ModuleShape
    from nlora.models.trainable import Trainable


class L2pOptions(MethodOptions):
    """The size of the pool, and how texts choose from it."""

    pool: int = Field(10, ge=1, description="Prompts in the pool.")
    length: int = Field(5, ge=1, description="Soft tokens of each prompt.")
    top_k: int = Field(3, ge=1, description="Prompts that a text begins with; at most pool.")
    pull: float = Field(
        0.5,
        ge=0,
        description="Weight of the cosines of a text and the keys of its prompts, which pulls these keys to the text.",
    )


class L2p(Method[L2pOptions]):
    """Trains a pool of prompts that texts choose from."""

    trains = "prompts"
    shared_options = ("pool", "length")

    def check(self, modules: Sequence[ModuleShape]) -> list[Problem]:
        if self.options.top_k <= self.options.pool:
            return []
        what = (
            f"a text cannot choose {self.options.top_k} of {self.options.pool} prompts; at most method.pool"
        )
        return [Problem.at(("method", "top_k"), what)]

    def soft_tokens(self, tasks: int) -> int:
        return self.options.top_k * self.options.length

    def attach(self, model: nn.Module, lora: LoraOptions, *, stage: int, seed: int) -> Trainable:
        from nlora.models.soft_prompts import PromptPool

        o = self.options
        return PromptPool.attach_pool(
            model, pool=o.pool, tokens=o.length, top_k=o.top_k, pull=o.pull, stage=stage, seed=seed
        )

    def beginning(self, index: int, model: nn.Module, prompts: TokenizedExamples) -> TokenizedExamples:
        from nlora.models.soft_prompts import beginning_with_nearest
        from nlora.models.soft_tokens import soft_tokens_of

        soft = soft_tokens_of(model)
        return prompts if soft is None else beginning_with_nearest(model, prompts, soft, self.options.top_k)
