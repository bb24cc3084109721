"""The same channel training in transformers + torch, float32: the objective, the pairs and the weights are ours.

Two ways. *As the release does it*: chosen and rejected answers are separate padded rows under an attention mask, the
whole LlamaForCausalLM runs (so logits are computed for a loss that reads none), and the channel reads every token. *As
well as torch can*: the inner model alone, without a mask (rows are padded on the right, attention is causal), and the
channel at the scored tokens only.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.torch_side import Weights, channel_rewards
from sla_jax.training.config import OptimizerConfig
from sla_jax.training.examples import Examples
from sla_jax.training.order import NOTHING


class Rows(NamedTuple):
    """A batch of pairs: all chosen rows, then all rejected ones, padded on the right to the longest."""

    tokens: torch.Tensor  # int64 [2b, T]
    mask: torch.Tensor  # int64 [2b, T]: 1 on real tokens
    scored: torch.Tensor  # bool [2b, T]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(examples: Examples, numbers: np.ndarray) -> Rows:
    """The pairs of a batch as torch reads them."""
    pairs = [examples[int(i)] for i in numbers if i != NOTHING]
    rows = [(pair.prompt, pair.answers[side]) for side in (0, 1) for pair in pairs]
    shape = (len(rows), max(len(prompt) + len(answer.tokens) for prompt, answer in rows))
    found = Rows(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape) > 0)
    for i, (prompt, answer) in enumerate(rows):
        start, stop = len(prompt), len(prompt) + len(answer.tokens)
        found.tokens[i, :stop] = torch.from_numpy(np.concatenate([prompt, answer.tokens]).astype(np.int64))
        found.mask[i, :stop] = 1
        found.scored[i, start:stop] = torch.from_numpy(answer.marks >= 0)
    return found


class Training:
    """seqwise_bt on a frozen policy with AdamW; calling it trains on every batch once and gives the seconds."""

    def __init__(
        self, model: Any, channel: Weights, batches: Sequence[Rows], options: OptimizerConfig, *, like_release: bool
    ):
        self.model, self.batches, self.like_release = model.requires_grad_(False), batches, like_release
        self.channel = {name: weight.clone().requires_grad_() for name, weight in channel.items()}
        self.clip = options.grad_clip
        self.optimizer = torch.optim.AdamW(
            list(self.channel.values()),
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            weight_decay=options.weight_decay,
        )
        self.losses = self.train()

    @property
    def padding(self) -> float:
        """The part of the rows that is padding."""
        real, whole = (sum(int(count) for count in counts) for counts in zip(*map(_sizes, self.batches), strict=True))
        return 1 - real / whole

    def __call__(self) -> float:
        """Seconds of one pass over all batches."""
        began = time.perf_counter()
        self.train()
        return time.perf_counter() - began

    def train(self) -> list[float]:
        """One step a batch; their losses."""
        return [self._step(batch) for batch in self.batches]

    def _step(self, batch: Rows) -> float:
        means = self._means(batch)
        chosen, rejected = means.chunk(2)
        loss = torch.nn.functional.softplus(rejected - chosen).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.channel.values()), self.clip)
        self.optimizer.step()
        return loss.item()

    def _means(self, batch: Rows) -> torch.Tensor:
        """The mean reward of every row, [2b]."""
        eps, counts = self.model.config.rms_norm_eps, batch.scored.sum(-1)
        if self.like_release:
            out = self.model(
                input_ids=batch.tokens, attention_mask=batch.mask, output_hidden_states=True, use_cache=False
            )
            rewards = channel_rewards(out.hidden_states, self.channel, eps)
            return (rewards * batch.scored).sum(-1) / counts
        with torch.no_grad():
            out = self.model.model(input_ids=batch.tokens, output_hidden_states=True, use_cache=False)
            states = [state[batch.scored] for state in out.hidden_states]
        rewards = channel_rewards(states, self.channel, eps)
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return torch.zeros(len(counts)).index_add(0, row, rewards) / counts


def _sizes(batch: Rows) -> tuple[int, int]:
    return int(batch.mask.sum()), batch.mask.numel()
