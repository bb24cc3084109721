"""Rows of training data: every layout that is read, checked. A row that cannot be used is a `BadRow` with the reason.

| task | layouts |
|---|---|
| pairs | {prompt or messages, chosen, rejected}; responses are texts, or message lists that end with the response |
| | {chosen, rejected}: message lists with equal earlier turns; texts that begin alike (TRL's implicit prompt, cut at |
| | white space); or Anthropic HH's "\\n\\nHuman: …\\n\\nAssistant: …" texts |
| | UltraFeedback (binarized, ArmoRM): prompt text beside whole conversations, which win; the prompt has to agree |
| sft | {messages}: every assistant turn is scored. {prompt, completion}: texts or message lists, completion scored |
| | {instruction, input?, output}: the user says instruction, blank line, input |
| steps | {prompt or messages, completions: [text, …], labels: [true, false, 1, 0, …]}: TRL's |
| | {problem, steps: [text, …], label: index of the first bad step, or −1}: ProcessBench's; steps behind it: no label |

Messages are OpenAI's {role, content}; content has to be a text (no parts, no images), and calls of tools are refused
rather than dropped. System messages are kept. A prompt that is a text is one user message.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.files import BadRow
from sla_jax.training.data_config import Task
from sla_jax.training.process import labels_until

ROLES = ("system", "user", "assistant", "tool")
LAYOUTS: Mapping[Task, str] = {
    "pairs": "{prompt or messages, chosen, rejected, optional split}",
    "sft": "{messages}, {prompt, completion} or {instruction, optional input, output}, each with an optional split",
    "steps": "{prompt or messages, completions: [text, …], labels: [true, false, …]} or {problem, steps: [text, …], "
    "label: index of the first bad step or -1}, each with an optional split",
}
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
Message = dict[str, str]


class Pair(NamedTuple):
    """One preference: the conversation up to the response, and the better and the worse response."""

    messages: list[Message]
    chosen: str
    rejected: str


class Talk(NamedTuple):
    """One conversation to imitate; its assistant turns from message `first` on are scored."""

    messages: list[Message]
    first: int


class Steps(NamedTuple):
    """One reasoning answer in steps, each with its label: 1 good, 0 bad, −1 not known."""

    messages: list[Message]
    steps: list[str]
    labels: list[int]


Row = Pair | Talk | Steps


def parse_row(row: object, task: Task) -> Row:
    """One row, checked. Raises BadRow with the reason."""
    if not isinstance(row, Mapping):
        raise BadRow("the row is not a JSON object")
    readers: dict[Task, Callable[[Mapping[str, Any]], Row]] = {"pairs": _pair, "sft": _talk, "steps": _steps}
    return readers[task](row)


def prompt_of(row: Row) -> list[Message]:
    """The messages before the first scored response."""
    return row.messages[: row.first] if isinstance(row, Talk) else row.messages


def prompt_number(messages: Sequence[Message]) -> int:
    """128 bits: salted md5 of a prompt. The salt keeps it independent of splits by md5(prompt) in the data itself."""
    return _number("held out:" + json.dumps(messages, ensure_ascii=False, sort_keys=True))


def limit_number(row: Row) -> int:
    """128 bits: salted md5 of a whole row; a limited part is the rows with the smallest of them."""
    return _number("limit:" + json.dumps(list(row), ensure_ascii=False))


def held_out(row: Row, one_in: int) -> bool:
    """Whether a row is held out, by a hash of its prompt: the same prompt is never on both sides. 0 holds out none."""
    return one_in > 0 and prompt_number(prompt_of(row)) % one_in == 0


def _number(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


# ---- pairs ----


def _pair(row: Mapping[str, Any]) -> Pair:
    chosen, rejected = (_field(row, key) for key in ("chosen", "rejected"))
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise BadRow(f"'chosen' is {_kind(chosen)} and 'rejected' is {_kind(rejected)}; both have to be the same")
    if isinstance(chosen, list):
        pair = _from_lists(row, chosen, rejected)
    elif _has_prompt(row):
        pair = Pair(_prompt(row), _text(chosen, "chosen"), _text(rejected, "rejected"))
    else:
        if _close(row, ("prompt", "messages")):
            raise BadRow(f"neither 'prompt' nor 'messages'{_hint(row, ('prompt', 'messages'))}")
        pair = _from_texts(_text(chosen, "chosen"), _text(rejected, "rejected"))
    if pair.chosen == pair.rejected:
        raise BadRow("chosen and rejected are the same text")
    return pair


def _from_lists(row: Mapping[str, Any], chosen: list[Any], rejected: list[Any]) -> Pair:
    """Responses as message lists: the response alone, or a conversation that ends with it and that is the prompt."""
    talks = [_messages(chosen, "chosen"), _messages(rejected, "rejected")]
    for talk, key in zip(talks, ("chosen", "rejected"), strict=True):
        if talk[-1]["role"] != "assistant":
            raise BadRow(f"{key!r} ends with a message of the {talk[-1]['role']!r}, not with the assistant's response")
    answers = [_text(talk[-1]["content"], key) for talk, key in zip(talks, ("chosen", "rejected"), strict=True)]
    before, other = talks[0][:-1], talks[1][:-1]
    if before != other:
        raise BadRow(f"'chosen' and 'rejected' differ in message {_difference(before, other)}, before the response")
    if not before:
        return Pair(_prompt(row), *answers)
    _agrees(row, talks[0], before)
    return Pair(_to_answer(before, "chosen"), *answers)


def _agrees(row: Mapping[str, Any], talk: list[Message], before: list[Message]) -> None:
    """Raises BadRow when a prompt beside a whole conversation is not that conversation's."""
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str):
        asked = [message["content"].strip() for message in before if message["role"] == "user"] or [""]
        if prompt.strip() not in (asked[0], asked[-1]):
            raise BadRow(f"'prompt' is {prompt[:40]!r} and the conversation in 'chosen' asks {asked[-1][:40]!r}")
    elif prompt is not None and _messages(prompt, "prompt") != before:
        at = _difference(_messages(prompt, "prompt"), before)
        raise BadRow(f"'prompt' differs in message {at} from the conversation in 'chosen'")
    if messages is not None and _messages(messages, "messages") not in (before, talk):
        at = _difference(_messages(messages, "messages"), talk)
        raise BadRow(f"'messages' differs in message {at} from the conversation in 'chosen'")


def _from_texts(chosen: str, rejected: str) -> Pair:
    """Two texts that hold the prompt: Anthropic HH's dialogues, or TRL's implicit prompt."""
    if all(HH_TURN.match(text) for text in (chosen, rejected)):
        talks = [_dialogue(chosen, "chosen"), _dialogue(rejected, "rejected")]
        if talks[0][:-1] != talks[1][:-1]:
            at = _difference(talks[0][:-1], talks[1][:-1])
            raise BadRow(f"the dialogues in 'chosen' and 'rejected' differ in turn {at}, before the response")
        answers = [_text(talk[-1]["content"], key) for talk, key in zip(talks, ("chosen", "rejected"), strict=True)]
        return Pair(_to_answer(_messages(talks[0][:-1], "chosen"), "chosen"), *answers)
    alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    alike = min(len(chosen), len(rejected)) if alike is None else alike
    cut = max((place.start() for place in re.finditer(r"\s", chosen[:alike])), default=0)
    prompt = chosen[:cut].strip()
    if not prompt:
        raise BadRow("neither 'prompt' nor 'messages', and 'chosen' and 'rejected' do not begin with the same words")
    answers = [_text(text[cut:].strip(), key) for text, key in ((chosen, "chosen"), (rejected, "rejected"))]
    return Pair([{"role": "user", "content": prompt}], *answers)


def _dialogue(text: str, key: str) -> list[Message]:
    """Turns of an Anthropic HH text, without the white space around them."""
    _, *parts = HH_TURN.split(text)
    turns = [
        {"role": HH_ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise BadRow(f"the dialogue in {key!r} does not end with an 'Assistant:' turn")
    return turns


# ---- conversations and steps ----


def _talk(row: Mapping[str, Any]) -> Talk:
    if row.get("messages") is not None:
        talk = _messages(row["messages"], "messages")
        first = next((i for i, message in enumerate(talk) if message["role"] == "assistant"), len(talk))
        if first == len(talk):
            raise BadRow("'messages' has no assistant message, so there is nothing to learn")
    elif row.get("completion") is not None:
        prompt = _prompt(row)
        completion = row["completion"]
        if not isinstance(completion, list):
            completion = [{"role": "assistant", "content": _text(completion, "completion")}]
        talk, first = [*prompt, *_messages(completion, "completion")], len(prompt)
    elif row.get("instruction") is not None or row.get("output") is not None:
        asked, more = _text(_field(row, "instruction"), "instruction"), row.get("input") or ""
        if not isinstance(more, str):
            raise BadRow(f"'input' is {_kind(more)}, not text")
        said = _text(_field(row, "output"), "output")
        asked = f"{asked}\n\n{more}" if more.strip() else asked
        talk, first = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], 1
    else:
        raise _missing(row, ("messages", "completion", "instruction"))
    return Talk(_turns(talk), first)


def _turns(talk: list[Message]) -> list[Message]:
    """The conversation, if each of its responses answers something."""
    if talk[-1]["role"] != "assistant":
        raise BadRow(f"the conversation ends with a message of the {talk[-1]['role']!r}, which nothing answers")
    for number, message in enumerate(talk):
        if message["role"] != "assistant":
            continue
        if number == 0 or talk[number - 1]["role"] == "assistant":
            before = "follows another one" if number else "is the first"
            raise BadRow(f"message {number + 1}, the assistant's, {before}; it answers nothing")
        _text(message["content"], f"messages[{number}].content")
    return talk


def _steps(row: Mapping[str, Any]) -> Steps:
    if row.get("problem") is not None and row.get("completions") is None:
        return _first_bad_step(row)
    steps, labels = _field(row, "completions"), _field(row, "labels")
    messages, texts = _prompt(row), _texts(steps, "completions")
    if not isinstance(labels, list):
        raise BadRow(f"'labels' is {_kind(labels)}, not a list")
    if len(steps) != len(labels):
        raise BadRow(f"{len(steps)} completions and {len(labels)} labels; every step has one label")
    for number, label in enumerate(labels):
        if not isinstance(label, bool | int) or label not in (0, 1):
            raise BadRow(f"labels[{number}] is {label!r}, not true, false, 1 or 0")
    return Steps(messages, texts, [int(label) for label in labels])


def _first_bad_step(row: Mapping[str, Any]) -> Steps:
    """ProcessBench's layout: nothing is known of the steps behind the first bad one."""
    problem, first = _text(_field(row, "problem"), "problem"), _field(row, "label")
    texts = _texts(_field(row, "steps"), "steps")
    if not isinstance(first, int) or isinstance(first, bool):
        raise BadRow(f"'label' is {_kind(first)}, not the index of the first bad step or -1")
    try:
        labels = labels_until(first, len(texts))
    except UserError as error:
        raise BadRow(str(error)) from None
    return Steps([{"role": "user", "content": problem}], texts, labels.tolist())


def _texts(steps: object, key: str) -> list[str]:
    if not isinstance(steps, list) or not steps:
        raise BadRow(f"{key!r} is {_kind(steps)}, not a non-empty list of texts")
    return [_text(step, f"{key}[{number}]") for number, step in enumerate(steps)]


# ---- fields ----


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return row.get("prompt") is not None or row.get("messages") is not None


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    """The conversation before the response, from `messages` or `prompt`."""
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is not None and prompt is not None:
        raise BadRow("both 'prompt' and 'messages'")
    if prompt is not None and not isinstance(prompt, list):
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRow("'prompt' is not a non-empty text")
        return [{"role": "user", "content": _text(prompt, "prompt")}]
    if messages is None and prompt is None:
        hint = _hint(row, ("prompt", "messages"))
        raise BadRow(f"neither 'prompt' nor 'messages'{hint}")
    key = "messages" if prompt is None else "prompt"
    return _to_answer(_messages(messages if prompt is None else prompt, key), key)


def _to_answer(messages: list[Message], key: str) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        raise BadRow(f"in {key!r} the last message before the response is the assistant's own")
    return messages


def _messages(messages: object, key: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise BadRow(f"{key!r} is not a non-empty list of messages")
    return [_message(message, f"{key}[{number}]") for number, message in enumerate(messages)]


def _message(message: object, at: str) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise BadRow(f"{at} is not a message {{role, content}}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else ""
        raise BadRow(f"{at} has the role {role!r}, not one of {', '.join(ROLES)}.{hint}".rstrip("."))
    if message.get("tool_calls") or message.get("function_call"):
        raise BadRow(f"{at} calls a tool, which is not trained on; write the call into its content")
    if not isinstance(content, str):
        raise BadRow(f"{at}.content is {_kind(content)}; a message's content has to be text")
    return {"role": role, "content": content}


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{key!r} is not text but {_kind(value)}")
    if not value.strip():
        raise BadRow(f"{key!r} is empty")
    return value


def _field(row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise BadRow(f"{key!r} is null" if key in row else f"no {key!r} field{_hint(row, (key,))}")
    return row[key]


def _missing(row: Mapping[str, Any], wanted: tuple[str, ...]) -> BadRow:
    return BadRow(f"none of the fields {', '.join(map(repr, wanted))}{_hint(row, wanted)}")


def _hint(row: Mapping[str, Any], wanted: tuple[str, ...]) -> str:
    """What the row calls the missing field, if one of its own names is close; else the names that it has."""
    close = _close(row, wanted)
    if close:
        return f" (is {close[0]!r} meant to be {close[1]!r}?)"
    return f" (the row has {', '.join(map(str, row)) or 'no field at all'})"


def _close(row: Mapping[str, Any], wanted: tuple[str, ...]) -> tuple[str, str] | None:
    """(the row's own name, the wanted one) of a field that looks misspelled."""
    names = [str(name) for name, value in row.items() if value is not None]
    for key in wanted:
        for name in difflib.get_close_matches(key, names, n=1, cutoff=0.6):
            return name, key
    return None


def _difference(one: list[Message], two: list[Message]) -> int:
    """Number, from 1, of the first message that is not the same."""
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return same + 1


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
