r"""Conversations: the messages of a row, and their text, which is the `sentence` of a chat example.

>>> messages = conversation({"messages": [{"role": "user", "content": "Hi\nIt is down"}]}, "messages")
>>> print(as_text(messages))
user: Hi
  It is down
>>> messages_of(as_text(messages)) == messages
True

Each message is its role and its content; the further lines of a content are indented by two spaces. So a conversation
is readable wherever a text is shown, and its messages can be read back from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nlora.config.characters import half_problem
from nlora.data.field_error import FieldError, RepeatedKey, kind_of

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
"""The roles of a row, ShareGPT's names among them -> those of chat templates."""

_KEYS = (("role", "content"), ("from", "value"))


class Message(NamedTuple):
    """One turn of a conversation. role: system, user, assistant or tool."""

    role: str
    content: str


def conversation(row: Mapping[str, Any], name: str, *, answered: bool = False) -> list[Message]:
    """The messages of a row's field.

    answered: whether the last one must be the assistant's.
    Raises FieldError for anything that is not a conversation of texts.
    """
    value = row[name]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise FieldError(f"{name} is {kind_of(value)} instead of a list of messages")
    if not value:
        raise FieldError(f"{name} is empty")
    messages = [_message(one, f"{name}[{i}]") for i, one in enumerate(value)]
    if not any(message.role == "user" for message in messages):
        raise FieldError(f"{name} has no turn of the user")
    if answered and messages[-1].role != "assistant":
        raise FieldError(
            f"{name} ends with a turn of the {messages[-1].role}; the last turn must be the assistant's"
        )
    return messages


def as_text(messages: Sequence[Message]) -> str:
    """The conversation as a readable text; different conversations have different texts."""
    return "\n".join(f"{role}: {content}".replace("\n", "\n  ") for role, content in messages)


def messages_of(text: str) -> list[Message]:
    """The messages of a text that `as_text` wrote."""
    turns = (turn.replace("\n  ", "\n").partition(": ") for turn in re.split(r"\n(?!  )", text))
    return [Message(role, content) for role, _, content in turns]


def _message(value: Any, where: str) -> Message:
    if isinstance(value, RepeatedKey):
        raise FieldError(f"{where} has a {value.what}")
    if not isinstance(value, Mapping):
        raise FieldError(f"{where} is {kind_of(value)} instead of an object with role and content")
    role_key, content_key = next((keys for keys in _KEYS if keys[0] in value), _KEYS[0])
    for key in (role_key, content_key):
        if key not in value:
            raise FieldError(f"{where} has no '{key}'")
    role = value[role_key]
    if not isinstance(role, str) or role not in ROLES:
        shown = f"'{role}'" if isinstance(role, str) else kind_of(role)
        raise FieldError(f"{where} has the role {shown}; known: {', '.join(dict.fromkeys(ROLES.values()))}")
    if value.get("tool_calls"):
        raise FieldError(
            f"{where} has tool_calls, which are not supported; write them as text, or leave it out"
        )
    return Message(ROLES[role], _content(value[content_key], f"{where}.{content_key}", ROLES[role]))


def _content(value: Any, where: str, role: str) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value))
    if not isinstance(value, str):
        raise FieldError(f"{where} is {kind_of(value)} instead of text")
    if not value.strip() and role != "system":
        raise FieldError(f"{where} is empty")
    if half := half_problem(value):
        raise FieldError(f"{where} {half}")
    return value


def _part(part: Any, where: str) -> str:
    """The text of one part of a content."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    shown = f"a part of type '{kind}'" if isinstance(kind, str) and kind != "text" else "no part with text"
    raise FieldError(f"{where} is {shown}; only parts of type 'text' are supported")
