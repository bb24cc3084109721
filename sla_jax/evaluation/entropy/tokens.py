"""A text as tokens, each with the characters that it stands for.

Spans leave no gaps: white space that a tokenizer leaves out of a token's span is the next token's. The tokens that one
character is split into have the same span. What the tokenizer adds by itself (BOS, a space in front) has an empty one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.text import chat_text, check_characters, token_bytes

Span = tuple[int, int]
SPACE = "▁"  # SentencePiece's; some tokenizers put one in front of a text that has none there


class Tokens(NamedTuple):
    """A text in a model's tokens."""

    text: str  # of a conversation: what the chat template makes of it
    ids: list[int]
    spans: list[Span]  # characters [begin, end) of `text`
    counted: Span  # the tokens [first, end) that figures are of


def tokenized(tokenizer: Any, content: str | list[dict[str, str]]) -> Tokens:
    """A text with the special tokens that the tokenizer adds; or a conversation, of which the last answer counts.

    Of a conversation that does not end with an answer everything counts. Raises UserError for one that the template
    refuses, or in which it writes the prompt differently once there is an answer.
    """
    if isinstance(content, str):
        check_characters(content)
        encoding = tokenizer.backend_tokenizer.encode(content, add_special_tokens=True)
        return Tokens(content, list(encoding.ids), spans(encoding, content), (0, len(encoding.ids)))
    text = chat_text(tokenizer, content, add_generation_prompt=False)
    check_characters(text)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    ids, places = list(encoding.ids), spans(encoding, text)
    if content[-1]["role"] != "assistant":
        return Tokens(text, ids, places, (0, len(ids)))
    prompt = chat_text(tokenizer, content[:-1])
    if not text.startswith(prompt):
        raise UserError(
            "the chat template writes this conversation's prompt differently once there is an answer, so where the "
            "answer begins cannot be told; give the conversation as a text."
        )
    return Tokens(text, ids, places, _answer(tokenizer, ids, places, len(prompt)))


def spans(encoding: Any, text: str) -> list[Span]:
    """The characters of every token of a `tokenizers.Encoding`."""
    found, reach = list[Span](), 0
    for token, (begin, end), added in zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True):
        if (added and begin == end) or (token == SPACE and text[begin:end].strip()):
            found.append((reach, reach))
            continue
        found.append((min(begin, reach), end))
        reach = max(reach, end)
    return found


def names(tokenizer: Any, size: int) -> list[str]:
    """What each of `size` ids adds to a text: U+FFFD for part of a character, special tokens by name."""
    backend = tokenizer.backend_tokenizer
    pieces = [piece.decode("utf-8", "replace") for piece in token_bytes(tokenizer, size)]
    return [piece or backend.id_to_token(i) or f"<{i}>" for i, piece in enumerate(pieces)]


def _answer(tokenizer: Any, ids: Sequence[int], places: Sequence[Span], begin: int) -> Span:
    """From the answer's first token to its end of turn, which is the first special token in it, if there is one."""
    special = {i for i, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items() if token.special}
    first = next((i for i, (_, end) in enumerate(places) if end > begin), len(ids))
    end = next((i + 1 for i in range(first, len(ids)) if ids[i] in special), len(ids))
    return first, end
