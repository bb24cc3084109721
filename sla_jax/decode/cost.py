"""What an answer cost, in the same terms for every decoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One request's account, so far."""

    steps: int
    """Forward passes after the prompt's."""
    lane_steps: int
    """Rows of those passes: every pass counts all the lanes that it computes, alive or not."""
    explored_tokens: int
    """Tokens read by lanes that were alive."""
    committed_tokens: int
    """Tokens of the answer."""
    kv_bytes: int
    """Keys and values at the peak: the prompt and the committed text once, and all lanes' places for what is not."""
    drafted_tokens: int = 0
    """Tokens that lanes guessed and read along with their next ones."""
    accepted_tokens: int = 0
    """Of those, the ones that were right: forward passes that some lane did not need."""
    scorer_tokens: int = 0
    """Tokens that the models of a scorer beside the policy read, each once; of one without a model, those it was given,
    each time it was."""
    scorer_seconds: float = 0.0
    seconds: float = 0.0
    """Wall time, compilation included; a caller's own time between two chunks is not counted."""

    @property
    def discarded_tokens(self) -> int:
        """Explored and not in the answer (so far)."""
        return self.explored_tokens - self.committed_tokens
