"""Log-probabilities as OpenAI writes them, once for chats and once for completions."""

from collections.abc import Sequence
from typing import Any

from sla_jax.serving.request import Top
from sla_jax.text import PreTrainedTokenizerBase, spell

LOWEST = -9999.0  # OpenAI's own number for "never": JSON has no infinity


def chat_logprobs(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Top]
) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""
    content = []
    for token, logprob, top in zip(tokens, logprobs, tops, strict=True):
        alternatives = [_entry(tokenizer, other, value) for other, value in top]
        content.append({**_entry(tokenizer, token, logprob), "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def text_logprobs(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    tops: Sequence[Top] | None,
    offsets: Sequence[int],
) -> dict[str, Any]:
    """`logprobs` of a completion's choice. The token that was chosen is always among its alternatives, as at OpenAI.

    `tops` None: no alternatives were asked for. A text's first token has none, and no log-probability: both are null.
    """
    spelled = [spell(tokenizer, token) for token in tokens]
    alternatives = None
    if tops is not None:
        rows = zip(spelled, logprobs, tops, strict=True)
        alternatives = [None if own is None else _alternatives(tokenizer, text, own, top) for text, own, top in rows]
    return {
        "tokens": spelled,
        "token_logprobs": [None if value is None else max(value, LOWEST) for value in logprobs],
        "top_logprobs": alternatives,
        "text_offset": list(offsets),
    }


def _alternatives(tokenizer: PreTrainedTokenizerBase, text: str, own: float, top: Top) -> dict[str, float]:
    """Text → log-probability. Of two tokens that read the same the likelier one stands."""
    found: dict[str, float] = {}
    for other, value in top:
        found.setdefault(spell(tokenizer, other), max(value, LOWEST))
    found.setdefault(text, max(own, LOWEST))
    return found


def _entry(tokenizer: PreTrainedTokenizerBase, token: int, logprob: float | None) -> dict[str, Any]:
    text = spell(tokenizer, token)
    part = "\ufffd" in text
    value = LOWEST if logprob is None else max(logprob, LOWEST)
    return {"token": text, "logprob": value, "bytes": None if part else list(text.encode())}
