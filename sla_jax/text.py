"""Tokenizers, chat templates and text that arrives token by token.

The tokenizer is what `tokenizer.json` says, loaded as it stands: no class is chosen by a model's name, so nothing is
rebuilt or repaired on the way. Chats become ids through the checkpoint's own template, text first and ids second, so
that the boundary between prompt and response is found in characters, where it is exact, and never guessed from ids.

`transformers` takes seconds to import and is imported where a tokenizer is loaded, not before.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from sla_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
else:
    PreTrainedTokenizerBase = Any  # beartype reads annotations when the tests run; a second of import is not worth that

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # how SentencePiece's kind spells a byte
# stands for a response while the text that a template puts after one is looked for; a private-use character
MARKER = "\ue0f1response\ue0f1"
# what a chat template's variables may not overwrite: the arguments of transformers' apply_chat_template
RESERVED = (
    *("messages", "conversation", "conversations", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template of a checkpoint directory; local files only. Raises UserError."""
    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        missing = "has no tokenizer.json" if directory.is_dir() else "is not a directory"
        raise UserError(
            f"{directory} {missing}; expected a checkpoint made by convert.py, or a Hugging Face directory that was "
            "saved with a fast tokenizer (tokenizer.json beside tokenizer_config.json)."
        )
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is absent is no news
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the Rust parser raises bare Exception
        reason = " ".join(str(error).split())
        raise UserError(
            f"the tokenizer files in {directory} cannot be read ({reason}); convert the model again."
        ) from None


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """Token ids of a conversation under the tokenizer's chat template, ready for the assistant to speak."""
    text = chat_text(
        tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=variables,
    )
    return _encode(tokenizer, text)


def response_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt_messages: Sequence[Mapping[str, Any]],
    response: str,
    *,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids): what the model reads, then what it would have said, its end-of-turn token included.

    The response ends with the first special token that the template puts after it ("<|im_end|>" but not the line break
    that follows). Both lists are what serving sees: the prompt is tokenized by itself, and only if the template's own
    text is not read differently with the response behind it are they one encoding cut in two.
    Raises UserError if the template changes the prompt once there is a response.
    """
    prompt = chat_text(tokenizer, prompt_messages, variables=variables)
    full, marked = (
        chat_text(
            tokenizer,
            [*prompt_messages, {"role": "assistant", "content": said}],
            add_generation_prompt=False,
            variables=variables,
        )
        for said in (response, MARKER)
    )
    if not full.startswith(prompt):
        raise _rewritten(prompt, full)
    after = marked.rpartition(MARKER)[2] if MARKER in marked else ""
    after = after if full.endswith(after) else ""
    text = full[len(prompt) : len(full) - len(after)] + _end_of_turn(tokenizer, after)
    ids, both = _encode(tokenizer, prompt), _encode(tokenizer, prompt + text)
    return ids, both[len(ids) :] if both[: len(ids)] == ids else _encode(tokenizer, text)


class TextStream:
    """Text from tokens that arrive a few at a time: what has been said is never taken back, and no character is split.

    A token that ends inside a multi-byte character is held until the rest comes. Special tokens are not text, unless
    `skip_special_tokens` is false.
    The pieces joined, `finish` included, are `tokenizer.decode` of all the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True):
        self._tokenizer, self._skip = _backend(tokenizer), skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._text = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; it may be empty."""
        self._ids.extend(int(token) for token in token_ids)
        pieces = [self._stream.step(self._tokenizer, int(token)) for token in token_ids]
        text = "".join(piece for piece in pieces if piece)
        self._text += text
        return text

    def finish(self) -> str:
        """What was held back, with U+FFFD for bytes that never became a character. The stream is then empty again."""
        full = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        rest = full[len(self._text) :]
        self._stream = DecodeStream(skip_special_tokens=self._skip)
        self._ids, self._text = [], ""
        return rest


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """What each of `size` token ids adds to a text; nothing for special tokens and ids without a token.

    Exact for byte-level BPE and for SentencePiece's kind with bytes; of any other, what the token alone decodes to.
    """
    backend, found = _backend(tokenizer), [b""] * size
    added = backend.get_added_tokens_decoder()
    kinds = _kinds(json.loads(backend.decoder.__getstate__())) if backend.decoder is not None else set()
    for token, i in backend.get_vocab(with_added_tokens=True).items():
        if i >= size or (i in added and added[i].special):
            continue
        if i in added:
            found[i] = added[i].content.encode()
        elif "ByteLevel" in kinds:
            found[i] = bytes(_LETTERS[letter] for letter in token)
        elif "ByteFallback" in kinds:
            byte = BYTE.fullmatch(token)
            found[i] = bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
        else:
            found[i] = backend.decode([i]).encode()
    return found


def _kinds(decoder: Mapping[str, Any]) -> set[str]:
    """The names of a decoder and of those that it is made of."""
    return {str(decoder["type"])}.union(*(_kinds(part) for part in decoder.get("decoders", [])))


def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are the letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_LETTERS = _letters()


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers.Tokenizer` underneath."""
    return tokenizer.backend_tokenizer


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a rendered template: its special tokens are already in the text, so none are added."""
    return list(_backend(tokenizer).encode(text, add_special_tokens=False).ids)


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """A conversation under the tokenizer's chat template, as text; `variables` are more names that it may read."""
    check_variables(variables)
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str | list | None):
            raise UserError(f"a message is {dict(message)!r}; expected the strings 'role' and 'content'.")
    if not tokenizer.chat_template:
        raise UserError(
            "this tokenizer has no chat template (chat_template.jinja); give a plain prompt instead of messages."
        )
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                [_joined(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the chat template refuses these messages ({error}); their roles are: {roles}.") from None


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raise UserError for a variable of the chat template that would overwrite one of `RESERVED`."""
    for name in variables:
        if name in RESERVED:
            raise UserError(f"{name} cannot be a variable of the chat template; neither can {', '.join(RESERVED)}.")


def _joined(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is one text."""
    content = message.get("content")
    text = {"content": "".join(part["text"] for part in content)} if isinstance(content, list) else {}
    return {**message, **text}


def _rewritten(prompt: str, full: str) -> UserError:
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    return UserError(
        f"the chat template writes the prompt differently once there is a response: {prompt[at : at + 40]!r} becomes "
        f"{full[at : at + 40]!r}; expected the same text with the response after it. Use a template that keeps it."
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, after: str) -> str:
    """The template's text after a response, up to its first special token; without one, less trailing white space."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [after.index(special) + len(special) for special in specials if special in after]
    return after[: min(ends)] if ends else after.rstrip()
