"""Streams against slow oracles: any tokens at all, cut anywhere, behind any others; and tokenizers of every kind."""

import re
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sla_jax.text import TextStream, decode, spell
from sla_jax.text.stream import ENOUGH
from tests import tiny

BYTES, PIECES = tiny.byte_level_tokenizer(), tiny.sentencepiece_tokenizer()
KINDS = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["byte-level", "sentencepiece"])
BYTE = re.compile("<0x(..)>")
FIRST = PIECES.convert_tokens_to_ids("<0x00>")
SOME = tuple(map(PIECES.convert_tokens_to_ids, ("▁", "s", "<|im_end|>")))
UTF8 = st.text(min_size=1, max_size=3).map(
    lambda text: [FIRST + byte for byte in text.encode("utf-8", "surrogatepass")]
)
# tokens of both kinds, with more bytes among them than chance would have it, and characters that are cut short
TOKENS = st.lists(
    st.one_of(
        st.integers(0, min(len(BYTES), len(PIECES)) - 1).map(lambda token: [token]),
        st.integers(FIRST, FIRST + 255).map(lambda token: [token]),
        st.sampled_from(SOME).map(lambda token: [token]),
        st.tuples(UTF8, st.integers(0, 3)).map(lambda pair: pair[0][: len(pair[0]) - pair[1]]),
    ),
    max_size=8,
).map(lambda parts: [token for part in parts for token in part])


def at_once(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=True)


def characters(run: bytes) -> Iterable[str]:
    """Whole characters as they are, every other byte as U+FFFD."""
    while run:
        for size in (1, 2, 3, 4):
            try:
                yield run[:size].decode()
                break
            except UnicodeDecodeError:
                continue
        else:
            yield "\ufffd"
            size = 1
        run = run[size:]


def spelled(ids: Sequence[int]) -> tuple[str, list[bytes]]:
    """What a stream of SentencePiece's kind says of tokens, the slow way; and the runs of bytes in them."""
    text, runs, run = "", list[bytes](), b""
    for token in [*PIECES.convert_ids_to_tokens(ids), "end"]:
        byte = BYTE.fullmatch(token)
        if byte:
            run += bytes([int(byte[1], 16)])
        elif token not in tiny.SPECIALS:
            text += "".join(characters(run)) + token.replace("▁", " ")
            runs, run = [*runs, run], b""
    return text.removesuffix("end").removeprefix(" "), runs


def valid(run: bytes) -> bool:
    return "\ufffd" not in "".join(characters(run)) or "\ufffd".encode() in run


@given(ids=TOKENS)
def test_bytes_of_byte_level_tokens_are_what_the_tokenizer_decodes(ids):
    stream = TextStream(BYTES)
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == at_once(BYTES, ids)


@given(ids=TOKENS)
def test_bytes_of_sentencepiece_are_said_as_far_as_they_are_characters(ids):
    stream = TextStream(PIECES)
    said = "".join(stream.push([token]) for token in ids) + stream.finish()
    text, runs = spelled(ids)
    assert said == text
    broken = [run for run in runs if not valid(run)]
    if not broken:
        assert said == at_once(PIECES, ids)
    elif all(len(one.encode()) == 1 or one == "\ufffd" for run in broken for one in characters(run)):
        assert len(said) == len(at_once(PIECES, ids))


@KINDS
@given(ids=TOKENS, cuts=st.lists(st.integers(0, 4), max_size=6))
def test_how_tokens_are_bundled_changes_nothing(tokenizer, ids, cuts):
    stream, rest, said = TextStream(tokenizer), ids, ""
    for cut in cuts:
        said, rest = said + stream.push(rest[:cut]), rest[cut:]
    assert said + stream.push(rest) + stream.finish() == decode(tokenizer, ids)


@KINDS
@given(before=TOKENS, ids=TOKENS)
def test_a_text_goes_on_where_another_one_stopped(tokenizer, before, ids):
    """A space in front is kept and an open character is finished, as if one stream had had all of it."""
    whole = TextStream(tokenizer)
    assert whole.push(before) + decode(tokenizer, ids, before) == decode(tokenizer, [*before, *ids])


@KINDS
@given(text=st.text(st.characters(exclude_categories=["Cs"])), cut=st.integers(0, 40))
def test_prompt_and_answer_joined_are_decoded_together(tokenizer, text, cut):
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    before = TextStream(tokenizer).push(ids[:cut])
    assert before + decode(tokenizer, ids[cut:], ids[:cut]) == at_once(tokenizer, ids)


def test_the_pieces_of_a_broken_answer():
    """A line break is said at once, half an emoji when it is known to be one, and a word behind it."""
    line, first, second = (FIRST + byte for byte in (0x0A, 0xF0, 0x9F))
    letter = PIECES.convert_tokens_to_ids
    stream = TextStream(PIECES)
    said = [stream.push([token]) for token in (letter("H"), line, first, second, letter("s"))]
    assert [*said, stream.finish()] == ["H", "\n", "", "", "\ufffd\ufffds", ""]
    stream.push([line, first])
    assert stream.finish() == "\ufffd"
    assert stream.push([letter("▁"), letter("s")]) == "s", "a new text, whose first space is dropped"


@KINDS
def test_ids_without_a_token_say_nothing(tokenizer):
    assert decode(tokenizer, [-1, len(tokenizer), 10**6]) == ""
    assert decode(tokenizer, [5], [-1, 10**6]) == decode(tokenizer, [5])


# ---- tokenizers of other kinds ----


def metaspace() -> Tokenizer:
    words = {"<unk>": 0, "▁one": 1, "▁two": 2, "s": 3, "▁": 4, "<0xC3>": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def word_piece() -> Tokenizer:
    words = {"[UNK]": 0, "one": 1, "two": 2, "##s": 3, "##é": 4, "\ufffd": 5}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def word_level() -> Tokenizer:
    words = {"<unk>": 0, "one": 1, "two": 2, "three": 3, ".": 4, "\ufffd": 5}
    return Tokenizer(models.WordLevel(words, unk_token="<unk>"))


def fallback_without_fuse() -> Tokenizer:
    """Bytes, in an order of steps whose effect is not known token by token."""
    words = {"<unk>": 0, "▁one": 1, "<0xF0>": 2, "<0x9F>": 3, "<0x0A>": 4, "s": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


MONOTONIC = [metaspace, word_piece, word_level]


@pytest.mark.parametrize("make", MONOTONIC)
@given(ids=st.lists(st.integers(0, 5), max_size=12), cut=st.integers(0, 12))
def test_tokenizers_of_other_kinds_are_decoded_in_windows(make: Callable[[], Tokenizer], ids, cut):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    stream = TextStream(tokenizer)
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == at_once(tokenizer, ids)
    whole = at_once(tokenizer, ids)
    assert at_once(tokenizer, ids[:cut]) + decode(tokenizer, ids[cut:], ids[:cut]) == whole


@given(silent=st.lists(st.sampled_from([-1, 6, 7]), max_size=40), long=st.integers(0, 400))
def test_a_token_costs_the_same_however_long_the_text_is(silent, long):
    backend = word_piece()
    backend.add_special_tokens(["[PAD]"])  # 6, and there is no 7
    stream, decoded = TextStream(PreTrainedTokenizerFast(tokenizer_object=backend), [1, 2] * long), list[int]()
    read = stream._open._decode
    stream._open._decode = lambda ids: decoded.extend(ids) or read(ids)
    said = "".join(stream.push([token]) for token in [*silent, 2, *silent, 3, *silent]) + stream.finish()
    assert said == (" twos" if long else "twos")
    assert len(decoded) <= 3 * (2 * ENOUGH + 2)


@given(ids=st.lists(st.integers(0, 5), max_size=12))
def test_decoding_that_takes_back_never_raises(ids):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fallback_without_fuse())
    stream = TextStream(tokenizer)
    said = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert len(said) == len(at_once(tokenizer, ids))


# ---- one token ----


def test_a_token_is_spelled_as_it_stands_behind_others():
    ids = [PIECES.convert_tokens_to_ids(token) for token in ("▁", "o", "<0xC3>", "<|im_end|>")]
    assert [spell(PIECES, token) for token in ids] == [" ", "o", "\ufffd", "<|im_end|>"]
    assert spell(PreTrainedTokenizerFast(tokenizer_object=metaspace()), 2) == " two"
    assert spell(BYTES, 2) == "<|im_end|>" and spell(BYTES, 10**6) == spell(BYTES, -1) == ""


@pytest.mark.parametrize("word", ["<é>", "a b", "ab", "日本"])
def test_added_tokens_are_decoded_as_the_tokenizer_does(word):
    for make in (tiny.byte_level_tokenizer, tiny.sentencepiece_tokenizer):
        tokenizer = make()
        tokenizer.add_tokens([word])
        token = tokenizer.convert_tokens_to_ids(word)
        assert decode(tokenizer, [5, token, 7]) == at_once(tokenizer, [5, token, 7])
