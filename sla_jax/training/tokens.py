"""From rows to tokens: chat template, marks and truncation, in as many processes as wanted.

**Marks.** A response's tokens, its end-of-turn token included, are scored; everything else is only read. In an SFT
conversation every assistant turn is scored, and what the template puts between two of them belongs to the answer
without being scored. The tokens are those that serving would see: each response follows the prompt as the template
renders it, and a template that rewrites an earlier turn once there are later ones is an error.
In a row of steps the answer is every step followed by the separator, each tokenized by itself as TRL does, without an
end of turn; the last token of a separator carries the step's label and nothing else is scored. A step that already ends
with the separator does not get a second one, which would be an empty step of its own.

**Truncation** is from the left of the prompt: it keeps its last `max_prompt_length` tokens, and fewer when the response
needs the room, but never less than its last turn (as long as that fits `max_prompt_length`). Only when last turn and
response together exceed `max_length` is the response's end cut. The answers of a row get the same prompt. A
conversation of several scored turns first loses its earliest ones: what is left of them is read, not scored.
A step whose separator is cut loses its label. All of it is counted.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sla_jax.errors import UserError
from sla_jax.text import (
    DAY,
    PreTrainedTokenizerBase,
    chat_ids,
    check_vocabulary,
    load_tokenizer,
    response_ids,
    with_template,
)
from sla_jax.training.data_config import SEPARATOR
from sla_jax.training.examples import UNSCORED, Answer, Example, Flat, exact_text, flatten
from sla_jax.training.rows import Message, Pair, Row, Steps, Talk

CHUNK = 256  # rows that a process gets at a time
FEW = 4096  # rows that are not worth starting processes for
RESPONSE = 1  # the mark of an ordinary response token
CUTS = ("cut_prompts", "cut_answers", "cut_turns", "cut_labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How rows become tokens; the fields are those of `DataConfig`, and the rows of the policy's embedding."""

    max_length: int
    max_prompt_length: int
    separator: str = SEPARATOR
    last_step_only: bool = False
    template: dict[str, Any] = dataclasses.field(default_factory=dict)
    date: str = DAY
    vocabulary: int | None = None


class Cut(NamedTuple):
    """One row's example, and what truncation took from it."""

    example: Example
    prompts: int = 0  # 1 if the prompt lost its left end
    answers: int = 0  # answers that lost their right end
    turns: int = 0  # scored turns that were lost or are only read
    labels: int = 0  # steps whose label was lost


class Chunk(NamedTuple):
    """Some rows, packed. Rows that could not be used, or have an answer without scored tokens, are not in it."""

    kept: np.ndarray  # int64 [k]: which of the rows
    flat: Flat
    counts: Counter[str]  # of CUTS
    empty: list[int]  # rows without a scored token
    bad: list[tuple[int, str]]  # rows that the template or tokenizer refuses, and why


def tokenize_rows(
    directory: Path, rows: Sequence[Row], rules: Rules, workers: int, progress: Callable[[int, int], None]
) -> list[Chunk]:
    """All rows in order, whatever the number of processes. `progress(done, total)` is told rows."""
    _tokenizer.cache_clear()  # the files may have changed since this process read them
    _bound(str(directory), rules)  # its complaints before any process starts
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    workers = min(workers or (1 if len(rows) < FEW else os.cpu_count() or 1), max(len(parts), 1))
    work = functools.partial(tokenize_chunk, str(directory), rules)
    chunks: list[Chunk] = []
    for part, chunk in zip(parts, _mapped(work, parts, workers), strict=True):
        chunks.append(chunk)
        progress(min(len(chunks) * CHUNK, len(rows)) if part else 0, len(rows))
    return chunks


def _mapped(work: Callable[[Sequence[Row]], Chunk], parts: Sequence[Sequence[Row]], workers: int) -> Iterator[Chunk]:
    """Like map, in `workers` processes. They are spawned: forking a process that runs JAX would hang it."""
    if workers == 1:
        yield from map(work, parts)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from pool.map(work, parts)
    except BrokenProcessPool:
        raise UserError(
            f"one of the {workers} processes that tokenize was killed, by lack of memory as a rule; lower data.workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _tokenizer(directory: str) -> PreTrainedTokenizerBase:
    """Loaded once a process."""
    return load_tokenizer(directory)


def _bound(directory: str, rules: Rules) -> PreTrainedTokenizerBase:
    return with_template(_tokenizer(directory), rules.template, rules.date)


def tokenize_chunk(directory: str, rules: Rules, rows: Sequence[Row]) -> Chunk:
    """Some rows, packed. Never raises for a row: see `Chunk.bad`."""
    tokenizer = _bound(directory, rules)
    kept: list[int] = []
    empty: list[int] = []
    examples: list[Example] = []
    bad: list[tuple[int, str]] = []
    counts: Counter[str] = Counter(dict.fromkeys(CUTS, 0))
    for number, row in enumerate(rows):
        try:
            example, *cuts = tokenize_row(tokenizer, row, rules)
            _check_tokens(tokenizer, example, rules)
        except UserError as error:
            bad.append((number, str(error)))
            continue
        counts.update(dict(zip(CUTS, cuts, strict=True)))
        if all((answer.marks >= 0).any() for answer in example.answers):
            kept.append(number)
            examples.append(example)
        else:
            empty.append(number)
    return Chunk(np.asarray(kept, np.int64), flatten(examples), counts, empty, bad)


def _check_tokens(tokenizer: PreTrainedTokenizerBase, example: Example, rules: Rules) -> None:
    """Raise UserError for a token that the policy has no embedding for."""
    if rules.vocabulary is not None:
        for name, ids in (("the prompt", example.prompt), *(("an answer", one.tokens) for one in example.answers)):
            check_vocabulary(tokenizer, ids.tolist(), rules.vocabulary, name)


# ---- one row ----


def tokenize_row(tokenizer: PreTrainedTokenizerBase, row: Row, rules: Rules) -> Cut:
    """One row. Raises UserError when the template refuses it or some text has no token at all."""
    if isinstance(row, Pair):
        return _pair(tokenizer, row, rules)
    if isinstance(row, Talk):
        return _talk(tokenizer, row, rules)
    return _steps(tokenizer, row, rules)


def _pair(tokenizer: PreTrainedTokenizerBase, row: Pair, rules: Rules) -> Cut:
    prompt, chosen = response_ids(tokenizer, row.messages, row.chosen)
    _, rejected = response_ids(tokenizer, row.messages, row.rejected)
    if not (prompt and chosen and rejected):
        raise _no_token(row)
    kept = _kept(tokenizer, row.messages, len(prompt), max(len(chosen), len(rejected)), rules)
    room = rules.max_length - kept
    answers = tuple(_answer(ids[:room], [RESPONSE] * len(ids[:room])) for ids in (chosen, rejected))
    cut = sum(len(ids) > room for ids in (chosen, rejected))
    return Cut(Example(_int32(prompt[-kept:]), answers), prompts=int(kept < len(prompt)), answers=cut)


def _talk(tokenizer: PreTrainedTokenizerBase, row: Talk, rules: Rules) -> Cut:
    """A conversation: all its tokens with marks, then the earliest scored turn from which on it fits."""
    ids: list[int] = []
    marks: list[int] = []
    begins: list[tuple[int, int]] = []  # (message, token) at which a scored response begins
    for number, message in enumerate(row.messages):
        if number < row.first or message["role"] != "assistant":
            continue
        prompt, response = response_ids(tokenizer, row.messages[:number], message["content"])
        if not (prompt and response):
            raise _no_token(row)
        ids += _continued(tokenizer, ids, prompt)
        begins.append((number, len(ids)))
        ids += response
        marks += [UNSCORED] * (len(ids) - len(response) - len(marks)) + [RESPONSE] * len(response)
    for turn, (number, begin) in enumerate(begins):
        kept = _kept(tokenizer, row.messages[:number], begin, len(ids) - begin, rules)
        end = begin + rules.max_length - kept
        if end >= len(ids) or turn == len(begins) - 1:
            break
    example = Example(_int32(ids[begin - kept : begin]), (_answer(ids[begin:end], marks[begin:end]),))
    return Cut(example, prompts=int(kept < begin), answers=int(end < len(ids)), turns=turn)


def _continued(tokenizer: PreTrainedTokenizerBase, before: list[int], prompt: list[int]) -> list[int]:
    """What the template adds to the tokens `before` to make the next turn's prompt.

    As a rule `prompt` begins with them. Where it does not, because a token runs across the end of a turn, its text
    has to, and the rest of that text is tokenized by itself.
    """
    if prompt[: len(before)] == before:
        return prompt[len(before) :]
    old, new = (exact_text(tokenizer, ids) for ids in (before, prompt))
    if new.startswith(old):
        return list(tokenizer.backend_tokenizer.encode(new[len(old) :], add_special_tokens=False).ids)
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    raise UserError(
        f"the chat template writes earlier turns differently once there are later ones: {old[at : at + 40]!r} becomes "
        f"{new[at : at + 40]!r}; expected the same text, so that every response is trained behind what serving reads. "
        "Split the conversation into one row a response, or use a template that keeps it."
    )


def _steps(tokenizer: PreTrainedTokenizerBase, row: Steps, rules: Rules) -> Cut:
    prompt = chat_ids(tokenizer, row.messages)
    separator = list(tokenizer.backend_tokenizer.encode(rules.separator, add_special_tokens=False).ids)
    if not (prompt and separator):
        what = "prompt" if separator else f"separator {rules.separator!r}"
        raise UserError(f"the tokenizer makes no token of the {what}; check its chat template and data.separator.")
    ids: list[int] = []
    marks: list[int] = []
    for number, (step, label) in enumerate(zip(row.steps, row.labels, strict=True)):
        text = step.removesuffix(rules.separator)
        if not text:
            raise UserError(f"completions[{number}] is nothing but data.separator, {rules.separator!r}; leave it out.")
        ids += [*tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids, *separator]
        wanted = number == len(row.steps) - 1 or not rules.last_step_only
        marks += [UNSCORED] * (len(ids) - len(marks) - 1) + [label if wanted else UNSCORED]
    kept = _kept(tokenizer, row.messages, len(prompt), len(ids), rules)
    room = rules.max_length - kept
    lost = sum(mark != UNSCORED for mark in marks[room:])
    example = Example(_int32(prompt[-kept:]), (_answer(ids[:room], marks[:room]),))
    return Cut(example, prompts=int(kept < len(prompt)), answers=int(len(ids) > room), labels=lost)


def _kept(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: int, response: int, rules: Rules
) -> int:
    """How many of the prompt's last tokens are kept before responses of up to `response` tokens."""
    kept = min(prompt, rules.max_prompt_length)
    if kept + response <= rules.max_length:
        return kept
    return max(rules.max_length - response, min(kept, _last_turn(tokenizer, messages)))


def _last_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> int:
    """How many tokens the last message has by itself, or with the system's where the template refuses it alone."""
    *before, last = messages
    try:
        return len(chat_ids(tokenizer, [last]))
    except UserError:
        return len(chat_ids(tokenizer, [*(one for one in before if one["role"] == "system"), last]))


def _answer(ids: list[int], marks: list[int]) -> Answer:
    return Answer(_int32(ids), np.asarray(marks, np.int8))


def _int32(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)


def _no_token(row: Row) -> UserError:
    return UserError(f"the tokenizer makes no token of the prompt or a response of {row!r:.200}; check its template.")
