"""A scorer as what ranks a pool's candidates: token ids become text, and what scoring took is counted."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sla_jax.decode.completion import Completion
from sla_jax.errors import UserError
from sla_jax.scoring.candidate import Candidate, Message, ReadingScorer, Scorer
from sla_jax.text import decode, text_of


class Judge:
    """Scores the candidates of one request, unfinished ones too; counts tokens and seconds.

    `tokens` are those that the scorer's models read, each once; of a scorer that reads with none, those it was given.
    """

    def __init__(self, scorer: Scorer, messages: list[Message], tokenizer: Any):
        self.scorer = scorer.session() if isinstance(scorer, ReadingScorer) else scorer
        self.messages, self.tokenizer = messages, tokenizer
        self.tokens, self.seconds = 0, 0.0

    def __call__(self, request: int, completions: list[Completion]) -> list[float]:
        """One score a candidate. The pool has one request, number 0."""
        assert request == 0, "a judge belongs to one request"
        began = time.perf_counter()
        scores = self.scorer.score([self._candidate(one) for one in completions])
        self.seconds += time.perf_counter() - began
        given = sum(len(one.tokens) for one in completions)
        self.tokens = self.scorer.tokens_read if isinstance(self.scorer, ReadingScorer) else self.tokens + given
        return [float(score) for score in scores]

    def _candidate(self, one: Completion) -> Candidate:
        return Candidate(self.messages, decode(self.tokenizer, one.tokens), one.tokens, one.finish == "stop")


def messages_of(prompt: Sequence[Any] | str) -> list[Message]:
    """The conversation that a scorer sees; of a raw string, one user's turn. Raises UserError for token ids."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [message for message in prompt if isinstance(message, Mapping)]
    if len(messages) < len(prompt):
        raise UserError("a scorer reads text; give the prompt as messages or a string, not as token ids.")
    return [{"role": str(message["role"]), "content": text_of(message.get("content"))} for message in messages]
