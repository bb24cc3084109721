"""Prompts from files of several layouts: which are used, and what is told about the rest.

A row is {messages} (whose trailing assistant turns are dropped), {prompt}, {question}, {instruction} or {turns: [...]}
(FastChat's and the arenas' layout: the first turn); a row with several of them needs `field`. A text is one user turn.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sla_jax.errors import UserError
from sla_jax.files import read_rows
from sla_jax.scoring.candidate import Message
from sla_jax.training.onpolicy_config import PairsConfig

FIELDS = ("messages", "prompt", "question", "instruction", "turns")
ROLES = ("system", "user", "assistant", "tool")


class Prompt(NamedTuple):
    """One conversation that waits for an answer."""

    messages: list[Message]
    origin: str  # "FILE, line N"

    @property
    def text(self) -> str:
        """What stands for the prompt in hashes: the one user turn, or all messages as JSON."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True)

    @property
    def id(self) -> str:
        """md5 of the text."""
        return md5(self.text)

    @property
    def last(self) -> str:
        """The last user turn without regard to case and spacing: by this prompts are excluded."""
        turns = [message["content"] for message in self.messages if message["role"] == "user"]
        return " ".join(turns[-1].casefold().split()) if turns else ""


def md5(text: str) -> str:
    """Hexadecimal."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def choose_prompts(config: PairsConfig) -> tuple[list[Prompt], Counter[str]]:
    """The prompts of a run in file order, less doubles and excluded ones; `limit` is for `cut`, after tokenizing."""
    banned = {prompt.last for name in config.exclude for prompt in read_prompts(name, config.field)}
    kept: dict[str, Prompt] = {}
    counts: Counter[str] = Counter()
    for prompt in (prompt for name in config.prompts for prompt in read_prompts(name, config.field)):
        counts["read"] += 1
        if prompt.last in banned:
            counts["excluded"] += 1
        elif prompt.id in kept:
            counts["doubles"] += 1
        else:
            kept[prompt.id] = prompt
    return list(kept.values()), counts


def cut(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The `limit` prompts with the smallest md5 of "limit:" + text, in the order in which they came."""
    if limit is None or len(prompts) <= limit:
        return list(prompts)
    taken = {prompt.id for prompt in sorted(prompts, key=lambda prompt: md5("limit:" + prompt.text))[:limit]}
    return [prompt for prompt in prompts if prompt.id in taken]


def read_prompts(name: str, field: str | None) -> list[Prompt]:
    """All prompts of a file. Raises UserError that names file, line and reason."""
    found = []
    for origin, row in read_rows(name):
        try:
            found.append(Prompt(_messages(row, field), origin))
        except ValueError as reason:
            raise UserError(
                f"{origin}: {reason}. A row is an object with one of {', '.join(FIELDS)}, or with what --field names."
            ) from None
    if not found:
        raise UserError(f"{name} holds no prompt; expected one JSON object a line, or one JSON array of objects.")
    return found


def _messages(row: object, field: str | None) -> list[Message]:
    if not isinstance(row, Mapping):
        raise ValueError("the row is not a JSON object")
    names = [field] if field else [name for name in FIELDS if row.get(name) is not None]
    if len(names) > 1:
        raise ValueError(f"the row has several prompts ({', '.join(names)}); name one with --field")
    if not names or row.get(names[0]) is None:
        raise ValueError(f"the row has no {names[0]!r}" if names else f"no prompt among {', '.join(map(str, row))}")
    value = row[names[0]]
    if isinstance(value, list) and value and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{names[0]!r} is empty")
        return [{"role": "user", "content": value}]
    return _conversation(value)


def _conversation(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError("the prompt is neither text nor a list of messages or turns")
    messages = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError("a message is not {role, content}")
        if message.get("role") not in ROLES:
            raise ValueError(f"a message has the role {message.get('role')!r}, not one of {', '.join(ROLES)}")
        messages.append({"role": str(message["role"]), "content": message["content"]})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise ValueError("no message but the assistant's")
    return messages
