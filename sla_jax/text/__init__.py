"""Tokenizers, chat templates, and text that arrives token by token."""

from sla_jax.text.chat import MARKER, chat_ids, chat_text, response_ids, text_of, turn_end
from sla_jax.text.stream import TextStream, decode, longest_token, spell, token_bytes
from sla_jax.text.template import (
    DAY,
    NO_VARIABLES,
    check_date,
    check_variables,
    unread_variables,
    with_template,
)
from sla_jax.text.tokenizer import (
    PreTrainedTokenizerBase,
    check_characters,
    check_vocabulary,
    encode,
    encode_behind,
    encoding,
    load_tokenizer,
    tokens_beyond,
)

__all__ = [
    "DAY",
    "MARKER",
    "NO_VARIABLES",
    "PreTrainedTokenizerBase",
    "TextStream",
    "chat_ids",
    "chat_text",
    "check_characters",
    "check_date",
    "check_variables",
    "check_vocabulary",
    "decode",
    "encode",
    "encode_behind",
    "encoding",
    "load_tokenizer",
    "longest_token",
    "response_ids",
    "spell",
    "text_of",
    "token_bytes",
    "tokens_beyond",
    "turn_end",
    "unread_variables",
    "with_template",
]
