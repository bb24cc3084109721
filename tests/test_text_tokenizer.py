"""Tokenizers of checkpoints: what a trainer left in a file does nothing, and tokens without embedding are named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from sla_jax.errors import UserError
from sla_jax.text import (
    chat_ids,
    check_vocabulary,
    encode,
    encode_behind,
    encoding,
    load_tokenizer,
    tokens_beyond,
)
from tests import tiny

LONG = [{"role": "user", "content": "word " * 40}]
SHORT = [{"role": "user", "content": "Hi"}]
TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    **{"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 2, "pad_type_id": 0, "pad_token": "<|im_end|>"},
}
BYTES, PIECES = tiny.byte_level_tokenizer(), tiny.sentencepiece_tokenizer()


@pytest.mark.parametrize(
    "change",
    [
        {"truncation": TRUNCATION},
        {"padding": PADDING},
        {"truncation": TRUNCATION, "padding": PADDING},
        {"dropout": 0.9},
    ],
    ids=["truncation", "padding", "both", "dropout"],
)
def test_what_a_trainer_left_in_the_file_does_nothing(tmp_path: Path, change):
    plain = tiny.byte_level_tokenizer()
    plain.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    stored = json.loads(file.read_text())
    stored["model"]["dropout"] = change.pop("dropout", None)
    file.write_text(json.dumps(stored | change))
    loaded = load_tokenizer(tmp_path)
    for messages in (LONG, SHORT):
        assert chat_ids(loaded, messages) == chat_ids(plain, messages)
    assert loaded("the quick brown fox " * 20)["input_ids"] == plain("the quick brown fox " * 20)["input_ids"]


@pytest.mark.parametrize("text", ["a\ud83d", "\udc00", "\ud83d\ud83d"])
def test_half_a_surrogate_pair_is_refused(text):
    with pytest.raises(UserError, match="half a surrogate pair .* at character"):
        encode(BYTES, text)
    with pytest.raises(UserError, match="half a surrogate pair"):
        chat_ids(BYTES, [{"role": "user", "content": text}])


@given(before=st.text(max_size=8), text=st.text(max_size=8))
def test_a_text_behind_another_one_is_encoded_as_its_end(before, text):
    """As one encoding cut in two where that can be; SentencePiece's kind puts no space between them."""
    for tokenizer in (BYTES, PIECES):
        ids, rest = encode_behind(tokenizer, before, text)
        assert ids == encode(tokenizer, before)
        if before and tokenizer is PIECES:  # it has no merges, so that it can always be cut
            assert ids + rest == encode(tokenizer, before + text)
        told = text.replace("▁", " ") if tokenizer is PIECES else text
        assert tokenizer.backend_tokenizer.decode([*ids, *rest]).endswith(told)


@given(ids=st.lists(st.integers(-3, 400)), vocabulary=st.integers(1, 400))
def test_only_tokens_with_an_embedding_pass(ids, vocabulary):
    bad = [token for token in ids if not 0 <= token < vocabulary]
    if not bad:
        check_vocabulary(BYTES, ids, vocabulary, "row 7")
        return
    with pytest.raises(UserError, match=rf"row 7: the token .*{bad[0]}\)? has no embedding.* 0 to {vocabulary - 1},"):
        check_vocabulary(BYTES, ids, vocabulary, "row 7")


def test_a_template_that_windows_has_saved_begins_where_it_begins(tmp_path: Path):
    tiny.byte_level_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfHi")
    assert load_tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "Hi"


def test_a_token_that_was_added_is_named(tmp_path: Path):
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["[X]"])
    tokenizer.save_pretrained(tmp_path)
    assert tokens_beyond(tmp_path, 320) == {"[PAD]": 320, "[X]": 321}
    assert tokens_beyond(tmp_path, 322) == tokens_beyond(tmp_path / "none", 1) == {}
    with pytest.raises(
        UserError, match=r"the prompt: the token '\[PAD\]' \(320\) has no embedding; .* and its tokenizer has 322"
    ):
        check_vocabulary(load_tokenizer(tmp_path), encode(tokenizer, "a [PAD]"), 320, "the prompt")


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@given(text=st.text(max_size=40) | st.text("aé👍 <|im_end|>", max_size=40), special=st.booleans())
def test_an_encoding_is_the_tokenizers_own_with_offsets_in_characters(tokenizer, text, special):
    ours = encoding(tokenizer, text, special=special)
    theirs = tokenizer.backend_tokenizer.encode(text, add_special_tokens=special)
    assert (ours.ids, ours.offsets) == (theirs.ids, theirs.offsets)


def test_a_text_at_which_the_regular_expression_gives_up_is_told_and_the_next_one_is_read(capfd):
    """A real panic of the Rust side: this expression tries 2^40 ways."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+b"), "isolated")
    with pytest.raises(UserError, match="cannot read this text of 40 characters.*retry-limit"):
        encode(tokenizer, "a" * 40)
    assert encode(tokenizer, "ab")
    capfd.readouterr()  # Rust prints its panic itself
