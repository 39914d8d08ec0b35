"""Tasks and their examples, as text and as tokens. A sequence is a list of tasks, in the order of learning.

>>> billing, network = Example("0", "My invoice is wrong", "billing"), Example("0", "It is down", "network")
>>> task = Task("tickets", "tickets", "Which team?", ("billing", "network"), train=(billing,), test=(network,))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Scorer = Callable[[str, tuple[str, ...]], float]
"""A prediction and the accepted answers, the example's label first -> the score, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text and its right answer.

    id: unique within its split; as in the release, the number of its row in the file.
    label: the answer that is trained on. others: further answers that are accepted when a model is scored.
    chat: whether the sentence is a conversation (`nlora.data.chat`), which the label continues.
    """

    id: str
    sentence: str
    label: str
    others: tuple[str, ...] = ()
    chat: bool = False

    @property
    def answers(self) -> tuple[str, ...]:
        """All accepted answers, the label first."""
        return (self.label, *self.others)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One example as token ids; the answer ends with the end token.

    earlier: (begin, end) of each part of the prompt that is an earlier answer of the conversation, in their order;
        these tokens count in the loss as those of the answer do.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    earlier: tuple[tuple[int, int], ...] = ()

    def beginning_with(self, ids: Sequence[int]) -> TokenizedExample:
        """The same example with further tokens before its prompt.

        >>> TokenizedExample([5, 6], [2], earlier=((1, 2),)).beginning_with([9])
        TokenizedExample(prompt_ids=[9, 5, 6], answer_ids=[2], earlier=((2, 3),))
        """
        earlier = tuple((begin + len(ids), end + len(ids)) for begin, end in self.earlier)
        return TokenizedExample([*ids, *self.prompt_ids], self.answer_ids, earlier)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a sequence.

    name: unique within a sequence; the name of its stage folder and of its column of R.
    type: the type of task in the benchmark (TC, SC, NLI, ...); part of the prompt.
    instruction: the question to the model, without the options; may be empty (COPA).
    labels: the label words in the order in which the prompt lists them; None: free text.
    options_in_prompt: whether the prompt lists the labels (COPA's does not).
    validation: examples held out from train for `train.early_stopping`; neither trained on nor tested.
    drawn_from: digests of the examples that train and test were sampled from; None: they are not samples.
    metric: what the configuration says that the task is scored by, without the folder of a file; None: nothing.
    scorer: the function of a metric of the user's own. scorer_version: a digest of its file.
    """

    name: str
    type: str
    instruction: str
    labels: tuple[str, ...] | None
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    options_in_prompt: bool = True
    validation: tuple[Example, ...] = ()
    drawn_from: tuple[str | None, str | None] = (None, None)
    metric: str | None = None
    scorer: Scorer | None = None
    scorer_version: str | None = None

    @property
    def chat(self) -> bool:
        """Whether the examples are conversations."""
        return any(split[0].chat for split in (self.train, self.test, self.validation) if split)
