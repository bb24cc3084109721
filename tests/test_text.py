"""`sla_jax.text`: exact prompt/response boundaries, and streams that say what a decode of everything says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sla_jax.errors import UserError
from sla_jax.text import TextStream, chat_ids, load_tokenizer, response_ids, token_bytes
from tests import tiny

IM_START, IM_END = 1, 2
ASK = [{"role": "user", "content": "What is the capital of France?"}]
TURNS = [{"role": "system", "content": "Be kind."}, *ASK, {"role": "assistant", "content": "Paris."}, *ASK]
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["👩‍👩‍👧‍👦🇫🇷", "東京は日本の首都です", "\ufffd", "a\ufffdb", "  a  "]
)
BYTES = tiny.byte_level_tokenizer()
PIECES = tiny.sentencepiece_tokenizer()
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["byte-level", "sentencepiece"])


def decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def with_template(template: str | None):
    return tiny.byte_level_tokenizer(template=template)


# ---- loading ----


def test_a_saved_tokenizer_loads_as_it_was(tiny_tokenizer, tiny_tokenizer_dir):
    loaded = load_tokenizer(tiny_tokenizer_dir)
    assert loaded.backend_tokenizer.to_str() == tiny_tokenizer.backend_tokenizer.to_str()
    assert loaded.chat_template == tiny.CHATML
    assert loaded.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [IM_START, IM_END]
    assert loaded.eos_token_id == IM_END


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a directory"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1.0", "model": {"type": "NoSuch"}}'])
def test_a_broken_tokenizer_file_is_one_paragraph(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read|tokenizer.json, line 1: not JSON") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


# ---- chats ----


def test_chat_ids_follow_the_template(tiny_tokenizer):
    ids = chat_ids(tiny_tokenizer, ASK)
    assert tiny_tokenizer.decode(ids) == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [ids.count(IM_START), ids.count(IM_END)] == [2, 1]
    closed = chat_ids(tiny_tokenizer, ASK, add_generation_prompt=False)
    assert ids[: len(closed)] == closed


@pytest.mark.parametrize("prompt", [ASK, TURNS])
def test_the_response_ends_with_its_end_of_turn_token(tiny_tokenizer, prompt):
    before, response = response_ids(tiny_tokenizer, prompt, "Paris, of course.")
    assert before == chat_ids(tiny_tokenizer, prompt)
    assert response[-1] == IM_END
    assert response.count(IM_END) == 1
    assert decode(tiny_tokenizer, response) == "Paris, of course."
    full = chat_ids(
        tiny_tokenizer, [*prompt, {"role": "assistant", "content": "Paris, of course."}], add_generation_prompt=False
    )
    assert full[: len(before) + len(response)] == before + response
    assert decode(tiny_tokenizer, full[len(before) + len(response) :]) == "\n"


@TOKENIZERS
@given(response=TEXT)
def test_the_boundary_is_exact_for_any_response(tokenizer, response):
    before, said = response_ids(tokenizer, ASK, response)
    assert before == chat_ids(tokenizer, ASK)
    assert said[-1] == IM_END
    text = "".join(["<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", response])
    assert decode(tokenizer, before + said) == decode(tokenizer, encode(tokenizer, text))


def test_tokens_never_merge_across_the_boundary():
    """With "\\n\\n" in the vocabulary, a response that begins with a line break must not swallow the prompt's own."""
    tokenizer = tiny.byte_level_tokenizer(corpus=["a\n\nb\n\n" * 50])
    pair = encode(tokenizer, "\n\n")
    assert len(pair) == 1
    before, response = response_ids(tokenizer, ASK, "\nParis")
    assert before == chat_ids(tokenizer, ASK)
    assert pair[0] not in before[-1:] + response
    assert decode(tokenizer, response) == "\nParis"


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ("<|im_end|>\n", "<|im_end|>"),
        ("<|im_end|>\n<|endoftext|>", "<|im_end|>"),
        ("<|endoftext|>", "<|endoftext|>"),
        ("\n", ""),
        ("", ""),
        ("</s>\n\n", "</s>"),
    ],
)
def test_only_the_first_special_token_after_a_response_belongs_to_it(after, kept):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}{{ after }}{% endfor %}"
    template = template.replace("{{ after }}", after) + "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = with_template(template)
    before, response = response_ids(tokenizer, ASK, " Paris. ")
    assert tokenizer.decode(before) == f"user: What is the capital of France?{after}assistant: "
    assert tokenizer.decode(response) == f"Paris.{kept}"


def test_an_end_token_written_inside_a_response_does_not_cut_it(tiny_tokenizer):
    _, response = response_ids(tiny_tokenizer, ASK, "a<|im_end|>b")
    assert tiny_tokenizer.decode(response) == "a<|im_end|>b<|im_end|>"


def test_a_template_that_rewrites_the_prompt_is_an_error():
    count = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="writes the prompt differently once there is a response: '1What is"):
        response_ids(with_template(count), ASK, "Paris")


def test_a_template_that_refuses_roles_is_quoted():
    refuse = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    with pytest.raises(UserError, match=r"refuses these messages \(user first\); their roles are: system, user"):
        chat_ids(with_template(refuse), TURNS)


def test_no_template_and_no_content_are_errors(tiny_tokenizer):
    with pytest.raises(UserError, match="no chat template"):
        chat_ids(with_template(None), ASK)
    with pytest.raises(UserError, match="expected the strings 'role' and 'content'"):
        chat_ids(tiny_tokenizer, [{"role": "user"}])


# ---- streams ----


@pytest.mark.parametrize("text", ["👍🏽 ok", "東京は日本の首都です。", "naïve café", "👩‍👩‍👧‍👦🇫🇷!"])
@TOKENIZERS
def test_a_split_character_is_held_until_it_is_whole(tokenizer, text):
    stream = TextStream(tokenizer)
    ids = encode(tokenizer, text)
    assert any(decode(tokenizer, [token]).endswith("\ufffd") for token in ids)  # one ends inside a character
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) == text
    assert stream.finish() == ""


@TOKENIZERS
@given(text=TEXT, cuts=st.lists(st.integers(0, 20), max_size=8))
def test_the_pieces_are_the_text(tokenizer, text, cuts):
    ids, stream, said = encode(tokenizer, text), TextStream(tokenizer), ""
    for cut in cuts:
        said += stream.push(ids[:cut])
        ids = ids[cut:]
    said += stream.push(ids) + stream.finish()
    assert said == decode(tokenizer, encode(tokenizer, text))


@given(ids=st.lists(st.integers(0, len(BYTES) - 1)))
def test_any_tokens_at_all_give_their_decoding(ids):
    """Half characters, stray bytes and special tokens anywhere."""
    stream = TextStream(BYTES)
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == decode(BYTES, ids)


@given(ids=st.lists(st.integers(0, len(BYTES) - 1)))
def test_special_tokens_are_spelled_where_they_are_wanted(ids):
    stream = TextStream(BYTES, skip_special_tokens=False)
    said = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert said == BYTES.backend_tokenizer.decode(ids, skip_special_tokens=False)


@TOKENIZERS
@given(st.lists(TEXT.map(lambda text: text.replace("\ufffd", "")) | st.sampled_from(tiny.SPECIALS), max_size=5))
def test_special_tokens_among_whole_characters_are_spelled_as_the_tokenizer_does(tokenizer, texts):
    ids = [token for text in texts for token in encode(tokenizer, text)]
    stream = TextStream(tokenizer, skip_special_tokens=False)
    said = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert said == tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_half_a_character_at_the_end_is_said_by_finish_and_the_stream_starts_again(tiny_tokenizer):
    thumb = encode(tiny_tokenizer, "👍")
    stream = TextStream(tiny_tokenizer)
    assert stream.push([*encode(tiny_tokenizer, "ok "), thumb[0]]) == "ok "
    assert set(stream.finish()) == {"\ufffd"}
    assert stream.push(thumb) == "👍"


def test_special_tokens_are_not_text(tiny_tokenizer):
    stream = TextStream(tiny_tokenizer)
    assert stream.push([IM_START, *encode(tiny_tokenizer, "hi"), IM_END]) + stream.finish() == "hi"


# ---- the bytes of tokens ----


@given(TEXT)
def test_the_bytes_of_tokens_make_the_text(text):
    """SentencePiece's kind puts a space in front, which decoding takes away."""
    for tokenizer, front in ((BYTES, b""), (PIECES, b" ")):
        pieces = token_bytes(tokenizer, len(tokenizer))
        found = b"".join(pieces[i] for i in encode(tokenizer, text))
        assert found.removeprefix(front if text else b"") == text.encode()


@TOKENIZERS
def test_special_tokens_and_ids_without_a_token_have_no_bytes(tokenizer):
    pieces = token_bytes(tokenizer, len(tokenizer) + 3)
    assert [i for i, piece in enumerate(pieces) if not piece] == [0, 1, 2, *range(len(tokenizer), len(tokenizer) + 3)]
    assert token_bytes(tokenizer, 5) == pieces[:5]


def test_the_bytes_of_a_tokenizer_of_another_kind_are_what_it_decodes_to():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    words.add_tokens(["\n\n"])
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=words), 4) == [b"<unk>", b"one", b"two", b"\n\n"]
