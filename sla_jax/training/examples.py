"""Tokenized training examples: one prompt and its answers, as flat arrays in memory or memory-mapped from a folder.

Preference pairs have two answers (chosen, rejected); SFT and process-reward rows have one. Every answer token carries a
mark: -1 is read but not scored, anything else is scored and the mark is its label (1 for ordinary response tokens, 0 or
1 for the end of a reasoning step).

On disk an `Examples` is a folder of .npy files and one JSON file; the tokens of example i are
tokens[starts[i] : starts[i] + prompt + answers], prompt first, and `marks` runs beside them.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sla_jax.files import read_object, write_array, write_text
from sla_jax.text import PreTrainedTokenizerBase

UNSCORED = -1
ARRAYS = ("tokens", "marks", "starts", "prompt_lengths", "answer_lengths", "scored", "groups", "heldout", "where")


class Answer(NamedTuple):
    """One response: what the policy reads, and what a loss looks at."""

    tokens: np.ndarray  # int32 [n]
    marks: np.ndarray  # int8 [n]: UNSCORED, or the label of a scored token


class Example(NamedTuple):
    """One row: the prompt that all answers share, int32, and the answers."""

    prompt: np.ndarray
    answers: tuple[Answer, ...]


class Refused(NamedTuple):
    """Rows that could not be used for one reason, and where the first of them stands."""

    reason: str
    times: int
    source: int  # index into `Examples.places`
    number: int


class Flat(NamedTuple):
    """Several examples laid end to end."""

    lengths: np.ndarray  # int32 [n, 1 + A]: tokens of the prompt and of each answer
    scored: np.ndarray  # int32 [n, A]
    tokens: np.ndarray  # int32
    marks: np.ndarray  # int8; prompts are UNSCORED


def flatten(examples: Sequence[Example]) -> Flat:
    """The examples laid end to end, each with as many answers as the first."""
    parts = [part for prompt, answers in examples for part in (prompt, *(answer.tokens for answer in answers))]
    marks = [
        part
        for prompt, answers in examples
        for part in (np.full(len(prompt), UNSCORED, np.int8), *(answer.marks for answer in answers))
    ]
    shape = (len(examples), 1 + (len(examples[0].answers) if examples else 1))
    lengths = np.asarray([len(part) for part in parts], np.int32).reshape(shape)
    scored = np.asarray([int((part >= 0).sum()) for part in marks], np.int32).reshape(shape)
    tokens = np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
    return Flat(lengths, scored[:, 1:], tokens, np.concatenate([np.zeros(0, np.int8), *marks]).astype(np.int8))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Many examples with the same number of answers each. Everything but the flat arrays has one entry an example."""

    prompt_lengths: np.ndarray  # int32 [n]
    answer_lengths: np.ndarray  # int32 [n, A]
    scored: np.ndarray  # int32 [n, A] tokens with a mark >= 0
    groups: np.ndarray  # uint64 [n]: salted hash of the prompt's messages; the same prompt has the same number
    heldout: np.ndarray  # bool [n]: belongs to the held-out part
    starts: np.ndarray  # int64 [n]: where the example begins in the flat arrays
    where: np.ndarray  # int64 [n, 2]: index into `places`, and the line or row there
    tokens: np.ndarray  # int32, flat
    marks: np.ndarray  # int8, flat; prompts are UNSCORED
    places: tuple[str, ...]  # "FILE, line", "data set NAME, row", …
    counts: Mapping[str, int]  # of the whole reading, selected or not: see `sla_jax.training.data`
    refused: tuple[Refused, ...]  # rows that were left out, by reason

    @property
    def answers(self) -> int:
        """A, the answers an example has."""
        return int(self.answer_lengths.shape[1])

    @property
    def totals(self) -> np.ndarray:
        """int32 [n]: tokens that the policy reads, prompt and all answers."""
        return self.prompt_lengths + self.answer_lengths.sum(axis=1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, i: int) -> Example:
        """Example `i`; the arrays are views, not copies. Raises IndexError."""
        begin = int(self.starts[i])
        lengths = [int(self.prompt_lengths[i]), *map(int, self.answer_lengths[i])]
        ends = [begin + end for end in itertools.accumulate(lengths)]
        answers = (Answer(self._tokens(a, b), self._marks(a, b)) for a, b in itertools.pairwise(ends))
        return Example(self._tokens(begin, ends[0]), tuple(answers))

    def select(self, numbers: np.ndarray) -> "Examples":
        """The examples with these numbers (or under this mask), in this order, on the same flat arrays."""
        names = [name for name in ARRAYS if name not in ("tokens", "marks")]
        return dataclasses.replace(self, **{name: getattr(self, name)[numbers] for name in names})

    def origin(self, i: int) -> str:
        """Where the row came from: "FILE, line N"."""
        place, number = self.where[i].tolist()
        return f"{self.places[place]} {number}"

    def fingerprint(self) -> str:
        """SHA-256 of all token ids with their boundaries, and of the marks unless they say nothing.

        Marks say nothing in pairs whose answer tokens are all scored with 1: those fingerprints are as old as the
        feature caches that are named by them.
        """
        digest, plain = hashlib.sha256(), self.answers == 2 and np.array_equal(self.scored, self.answer_lengths)
        for i in range(len(self)):
            prompt, answers = self[i]
            lengths = [len(prompt), *(len(answer.tokens) for answer in answers)]
            digest.update(np.asarray(lengths, np.int64).tobytes())
            digest.update(prompt.tobytes())
            for answer in answers:
                digest.update(answer.tokens.tobytes())
            if not (plain and all((answer.marks == 1).all() for answer in answers)):
                digest.update(b"".join(answer.marks.tobytes() for answer in answers))
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write everything but `places` into an existing folder."""
        for name in ARRAYS:
            write_array(folder / f"{name}.npy", getattr(self, name))
        facts = {"counts": dict(self.counts), "refused": self.refused}
        write_text(folder / "facts.json", json.dumps(facts, indent=1, ensure_ascii=False))

    @staticmethod
    def load(folder: Path, places: Sequence[str]) -> "Examples":
        """What `save` wrote, memory-mapped. `places` are named anew: equal content may lie under another name."""
        facts = read_object(folder / "facts.json")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        refused = tuple(Refused(*entry) for entry in facts["refused"])
        return Examples(**arrays, places=tuple(places), counts=facts["counts"], refused=refused)

    @staticmethod
    def of(
        examples: Sequence[Example],
        *,
        groups: Sequence[int] | np.ndarray | None = None,
        heldout: Sequence[bool] | np.ndarray | None = None,
        where: np.ndarray | None = None,
        places: Sequence[str] = ("example",),
        counts: Mapping[str, int] | None = None,
    ) -> "Examples":
        """In memory. Without `groups` every example is a prompt of its own; without `heldout` none is held out."""
        flat, count = flatten(examples), len(examples)
        numbered = np.stack([np.zeros(count, np.int64), np.arange(count, dtype=np.int64)], axis=1)
        return Examples.of_flat(
            flat,
            groups=np.arange(count, dtype=np.uint64) if groups is None else np.asarray(groups, np.uint64),
            heldout=np.zeros(count, bool) if heldout is None else np.asarray(heldout, bool),
            where=numbered if where is None else np.asarray(where, np.int64),
            places=tuple(places),
            counts={"rows": count} if counts is None else counts,
            refused=(),
        )

    @staticmethod
    def of_flat(flat: Flat, **rest: Any) -> "Examples":
        """In memory, from what `flatten` made and the fields that it does not know."""
        sizes = flat.lengths.sum(axis=1, dtype=np.int64)
        return Examples(
            prompt_lengths=flat.lengths[:, 0],
            answer_lengths=flat.lengths[:, 1:],
            scored=flat.scored,
            starts=np.cumsum(sizes) - sizes,
            tokens=flat.tokens,
            marks=flat.marks,
            **rest,
        )

    def _tokens(self, begin: int, end: int) -> np.ndarray:
        return np.asarray(self.tokens[begin:end])

    def _marks(self, begin: int, end: int) -> np.ndarray:
        return np.asarray(self.marks[begin:end])


def length_weights(examples: Examples) -> np.ndarray:
    """float32 [n]: weights of pairs under which "the longer answer wins" is worth nothing. Give it the training part.

    With l pairs whose chosen answer is longer (in tokens) and s pairs whose rejected one is, a pair of the first kind
    weighs (l + s) / 2l, one of the second (l + s) / 2s, and one of equal lengths 1: both kinds have the same total
    weight and the mean over all pairs is 1. When there are none of one kind, every weight is 1.
    """
    chosen, rejected = examples.answer_lengths.T
    longer, shorter = chosen > rejected, chosen < rejected
    weights = np.ones(len(examples), np.float32)
    if longer.any() and shorter.any():
        both = longer.sum() + shorter.sum()
        weights[longer] = both / (2 * longer.sum())
        weights[shorter] = both / (2 * shorter.sum())
    return weights


def describe(examples: Examples) -> dict[str, Any]:
    """What `--dry-run` says about the data: rows, tokens, lengths, and all counts of the reading."""
    longest = examples.answer_lengths.max(axis=1)
    facts: dict[str, Any] = {
        "rows": len(examples),
        "held-out rows": int(examples.heldout.sum()),
        "prompts": len(np.unique(examples.groups)),
        "tokens": int(examples.totals.sum(dtype=np.int64)),
        "scored tokens": int(examples.scored.sum(dtype=np.int64)),
        "tokens a row": _spread(examples.totals),
        "tokens a prompt": _spread(examples.prompt_lengths),
        "tokens of the longest answer": _spread(longest),
    }
    if examples.answers == 2:
        chosen, rejected = examples.answer_lengths.T
        unequal = int((chosen != rejected).sum())
        facts["longer answer wins"] = float((chosen > rejected).sum() / unequal) if unequal else None
    return {**facts, "reading": dict(examples.counts), "refused": {r.reason: r.times for r in examples.refused}}


def _spread(values: np.ndarray) -> dict[str, float]:
    """Mean, percentiles and the largest of per-row numbers; nothing of no rows."""
    if not len(values):
        return {}
    middle, most, nearly = np.percentile(values, [50, 90, 99]).tolist()
    return {"mean": float(values.mean()), "50%": middle, "90%": most, "99%": nearly, "most": float(values.max())}


def exact_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """What the tokens spell, special ones too, with no space tidied."""
    return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


def render_masked(example: Example, tokenizer: PreTrainedTokenizerBase, *, labels: bool = False) -> str:
    """One example as text for a terminal: what a loss looks at stands in ⟦…⟧, with `labels` followed by =label."""
    lines = ["prompt:", exact_text(tokenizer, example.prompt.tolist())]
    for number, answer in enumerate(example.answers, start=1):
        lines.append(f"answer {number} of {len(example.answers)} (scored: ⟦…⟧):")
        lines.append("".join(_runs(answer, tokenizer, labels)))
    return "\n".join(lines)


def _runs(answer: Answer, tokenizer: PreTrainedTokenizerBase, labels: bool) -> list[str]:
    """The answer's text in runs of equal marks."""
    borders = np.flatnonzero(np.diff(answer.marks)) + 1
    shown = []
    for tokens, marks in zip(np.split(answer.tokens, borders), np.split(answer.marks, borders), strict=True):
        text = exact_text(tokenizer, tokens.tolist())
        scored = len(marks) and marks[0] >= 0
        shown.append(f"⟦{text}⟧" + (f"={marks[0]}" if labels else "") if scored else text)
    return shown
