"""From pairs to tokens to steps: chat template, truncation, length buckets and a deterministic order.

**Truncation** is from the left of the prompt: it keeps its last `max_prompt_length` tokens, and fewer when the response
needs the room, but never less than its last turn (as long as that fits `max_prompt_length`). Only when last turn and
response together exceed `max_length` is the response's end cut. Both are counted. Both responses of a pair get the
same prompt, so that the policy reads it once (model/branches.py).

**Order.** An epoch's order depends on (seed, epoch) alone, so the data position of a run is its step number. Pairs are
shuffled, cut into pools of `pool` steps, sorted by length within a pool so that a step pads little, and the steps
shuffled; with pool=1 a step is a random sample.
The last step of an epoch may hold fewer pairs; it is filled with empty ones (index −1), which count nowhere.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from sla_jax.errors import UserError
from sla_jax.text import chat_ids, response_ids
from sla_jax.training.data import Pair

NO_PAIR = -1


class TokenPair(NamedTuple):
    """One pair as token ids, int32: the prompt that both responses share, and the two responses."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def length(self) -> int:
        """Tokens of prompt and both responses: what the policy reads."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the longer response."""
        return max(len(self.chosen), len(self.rejected))


class TokenPairs(NamedTuple):
    """All pairs, and how many prompts and responses were shortened."""

    pairs: list[TokenPair]
    cut_prompts: int
    cut_responses: int

    def lengths(self) -> list[int]:
        """Per pair: tokens that the policy reads."""
        return [pair.length for pair in self.pairs]

    def fingerprint(self) -> str:
        """SHA-256 of all token ids with their boundaries."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(np.asarray([len(part) for part in pair], np.int64).tobytes())
            digest.update(np.concatenate(pair).tobytes())
        return digest.hexdigest()


def tokenize(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int, max_prompt_length: int
) -> TokenPairs:
    """Chat template and truncation. Raises UserError when some text has no token at all."""
    made: list[TokenPair] = []
    cut_prompts = cut_responses = 0
    for pair in pairs:
        prompt, chosen = response_ids(tokenizer, pair.messages, pair.chosen)
        _, rejected = response_ids(tokenizer, pair.messages, pair.rejected)
        if not (prompt and chosen and rejected):
            raise UserError(
                f"the tokenizer makes no token of the prompt or a response of {pair!r:.200}; check its chat template."
            )
        kept = _kept(tokenizer, pair, len(prompt), max(len(chosen), len(rejected)), max_length, max_prompt_length)
        cut_prompts += kept < len(prompt)
        cut_responses += sum(kept + len(response) > max_length for response in (chosen, rejected))
        parts = (prompt[-kept:], chosen[: max_length - kept], rejected[: max_length - kept])
        made.append(TokenPair(*(np.asarray(part, np.int32) for part in parts)))
    return TokenPairs(made, cut_prompts, cut_responses)


def _kept(
    tokenizer: PreTrainedTokenizerBase, pair: Pair, prompt: int, response: int, max_length: int, max_prompt_length: int
) -> int:
    """How many of the prompt's last tokens are kept before responses of up to `response` tokens."""
    kept = min(prompt, max_prompt_length)
    if kept + response <= max_length:
        return kept
    last_turn = min(kept, len(chat_ids(tokenizer, pair.messages[-1:])))
    return max(max_length - response, last_turn)


def bucket(length: int, least: int = 16) -> int:
    """The padded size for `length` tokens: 16, 24, 32, 48, 64, 96, 128, … so that few programs are compiled."""
    size = least
    while size < length:
        half = size + size // 2
        size = half if half >= length else 2 * size
    return size


def token_bucket(count: int) -> int:
    """The padded size of a flat row of `count` tokens: at most an eighth more, and a multiple of 128 (devices)."""
    step = max(128, 1 << max(count.bit_length() - 4, 0))
    return max(-(-count // step), 1) * step


def padded_length(length: int) -> int:
    """Sequence sizes of forward passes: multiples of 32 up to 512, of 128 above (padding costs more than compiling)."""
    multiple = 32 if length <= 512 else 128
    return -(-length // multiple) * multiple


def steps_per_epoch(pairs: int, step_pairs: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-pairs // step_pairs)


def epoch_order(lengths: Sequence[int], step_pairs: int, pool: int, seed: int, epoch: int) -> np.ndarray:
    """Pair numbers of every step of one epoch, int [steps, step_pairs]; NO_PAIR fills the last.

    `lengths` are the tokens that the policy reads of each pair; `pool` is the number of steps sorted together.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    steps = []
    for start in range(0, len(order), pool * step_pairs):
        part = order[start : start + pool * step_pairs]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        steps += [part[i : i + step_pairs] for i in range(0, len(part), step_pairs)]
    filled = np.stack([np.pad(s, (0, step_pairs - len(s)), constant_values=NO_PAIR) for s in steps])
    return filled[random.permutation(len(filled))]


def forward_batches(lengths: Sequence[int], todo: np.ndarray, batch_tokens: int, multiple: int = 1) -> list[np.ndarray]:
    """The pairs `todo` grouped for forward passes: of similar length, about `batch_tokens` padded tokens each.

    The number of rows depends on the padded length alone (few programs) and is a multiple of `multiple` (devices);
    NO_PAIR fills it. The groups come in a random order, so that progress is even.
    """
    ordered = todo[np.argsort(np.asarray(lengths)[todo], kind="stable")]
    groups: list[np.ndarray] = []
    start = 0
    while start < len(ordered):
        end = start + rows_per_pass(lengths[ordered[start]], batch_tokens, multiple)
        # the group's longest row decides its padded size, so fewer rows may fit than its shortest one allows
        while (
            rows := rows_per_pass(lengths[ordered[min(end, len(ordered)) - 1]], batch_tokens, multiple)
        ) < end - start:
            end -= 1
        group = ordered[start:end]
        groups.append(np.pad(group, (0, max(rows - len(group), 0)), constant_values=NO_PAIR))
        start += len(group)
    return [groups[i] for i in np.random.default_rng(0).permutation(len(groups))]


def rows_per_pass(length: int, batch_tokens: int, multiple: int) -> int:
    """Rows of one forward pass over sequences of `length` tokens."""
    return max(1, batch_tokens // (padded_length(length) * multiple)) * multiple
