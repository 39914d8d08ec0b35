"""YAML as plain values, with the line of each one, so that a mistake can be reported with its line.

>>> document = read_yaml("train:\\n  epochs: ten\\n", "my.yaml")
>>> document.data
{'train': {'epochs': 'ten'}}
>>> document.places.where(("train", "epochs"))
Place(source='my.yaml', line=2, key=('train', 'epochs'))

This reads what `yaml.safe_load` reads, with two differences. `1e-5` is a number (in YAML 1.1, only 1.0e-5 is), and a
duplicate key is a mistake (PyYAML silently uses the last one). `to_yaml` quotes texts that other readers would take for
something else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nlora.config.characters import half_problem
from nlora.config.places import Place, SourceMap
from nlora.errors import Key, Problem

_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_TEXT_TAG = "tag:yaml.org,2002:str"


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose errors all have a line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, OverflowError) as error:  # such as the date 2024-99-99
            digits = sys.get_int_max_str_digits()
            what = f"a number of more than {digits} digits" if "integer string" in str(error) else str(error)
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """A SafeDumper that quotes what `_Loader` would read as a number, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+.0123456789"))


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = int(loader.construct_yaml_int(node))
    str(value)  # raises ValueError for hexadecimal digits that Python would read, but not write
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Outside double quotes, PyYAML writes these three line breaks as they are and reads them back as spaces.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TEXT_TAG, text, style=style)


_Dumper.add_representer(str, _text_node)


@dataclass(frozen=True, slots=True)
class Document:
    """The contents of a YAML text. data: None if it is empty or cannot be read; in that case `problems` says why."""

    data: Any
    places: SourceMap
    problems: tuple[Problem, ...] = ()


def read_yaml(text: str, source: str, path: Key = ()) -> Document:
    """Read one YAML document; mistakes come back in `problems`, never as an exception.

    path: the key whose value the text is, before all keys in it.
    """
    places = SourceMap(source)
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return Document(None, places)
        problems = list(_walk(root, path, places, active=set(), done=set()))
        if any(_RECURSIVE in problem.what for problem in problems):
            return Document(None, places, tuple(problems))
        if _aliased(root) > _MOST_ALIASED:
            what = f"aliases (*name) add more than {_MOST_ALIASED:,} values; write out what is needed"
            return Document(None, places, (Problem(source, what),))
        return Document(loader.construct_document(root), places, tuple(problems))
    except yaml.YAMLError as error:
        return Document(None, places, (_syntax_problem(error, text, source),))
    except RecursionError:
        return Document(None, places, (Problem(source, "nested too deeply to be a configuration"),))
    finally:
        if loader is not None:
            loader.dispose()


def to_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back unchanged. Keys stay in order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


_RECURSIVE = "refers to itself"
_MOST_ALIASED = 100_000
"""Everything after this follows aliases, and aliases of aliases can make any number of values."""


def _aliased(root: yaml.Node) -> int:
    """Number of values that are in a document only because of aliases."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            pairs = isinstance(node, yaml.MappingNode)
            inner = [one for pair in node.value for one in pair] if pairs else node.value
            sizes[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(size, inner)))
        return sizes[id(node)]

    return size(root) - len(sizes)


def _walk(
    node: yaml.Node, path: Key, places: SourceMap, *, active: set[int], done: set[int]
) -> Iterator[Problem]:
    """Fill `places` with the lines of everything below `node`; yield mistakes that PyYAML would not notice."""
    if id(node) in active:
        yield places.problem(path, f"{_RECURSIVE} through an alias; write the value out")
        return
    if id(node) in done:  # an alias, whose lines are known; following aliases of aliases could take forever
        return
    active.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, path, places, active=active, done=done)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            places.lines.setdefault((*path, index), item.start_mark.line + 1)
            yield from _walk(item, (*path, index), places, active=active, done=done)
    elif node.tag != _TEXT_TAG:
        places.written.setdefault(path, node.value)
    elif half := _joined(node):
        yield places.problem(path, half)
    active.discard(id(node))
    if not isinstance(node, yaml.ScalarNode):
        done.add(id(node))


def _walk_mapping(
    node: yaml.MappingNode, path: Key, places: SourceMap, *, active: set[int], done: set[int]
) -> Iterator[Problem]:
    first: dict[str, int] = {}
    merged: list[yaml.Node] = []
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE_TAG:
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            continue
        here = Place(places.source, line)
        if half := _joined(key):
            yield here.problem(half)
            continue
        if not isinstance(key, yaml.ScalarNode):
            yield here.problem("a key must be text, not a list or a mapping")
            continue
        if key.tag != _TEXT_TAG and not (names_labels(path) and _is_value(key)):
            yield here.problem(f"the key {key.value} must be text; put it in quotes: '{key.value}'")
        if key.value in first:
            what = f"duplicate key, first used on line {first[key.value]}; keep one of them"
            yield Problem(places.source, what, line, (*path, key.value))
        first.setdefault(key.value, line)
        places.lines[(*path, key.value)] = line
        yield from _walk(value, (*path, key.value), places, active=active, done=done)
    for value in merged:  # `<<: *defaults`; the mapping's own keys come first and win
        yield from _walk(value, path, places, active=active, done=done)


def names_labels(path: Key) -> bool:
    """Whether the keys of the mapping at a path are values of the data."""
    return str(path[-1:] and path[-1]).rpartition(".")[2] in ("label_names", "label_weights")


def by_label(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """The mapping with its keys as texts: as the data's files have them, true and not True.

    >>> by_label({0: "bad", 1: "good"}), by_label({True: "yes", False: "no"})
    ({'0': 'bad', '1': 'good'}, {'true': 'yes', 'false': 'no'})
    """
    return {str(k).lower() if isinstance(k, bool) else str(k): value for k, value in mapping.items()}


def _is_value(key: yaml.ScalarNode) -> bool:
    """Whether a key reads as the value of the data that it looks like, unlike yes, which YAML takes for true, and 010,
    which it takes for 8.
    """
    return re.fullmatch("true|false|0|-?[1-9][0-9]*", key.value.lower()) is not None


def _joined(node: yaml.Node) -> str | None:
    """Joins each pair of escapes that JSON writes for one character ("\\ud83d\\ude00"), in place.

    Returns what is wrong: a half that is left over.
    """
    if not isinstance(node.value, str) or half_problem(node.value) is None:
        return None
    node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return half_problem(node.value)


def _syntax_problem(error: yaml.YAMLError, text: str, source: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        return Problem(source, f"not YAML: {error.reason} (character {error.position + 1})", line)
    if not isinstance(error, yaml.MarkedYAMLError):
        return Problem(source, f"not YAML: {error}")
    mark = error.problem_mark or error.context_mark
    what = error.problem or error.context or "cannot be read"
    if "'\\t'" in what:
        what += "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in what:
        what += "; a text with ': ' in it needs quotes"
    elif "expected a single document" in (error.context or ""):
        what = "a second document begins here; a run is one document, without '---' in between"
    return Problem(source, f"not YAML: {what}", mark.line + 1 if mark else None)
