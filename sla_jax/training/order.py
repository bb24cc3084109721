"""Which examples a step reads, and how large its arrays are: length buckets and a deterministic order.

An epoch's order depends on (seed, epoch) alone, so the data position of a run is its step number. Examples are
shuffled, cut into pools of `pool` steps, sorted by length within a pool so that a step pads little, and the steps
shuffled; with pool=1 a step is a random sample. The last step of an epoch may hold fewer examples; it is filled with
empty ones (number −1), which count nowhere.
"""

from collections.abc import Sequence

import numpy as np

NOTHING = -1  # the number of an empty example


def bucket(length: int, least: int = 16) -> int:
    """The padded size for `length` tokens: 16, 24, 32, 48, 64, 96, 128, … so that few programs are compiled."""
    size = least
    while size < length:
        half = size + size // 2
        size = half if half >= length else 2 * size
    return size


def token_bucket(count: int) -> int:
    """The padded size of a flat row of `count` tokens: at most an eighth more, and a multiple of 128."""
    step = max(128, 1 << max(count.bit_length() - 4, 0))
    return max(-(-count // step), 1) * step


def padded_length(length: int) -> int:
    """Sequence sizes of forward passes: multiples of 32 up to 512, of 128 above (padding costs more than compiling)."""
    multiple = 32 if length <= 512 else 128
    return -(-length // multiple) * multiple


def steps_per_epoch(examples: int, step_examples: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-examples // step_examples)


def epoch_order(
    lengths: Sequence[int] | np.ndarray, step_examples: int, pool: int, seed: int, epoch: int
) -> np.ndarray:
    """Example numbers of every step of one epoch, int [steps, step_examples]; NOTHING fills the last.

    `lengths` are the tokens that the policy reads of each example; `pool` is the number of steps sorted together.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    steps = []
    for start in range(0, len(order), pool * step_examples):
        part = order[start : start + pool * step_examples]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        steps += [part[i : i + step_examples] for i in range(0, len(part), step_examples)]
    filled = np.stack([np.pad(s, (0, step_examples - len(s)), constant_values=NOTHING) for s in steps])
    return filled[random.permutation(len(filled))]


def forward_batches(
    lengths: Sequence[int] | np.ndarray, todo: np.ndarray, batch_tokens: int, multiple: int = 1
) -> list[np.ndarray]:
    """The examples `todo` grouped for forward passes: of similar length, about `batch_tokens` padded tokens each.

    The number of rows depends on the padded length alone (few programs) and is a multiple of `multiple` (devices);
    NOTHING fills it. The groups come in a random order, so that progress is even.
    """
    ordered = todo[np.argsort(np.asarray(lengths)[todo], kind="stable")]
    groups: list[np.ndarray] = []
    start = 0
    while start < len(ordered):
        end = start + rows_per_pass(int(lengths[ordered[start]]), batch_tokens, multiple)
        # the group's longest row decides its padded size, so fewer rows may fit than its shortest one allows
        while (
            rows := rows_per_pass(int(lengths[ordered[min(end, len(ordered)) - 1]]), batch_tokens, multiple)
        ) < end - start:
            end -= 1
        group = ordered[start:end]
        groups.append(np.pad(group, (0, max(rows - len(group), 0)), constant_values=NOTHING))
        start += len(group)
    return [groups[i] for i in np.random.default_rng(0).permutation(len(groups))]


def rows_per_pass(length: int, batch_tokens: int, multiple: int) -> int:
    """Rows of one forward pass over sequences of `length` tokens."""
    return max(1, batch_tokens // (padded_length(length) * multiple)) * multiple
