"""Text from tokens: all at once, or as they arrive.

What a token adds to a text is known exactly for the two kinds of tokenizer that nearly all models have: byte-level BPE
(GPT-2's kind) and SentencePiece's with byte tokens (Llama 2's). Any other is decoded in windows, as vLLM and TGI do.
"""

import codecs
import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from sla_jax.text.tokenizer import PreTrainedTokenizerBase, backend_of

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # how SentencePiece's kind spells a byte
BAD = "\ufffd"  # stands for bytes that are no character
ENOUGH = 4  # pieces that are not empty, behind which no character of UTF-8 is open and no space is still to be stripped


class TextStream:
    """Text from tokens that arrive a few at a time: what has been said is never taken back, and no character is split.

    A token that ends inside a multi-byte character is held until the rest comes. Special tokens are not text, unless
    `skip_special_tokens` is false. No tokens raise. With `before`, the tokens of a text that these go on from, their
    text goes on too: the space that is dropped in front of a whole text is kept, and a character that was open there is
    finished here.

    The pieces joined, `finish` included, are `tokenizer.decode` of all the tokens (with `before`: what of it stands
    behind the text of `before`, all that was whole there)
      - always, for byte-level BPE;
      - for SentencePiece's kind, if every run of byte tokens is valid UTF-8. Of a run that is not, the tokenizer makes
        U+FFFD for each of its bytes; here each byte of a whole character is still the character's, because that was
        said, and each other byte is U+FFFD. So the number of characters is the same, unless such a run has a whole
        character of several bytes;
      - for any other kind, if the decoding of tokens is the beginning of the decoding of those tokens with more.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = (), *, skip_special_tokens: bool = True
    ):
        backend = backend_of(tokenizer)
        kind, skip = _kind_of(backend), skip_special_tokens
        self._open = _Windows(backend, skip) if kind is None else _Pieces(backend, kind, skip)
        self._open.skip(before)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; it may be empty."""
        return "".join(self._open.push(int(token)) for token in token_ids)

    def finish(self) -> str:
        """What was held back, with U+FFFD for bytes that never became a character. The stream then begins a text."""
        return self._open.finish()


def decode(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    before: Sequence[int] = (),
    *,
    skip_special_tokens: bool = True,
) -> str:
    """The text of tokens as a stream says it, behind those `before`."""
    stream = TextStream(tokenizer, before, skip_special_tokens=skip_special_tokens)
    return stream.push(token_ids) + stream.finish()


def spell(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """One token's text as it stands behind other text, special ones by name; U+FFFD where it is part of a character."""
    backend = backend_of(tokenizer)
    kind, name = _kind_of(backend), backend.id_to_token(token) if token >= 0 else None
    if name is None or token in _special(backend):
        return name or ""
    if kind is not None:
        return _bytes_of(name, kind).decode("utf-8", "replace")
    once, twice = (backend.decode([token] * count) for count in (1, 2))
    return twice.removeprefix(once) or once


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The most bytes of a text that one token can stand for: those of the longest one.

    A tokenizer that drops white space, or takes a run of unknown characters for one token, can read more than so many
    bytes a token; those are not counted."""
    backend = backend_of(tokenizer)
    kind = _kind_of(backend)
    names = backend.get_vocab(with_added_tokens=True)
    return max((len(name.encode() if kind is None else _bytes_of(name, kind)) for name in names), default=1)


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """What each of `size` token ids adds to a text; nothing for special tokens and ids without a token.

    Exact for byte-level BPE and for SentencePiece's kind with bytes; of any other, what the token alone decodes to.
    """
    backend = backend_of(tokenizer)
    kind, special = _kind_of(backend), _special(backend)
    found = [b""] * size
    for token, i in backend.get_vocab(with_added_tokens=True).items():
        if i < size and i not in special:
            found[i] = backend.decode([i]).encode() if kind is None else _bytes_of(token, kind)
    return found


# ---- tokenizers whose tokens are bytes ----


class _Kind(NamedTuple):
    """How tokens become text."""

    letters: bool  # every token is bytes, written in GPT-2's letters; else a text with ▁ for spaces, or one byte
    strip: int = 0  # so many spaces are dropped in front of a text


class _Pieces:
    """Tokens as bytes, bytes as characters."""

    def __init__(self, backend: Tokenizer, kind: _Kind, skip_special_tokens: bool):
        self._backend, self._kind = backend, kind
        self._special = _special(backend) if skip_special_tokens else set[int]()
        # an invalid byte of SentencePiece's kind is one U+FFFD each: first a surrogate, of which there is one for each
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace" if kind.letters else "surrogateescape")
        self._strip = kind.strip

    def push(self, token: int) -> str:
        spelled = None if token in self._special or token < 0 else self._backend.id_to_token(token)
        if spelled is None:
            return ""
        piece = _bytes_of(spelled, self._kind)
        if self._kind.letters or BYTE.fullmatch(spelled):
            return self._said(self._bytes.decode(piece))
        return self._said(self._bytes.decode(b"", final=True) + piece.decode())

    def finish(self) -> str:
        text = self._said(self._bytes.decode(b"", final=True))
        self._strip = self._kind.strip
        return text

    def skip(self, before: Sequence[int]) -> None:
        """Take tokens as said."""
        for token in _end_of(before, self._backend, self._special):
            self.push(token)

    def _said(self, text: str) -> str:
        while text and self._strip:
            self._strip -= 1
            if not text.startswith(" "):
                self._strip = 0
                break
            text = text[1:]
        return text if self._kind.letters else text.translate(_SURROGATES)


class _Windows:
    """Decoding of the last few tokens with and without the newest."""

    def __init__(self, backend: Tokenizer, skip_special_tokens: bool):
        self._backend = backend
        self._special = _special(backend) if skip_special_tokens else set[int]()
        self._ids: list[int] = []
        self._start = self._read = 0  # of `_ids`, [start, read) is context and the rest is held back

    def push(self, token: int) -> str:
        if not _speaks(self._backend, self._special, token):
            return ""
        self._ids.append(token)
        return self._more(whole=False)

    def finish(self) -> str:
        text = self._more(whole=True)
        self._ids, self._start, self._read = [], 0, 0
        return text

    def skip(self, before: Sequence[int]) -> None:
        self._ids = _end_of(before, self._backend, self._special)
        self._read = len(self._ids)

    def _more(self, *, whole: bool) -> str:
        old, new = (self._decode(self._ids[self._start : end]) for end in (self._read, len(self._ids)))
        if len(new) <= len(old) or (new.endswith(BAD) and not whole):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return new[len(old) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)


def _speaks(backend: Tokenizer, special: set[int], token: int) -> bool:
    """Whether a token has a text."""
    return token >= 0 and token not in special and bool(backend.id_to_token(token))


def _end_of(before: Sequence[int], backend: Tokenizer, special: set[int]) -> list[int]:
    """The last few tokens with a text: what is still open at the end of a text is a matter of these."""
    speaking = (token for token in map(int, reversed(before)) if _speaks(backend, special, token))
    return list(itertools.islice(speaking, ENOUGH))[::-1]


def _kind_of(backend: Tokenizer) -> _Kind | None:
    """None if what a token adds to a text is not known from the token alone."""
    if backend.decoder is None:
        return None
    return _kind(backend.decoder.__getstate__())


@functools.lru_cache(maxsize=32)
def _kind(state: bytes) -> _Kind | None:
    decoder = json.loads(state)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    names = [step["type"] for step in steps]
    if names in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return _Kind(letters=True)
    if names[:3] != ["Replace", "ByteFallback", "Fuse"] or names[3:] not in ([], ["Strip"]):
        return None
    if (steps[0]["pattern"], steps[0]["content"]) != ({"String": "▁"}, " "):
        return None
    strip: dict[str, Any] = steps[3] if names[3:] else {"content": " ", "start": 0, "stop": 0}
    return _Kind(letters=False, strip=strip["start"]) if (strip["content"], strip["stop"]) == (" ", 0) else None


def _bytes_of(token: str, kind: _Kind) -> bytes:
    """A token's bytes; an added token that is not in GPT-2's letters stands for itself, as `tokenizers` has it."""
    if not kind.letters:
        byte = BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    return bytes(map(_LETTERS.__getitem__, token)) if _LETTERS.keys() >= set(token) else token.encode()


def _special(backend: Tokenizer) -> set[int]:
    return {i for i, token in backend.get_added_tokens_decoder().items() if token.special}


def _letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others are the letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_LETTERS = _letters()
_SURROGATES = dict.fromkeys(range(0xDC80, 0xDD00), BAD)
