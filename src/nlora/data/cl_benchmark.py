"""The benchmark in its released folder layout: `<type>/<dataset>/{train,test,labels}.json`.

The released dev.json is identical to test.json, byte for byte. Tuning on it would be tuning on the test set, so it is
never read (`evaluate.split: validation` holds out training examples instead). MNLI's test file has examples without
a gold label, marked "-". The released scorer counts every answer to them as wrong; here they are left out, unless
`keep_unlabeled` is set (as it is by `protocol: released`).

The folder may also have SAPT's tasks of SuperNI (`nlora.data.super_ni`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nlora.config.characters import half_problem
from nlora.data import super_ni
from nlora.data.files import read_examples
from nlora.data.readers import read_json
from nlora.data.rows import ProblemList
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Key, Problem, did_you_mean

UNLABELED = "-"

_RELATION = 'What is the logical relationship between the "sentence 1" and the "sentence 2"?'
_CHOOSE = "Choose one from the option."
# The released instructions. COPA has none: its texts contain the question and the two choices.
INSTRUCTIONS = {
    "TC": f"What is the topic of the following paragraph? {_CHOOSE}",
    "SC": f"What is the sentiment of the following paragraph? {_CHOOSE}",
    "NLI": f"{_RELATION} {_CHOOSE}",
    "QQP": f'Whether the "first sentence" and the "second sentence" have the same meaning? {_CHOOSE}',
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence? "
    + _CHOOSE,
    "MultiRC": "According to the following passage and question, is the candidate answer true or false? "
    + _CHOOSE,
    "BoolQA": f"According to the following passage, is the question true or false? {_CHOOSE}",
    "COPA": "",
}
ORIGIN = (
    "the released one is the folder CL_Benchmark of github.com/cmnfriend/O-LoRA (for superni, that of "
    "github.com/circle-hit/SAPT)"
)
"""Where to get it; the N-LoRA repository, github.com/PKU-YuanGroup/N-LoRA, refers to it as well."""
WITHOUT_OPTIONS = frozenset({"COPA"})
_RELEASED = {
    "TC": ("dbpedia", "yahoo", "agnews"),
    "SC": ("yelp", "amazon", "IMDB", "SST-2"),
    "NLI": ("MNLI", "CB", "RTE"),
    **{kind: (kind,) for kind in ("QQP", "BoolQA", "MultiRC", "COPA", "WiC")},
}
RELEASED_TYPES = {name: kind for kind, names in _RELEASED.items() for name in names}
"""The fifteen released data sets -> their types, which are the names of their parent folders."""


def datasets(folder: Path) -> dict[str, Path]:
    """The data sets in a folder of the released layout: `type/dataset` -> its folder, sorted."""
    return {
        f"{p.parent.parent.name}/{p.parent.name}": p.parent for p in sorted(folder.glob("*/*/train.json"))
    }


def is_there(folder: Path, name: str, type: str | None = None) -> bool:  # noqa: A002 (the task's field)
    """Whether the folder has at least one data set of that name; the arguments are those of `read`."""
    return bool(_matches(datasets(folder), _wanted(name, type)))


def read(
    folder: Path,
    name: str,
    *,
    type: str | None = None,  # noqa: A002 (the task's field)
    instruction: str | None = None,
    labels: Sequence[str] | None = None,
    keep_unlabeled: bool = False,
    key: Key = (),
) -> Task:
    """One data set of the benchmark as a task.

    name: the data set's name (agnews), or TYPE/name; the task's name is without the type.
    type: where to look, for a name that two types have; None: everywhere.
    instruction, labels: replace the released ones.
    keep_unlabeled: keep test examples whose label is "-", as the release does.
    key: the configuration key that names the data set, for the message if it does not exist.

    Raises InputErrors with all problems: a missing data set (and the existing ones), files that cannot be read, rows
    without text, labels outside of the label set.
    """
    place = _find(folder, name, type, key)
    kind, dataset = place.parent.name, place.name
    problems: list[Problem] = []
    if kind == super_ni.TYPE:
        definition, train, test = super_ni.read(place, labels, problems)
        if problems:
            raise InputErrors(problems)
        words = None if labels is None else tuple(labels)
        return Task(dataset, kind, definition if instruction is None else instruction, words, train, test)
    if instruction is None and kind not in INSTRUCTIONS:
        problems.append(
            Problem(str(place), f"the release has no instruction for the type '{kind}'; give the task one")
        )
    words = tuple(labels) if labels is not None else _read_labels(place / "labels.json", problems)
    train = _read_split(place / "train.json", words, problems)
    test = _read_split(place / "test.json", words, problems, unlabeled=True)
    if problems:
        raise InputErrors(problems)
    if not keep_unlabeled:
        test = tuple(example for example in test if example.label != UNLABELED)
    return Task(
        name=dataset,
        type=kind,
        instruction=INSTRUCTIONS[kind] if instruction is None else instruction,
        labels=words,
        train=train,
        test=test,
        options_in_prompt=kind not in WITHOUT_OPTIONS,
    )


def _find(folder: Path, name: str, kind: str | None, key: Key) -> Path:
    there, wanted = datasets(folder), _wanted(name, kind)
    found = _matches(there, wanted)
    if len(found) == 1:
        return there[found[0]]
    if found:
        what = f"{' and '.join(found)} are both called '{name}'; set the task's 'type'"
    elif there and wanted in RELEASED_TYPES:
        place = folder / RELEASED_TYPES[wanted] / wanted
        what = (
            f"no data set '{wanted}' in {folder}; expected {place} with train.json, test.json and labels.json"
        )
    elif there:
        hint = did_you_mean(wanted, [k if "/" in wanted else k.split("/")[1] for k in there])
        what = f"no data set '{wanted}' in {folder}, which has {', '.join(there)}{hint}"
    else:
        layout = "<type>/<dataset>/train.json, test.json and labels.json"
        what = f"no data set in {folder}; expected {layout}; {ORIGIN}"
    raise InputErrors([Problem("" if key else name, what, key=key)])


def _wanted(name: str, kind: str | None) -> str:
    return f"{kind}/{name}" if kind and "/" not in name else name


def _matches(there: Iterable[str], wanted: str) -> list[str]:
    return [key for key in there if key == wanted or key.split("/")[1] == wanted]


def _read_split(
    path: Path, labels: tuple[str, ...] | None, problems: list[Problem], *, unlabeled: bool = False
) -> tuple[Example, ...]:
    allowed = None if labels is None else (*labels, UNLABELED) if unlabeled else labels
    if not path.is_file():
        problems.append(Problem(str(path), "no such file"))
        return ()
    examples, found = read_examples(str(path), labels=allowed)
    problems += found
    return examples


def _read_labels(path: Path, problems: list[Problem]) -> tuple[str, ...] | None:
    found = ProblemList(str(path))
    try:
        with path.open("rb") as file:
            words = read_json(file, found)
    except FileNotFoundError:
        found.add(str(path), "no such file")
    except OSError as error:
        found.add(str(path), f"cannot be read ({error.strerror})")
    else:
        is_words = isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
        if not is_words and not found.count:
            found.add(str(path), "expected a list of label words")
        for word in words if is_words else ():
            if half := half_problem(word):
                found.add(str(path), f"label '{word}' {half}")
        if not found.count:
            return tuple(words)
    problems += found.report()
    return None
