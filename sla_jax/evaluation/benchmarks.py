"""Prompts of public benchmarks, of files and of data sets, as one kind of row.

| layout | fields | id | category | level | reference |
|---|---|---|---|---|---|
| mt_bench | question_id, category, turns | question_id | category | | JSON list, one text a turn, from `references` |
| arena_hard | uid or question_id, prompt or turns, cluster, category | uid | cluster, or category | | |
| alpaca_eval | instruction, dataset | row | dataset | | |
| math500 | problem, answer, subject, level, unique_id | unique_id | subject | level | answer |
| gsm8k | question, answer | row | | | what stands behind #### |
| ifeval | key, prompt, instruction_id_list, kwargs | key | | | JSON {instruction_id_list, kwargs} |
| any | messages, turns, prompt, question, instruction, problem | id or row | category | level | reference or answer |

`row` is the row's number in its file, from 0. Of `messages` the last one is the prompt, a trailing answer is dropped,
and what stands in front of it is the conversation's history.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.settings import BenchmarkConfig
from sla_jax.scoring.candidate import Message
from sla_jax.scoring.files import load_splits, read_rows
from sla_jax.scoring.final import marked

PROMPT_FIELDS = ("messages", "turns", "prompt", "question", "instruction", "problem")
ROLES = ("system", "user", "assistant")


class Prompt(NamedTuple):
    """What is asked, turn by turn."""

    id: str
    turns: tuple[str, ...]
    category: str | None = None
    level: str | None = None
    reference: str | None = None
    history: tuple[Message, ...] = ()  # in front of the first turn

    @property
    def first(self) -> str:
        """What stands for the prompt in hashes: the first turn, or the whole conversation as JSON."""
        if not self.history:
            return self.turns[0]
        messages = [*self.history, {"role": "user", "content": self.turns[0]}]
        return json.dumps(messages, ensure_ascii=False, sort_keys=True)


class Benchmark(NamedTuple):
    """The prompts that are asked."""

    name: str
    layout: str
    prompts: tuple[Prompt, ...]

    @property
    def digest(self) -> str:
        """sha256 of everything that is asked and compared with."""
        return hashlib.sha256(json.dumps(self.prompts, ensure_ascii=False).encode()).hexdigest()


def load_benchmark(config: BenchmarkConfig) -> Benchmark:
    """The prompts that a config names, in order. Raises UserError that names file, line and field."""
    references = {} if config.references is None else read_references(config.references)
    found = list(_parsed(config, _rows(config), references))
    chosen = _chosen(config, found)
    if not chosen:
        raise UserError(
            f"the benchmark {config.name} has no prompt: {config.file or config.hub} holds {len(found)}, and none is "
            "left by split, fold, limit and exclude."
        )
    return Benchmark(config.name, config.kind, tuple(_asked(config, prompt) for prompt in chosen))


def md5(text: str) -> int:
    """As a number."""
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


# ---- rows ----


def _rows(config: BenchmarkConfig) -> Iterator[tuple[int, str, Any]]:
    """(number in its file, where, row)."""
    if config.file is not None:
        for number, (where, row) in enumerate(read_rows(config.file)):
            if config.split is None or _split(where, row) == config.split:
                yield number, where, row
        return
    assert config.hub is not None, "the config has checked it"
    split, otherwise = config.split or "test", f"give its rows as a file of the benchmark {config.name}"
    table = load_splits(config.hub, config.subset, split, otherwise)[split]
    yield from ((number, f"data set {config.hub}, {split} row {number}", row) for number, row in enumerate(table))


def _split(where: str, row: Any) -> str:
    if not isinstance(row, Mapping) or not isinstance(row.get("split"), str):
        raise UserError(f"{where}: no text 'split', and the config asks for one; leave split out to take every row.")
    return str(row["split"])


def _parsed(
    config: BenchmarkConfig, rows: Iterable[tuple[int, str, Any]], references: Mapping[str, Sequence[str]]
) -> Iterator[Prompt]:
    """All prompts of the rows."""
    seen: dict[str, str] = {}
    for number, where, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {json.dumps(row)[:80]} is no object; the layout is {config.kind}.")
        prompt = LAYOUT_READERS[config.kind](Row(where, row, number, config.kind))
        if prompt.id in seen:
            raise UserError(f"{where}: the id {prompt.id!r} is that of {seen[prompt.id]} too; ids have to differ.")
        seen[prompt.id] = where
        known = references.get(prompt.id)
        if known is not None:
            prompt = prompt._replace(reference=json.dumps(list(known), ensure_ascii=False))
        yield prompt


def _chosen(config: BenchmarkConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """What `exclude`, `fold` and `limit` leave, in order."""
    ids = [prompt.id for prompt in prompts]
    for one in config.exclude:
        if one not in ids:
            raise UserError(f"the benchmark {config.name} excludes {one!r}, which it does not have.{nearest(one, ids)}")
    left = [prompt for prompt in prompts if prompt.id not in config.exclude]
    if config.fold is not None:
        left = [prompt for prompt in left if md5(prompt.first) % config.fold == 0]
    if config.limit is None or len(left) <= config.limit:
        return left
    taken = {one.id for one in sorted(left, key=lambda one: (md5("limit:" + one.first), one.id))[: config.limit]}
    return [prompt for prompt in left if prompt.id in taken]


def _asked(config: BenchmarkConfig, prompt: Prompt) -> Prompt:
    """As many turns as wanted, under the template, behind the system message."""
    turns = tuple(config.template.replace("{prompt}", turn) for turn in prompt.turns[: config.turns])
    head: tuple[Message, ...] = () if config.system is None else ({"role": "system", "content": config.system},)
    return prompt._replace(turns=turns, history=(*head, *prompt.history))


def read_references(path: str) -> dict[str, list[str]]:
    """Question id → a reference answer a turn, of a file in FastChat's model_answer layout. Raises UserError."""
    found = {}
    for number, (where, row) in enumerate(read_rows(path)):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {json.dumps(row)[:80]} is no object; a reference has question_id and choices.")
        line = Row(where, row, number, "references")
        choices = line.field("choices", list, "a list of {turns}")
        turns = choices[0].get("turns") if choices and isinstance(choices[0], Mapping) else None
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise line.wrong("choices", "a list whose first object has a list of texts 'turns'")
        found[line.key("question_id")] = turns
    return found


# ---- layouts ----


class Row(NamedTuple):
    """A row of a file, and where it stands."""

    where: str
    values: Mapping[str, Any]
    number: int
    layout: str

    def wrong(self, name: str, wanted: str) -> UserError:
        """The error for a field."""
        shown = json.dumps(self.values[name], ensure_ascii=False)[:80] if name in self.values else "missing"
        hint = "" if name in self.values else nearest(name, [str(key) for key in self.values])
        return UserError(f"{self.where}: {name!r} is {shown}; in the layout {self.layout} it has to be {wanted}.{hint}")

    def field(self, name: str, kind: type, wanted: str) -> Any:
        """The field, if it is of the kind."""
        if not isinstance(self.values.get(name), kind):
            raise self.wrong(name, wanted)
        return self.values[name]

    def text(self, name: str) -> str:
        """A text that is not blank."""
        value = str(self.field(name, str, "a text"))
        if not value.strip():
            raise self.wrong(name, "a text that is not blank")
        return value

    def key(self, name: str) -> str:
        """A text or a whole number, as a text."""
        value = self.values.get(name)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.wrong(name, "a text or a whole number")
        return str(value)

    def maybe(self, *names: str) -> str | None:
        """The first of these fields that is there, as a text."""
        name = next((name for name in names if self.values.get(name) is not None), None)
        return None if name is None else self.key(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, or of objects with a text `content`, of which there is at least one."""
        wanted = "a list of texts that are not blank"
        turns = self.field(name, list, wanted)
        plain = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in turns]
        if not plain or not all(isinstance(turn, str) and turn.strip() for turn in plain):
            raise self.wrong(name, wanted)
        return tuple(str(turn) for turn in plain)


def _mt_bench(row: Row) -> Prompt:
    return Prompt(row.key("question_id"), row.texts("turns"), row.maybe("category"))


def _arena_hard(row: Row) -> Prompt:
    name = "question_id" if "uid" not in row.values and "question_id" in row.values else "uid"
    turns = row.texts("turns") if "turns" in row.values else (row.text("prompt"),)
    return Prompt(row.key(name), turns, row.maybe("cluster", "category"))


def _alpaca_eval(row: Row) -> Prompt:
    return Prompt(str(row.number), (row.text("instruction"),), row.maybe("dataset"))


def _math500(row: Row) -> Prompt:
    id_, turns = row.key("unique_id"), (row.text("problem"),)
    return Prompt(id_, turns, row.maybe("subject"), row.maybe("level"), row.text("answer"))


def _gsm8k(row: Row) -> Prompt:
    reference = marked(row.text("answer"))
    if reference is None:
        raise row.wrong("answer", "a text that ends in '#### NUMBER'")
    return Prompt(str(row.number), (row.text("question"),), reference=reference)


def _ifeval(row: Row) -> Prompt:
    names = row.field("instruction_id_list", list, "a list of instruction ids")
    arguments = row.field("kwargs", list, "a list of objects, one an instruction")
    if len(names) != len(arguments) or not all(isinstance(one, Mapping) for one in arguments):
        raise row.wrong("kwargs", f"a list of {len(names)} objects, one an instruction")
    checks = {"instruction_id_list": names, "kwargs": arguments}
    return Prompt(row.key("key"), (row.text("prompt"),), reference=json.dumps(checks, ensure_ascii=False))


def _any(row: Row) -> Prompt:
    names = [name for name in PROMPT_FIELDS if row.values.get(name) is not None]
    if len(names) != 1:
        found = f"several prompts ({', '.join(names)})" if names else f"no prompt among {', '.join(row.values)}"
        raise UserError(f"{row.where}: the row has {found}; it needs exactly one of {', '.join(PROMPT_FIELDS)}.")
    more = (row.maybe("category", "subject"), row.maybe("level"), row.maybe("reference", "answer"))
    id_ = row.key("id") if row.values.get("id") is not None else str(row.number)
    if names[0] == "messages":
        history, last = _conversation(row)
        return Prompt(id_, (last,), *more, history)
    return Prompt(id_, row.texts("turns") if names[0] == "turns" else (row.text(names[0]),), *more)


def _conversation(row: Row) -> tuple[tuple[Message, ...], str]:
    """(what stands in front, the user's last message)."""
    wanted = f"a list of messages {{role, content}}, the roles being {', '.join(ROLES)}"
    messages = []
    for message in row.field("messages", list, wanted):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise row.wrong("messages", wanted)
        if not isinstance(message.get("content"), str):
            raise row.wrong("messages", wanted)
        messages.append({"role": str(message["role"]), "content": message["content"]})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise row.wrong("messages", f"{wanted}, and the last but for answers a user's")
    return tuple(messages[:-1]), messages[-1]["content"]


LAYOUT_READERS: dict[str, Callable[[Row], Prompt]] = {
    "mt_bench": _mt_bench,
    "arena_hard": _arena_hard,
    "alpaca_eval": _alpaca_eval,
    "math500": _math500,
    "gsm8k": _gsm8k,
    "ifeval": _ifeval,
    "any": _any,
}
