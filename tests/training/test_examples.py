"""Tokens, marks and truncation under several chat templates, and `Examples` in memory and on disk."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sla_jax.errors import UserError
from sla_jax.training.examples import Answer, Example, Examples, describe, exact_text, length_weights, render_masked
from sla_jax.training.rows import Pair, Row, Steps, Talk
from sla_jax.training.tokens import Chunk, Rules, _mapped, tokenize_chunk, tokenize_row, tokenize_rows
from tests import tiny

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (  # no special token at all; tokens run across the ends of turns
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETFUL = (  # drops what earlier assistant turns said, as templates of reasoning models do
    "{% for message in messages %}<s>{{ message['content'] if loop.last or message['role'] == 'user' else '…' }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)
# name → template, special tokens (first and last of them are bos and eos), end of turn, whether contents are trimmed
TEMPLATES = {
    "chatml": (tiny.CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", False),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
        True,
    ),
    "mistral": (MISTRAL, ["<s>", "</s>"], "</s>", False),
    "plain": (PLAIN, ["<s>", "</s>"], "", False),
}
MERGING = "]? ]! ]( ]. .\n\n !\n\n ?\n\n a\n\n t: : a"  # so that tokens do run across a template's borders


def tokenizer_for(template: str, specials: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([MERGING] * 20, trainer)
    names = {"bos_token": specials[0], "eos_token": specials[-1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


TOKENIZERS = {name: tokenizer_for(*parts[:2]) for name, parts in TEMPLATES.items()}
EACH = pytest.mark.parametrize("name", list(TEMPLATES))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(str.strip) | st.sampled_from(
    [
        "<|im_end|>",
        "</s>[INST]",
        " [/INST] a",
        "a\n\n\nb\n",
        "? why",
        "!",
        "👩‍👩‍👧 東京",
        "<|eot_id|>x",
        "assistant: b",
        "a .",
    ]
)
LONG = Rules(max_length=4096, max_prompt_length=4095)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def runs(name: str, answer: Answer) -> list[str]:
    """Texts of the scored runs."""
    marked = zip(answer.tokens.tolist(), answer.marks.tolist(), strict=True)
    groups = itertools.groupby(marked, key=lambda pair: pair[1] >= 0)
    return [exact_text(TOKENIZERS[name], [token for token, _ in group]) for scored, group in groups if scored]


def said(name: str, text: str) -> str:
    """What a response should score: its text as the template writes it, and the end of the turn."""
    _, _, end, trimmed = TEMPLATES[name]
    return (text.strip() if trimmed else text) + end


def rendered(name: str, messages: list[dict[str, str]], **how: bool) -> str:
    return TOKENIZERS[name].apply_chat_template(messages, tokenize=False, **how)


def spelled(name: str, example: Example) -> str:
    return exact_text(TOKENIZERS[name], [*example.prompt.tolist(), *example.answers[0].tokens.tolist()])


# ---- marks ----


@EACH
@given(ask=TEXT, chosen=TEXT, rejected=TEXT)
def test_both_responses_of_a_pair_are_scored_to_the_end_of_their_turn(name, ask, chosen, rejected):
    example, *cuts = tokenize_row(TOKENIZERS[name], Pair([user(ask)], chosen, rejected), LONG)
    assert cuts == [0, 0, 0, 0]
    assert exact_text(TOKENIZERS[name], example.prompt.tolist()) == rendered(
        name, [user(ask)], add_generation_prompt=True
    )
    for answer, text in zip(example.answers, (chosen, rejected), strict=True):
        assert (answer.marks == 1).all()
        assert runs(name, answer) == [said(name, text)]


@EACH
@given(turns=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), first=st.integers(0, 2))
def test_every_turn_of_a_conversation_is_scored_and_nothing_else(name, turns, first):
    first = min(first, len(turns) - 1)
    talk = [message for ask, answer in turns for message in (user(ask), assistant(answer))]
    example = tokenize_row(TOKENIZERS[name], Talk(talk, 2 * first + 1), LONG).example
    assert runs(name, example.answers[0]) == [said(name, answer) for _, answer in turns[first:]]
    whole = rendered(name, talk)
    assert whole.startswith(spelled(name, example))
    assert not whole[len(spelled(name, example)) :].strip()
    assert exact_text(TOKENIZERS[name], example.prompt.tolist()) == rendered(
        name, talk[: 2 * first + 1], add_generation_prompt=True
    )


@EACH
@given(
    steps=st.lists(st.tuples(TEXT, st.booleans()), min_size=1, max_size=4), separator=st.sampled_from(["\n", "\n\n"])
)
def test_a_step_is_labelled_on_the_last_token_of_its_separator(name, steps, separator):
    texts = [text.strip() for text, _ in steps]
    labels = [int(label) for _, label in steps]
    rules = Rules(max_length=4096, max_prompt_length=4095, separator=separator)
    (answer,) = tokenize_row(TOKENIZERS[name], Steps([user("q")], texts, labels), rules).example.answers
    assert exact_text(TOKENIZERS[name], answer.tokens.tolist()) == "".join(text + separator for text in texts)
    ends = np.flatnonzero(answer.marks >= 0)
    assert answer.marks[ends].tolist() == labels
    for count, end in enumerate(ends.tolist(), start=1):
        before = exact_text(TOKENIZERS[name], answer.tokens[: end + 1].tolist())
        assert before == "".join(text + separator for text in texts[:count])


def test_steps_are_tokenized_as_trl_does():
    """TRL (experimental/prm): each completion + separator by itself, the label on the last token, -100 elsewhere."""
    tokenizer = TOKENIZERS["chatml"]
    texts, labels = ["one!", "two?", "three"], [1, 0, 1]
    separator = tokenizer("\n", add_special_tokens=False)["input_ids"]
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] + separator for text in texts]
    marks = [[-100] * (len(part) - 1) + [label] for part, label in zip(parts, labels, strict=True)]
    (answer,) = tokenize_row(tokenizer, Steps([user("q")], texts, labels), LONG).example.answers
    assert answer.tokens.tolist() == sum(parts, [])
    assert np.where(answer.marks < 0, -100, answer.marks).tolist() == sum(marks, [])
    last = Rules(max_length=4096, max_prompt_length=4095, last_step_only=True)
    (answer,) = tokenize_row(tokenizer, Steps([user("q")], texts, labels), last).example.answers
    assert [answer.marks[answer.marks >= 0].tolist(), int(answer.marks[-1])] == [[1], 1]


def test_a_step_that_ends_with_the_separator_is_no_second_step():
    one, two = (
        tokenize_row(TOKENIZERS["chatml"], Steps([user("q")], texts, [1, 0]), LONG).example
        for texts in (["a\n", "b\n"], ["a", "b"])
    )
    assert Examples.of([one]).fingerprint() == Examples.of([two]).fingerprint()


def test_a_system_message_is_read():
    talk = [{"role": "system", "content": "Be kind."}, user("q"), assistant("a")]
    example = tokenize_row(TOKENIZERS["chatml"], Talk(talk, 2), LONG).example
    assert "Be kind." in exact_text(TOKENIZERS["chatml"], example.prompt.tolist())


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = tokenizer_for(FORGETFUL, ["<s>", "</s>"])
    talk = [user("q"), assistant("a long thought"), user("r"), assistant("b")]
    with pytest.raises(UserError, match="chat template writes earlier turns differently.*'a long"):
        tokenize_row(tokenizer, Talk(talk, 1), LONG)
    assert tokenize_row(tokenizer, Talk(talk, 3), LONG).turns == 0


def test_a_role_that_the_template_refuses_is_a_bad_row(tmp_path):
    TOKENIZERS["mistral"].save_pretrained(tmp_path)
    rows = [Pair([user("q")], "a", "b"), Pair([{"role": "system", "content": "s"}, user("q")], "a", "b")]
    chunk = tokenize_chunk(str(tmp_path), LONG, rows)
    assert chunk.kept.tolist() == [0]
    assert [number for number, _ in chunk.bad] == [1]
    assert "must alternate" in chunk.bad[0][1]


# ---- truncation ----


def test_truncation_keeps_the_last_turn_and_cuts_left(tiny_tokenizer):
    turns = [user("first " * 20), assistant("x"), user("last")]
    row = Pair(turns, "yes", "no " * 30)
    whole = tokenize_row(tiny_tokenizer, row, Rules(max_length=10_000, max_prompt_length=9_999)).example
    rejected = whole.answers[1].tokens
    last_turn = len(tokenize_row(tiny_tokenizer, Pair(turns[-1:], "a", "b"), LONG).example.prompt)
    assert len(whole.prompt) > last_turn + 10
    limit = len(rejected) + last_turn + 5
    cut = tokenize_row(tiny_tokenizer, row, Rules(max_length=limit, max_prompt_length=limit - 1))
    assert (cut.prompts, cut.answers) == (1, 0)
    assert cut.example.prompt.tolist() == whole.prompt[-(last_turn + 5) :].tolist()
    tight = tokenize_row(tiny_tokenizer, row, Rules(max_length=last_turn + 4, max_prompt_length=last_turn + 3))
    assert tight.answers == 1
    assert tight.example.prompt.tolist() == whole.prompt[-last_turn:].tolist()
    assert tight.example.answers[1].tokens.tolist() == rejected[:4].tolist()


@EACH
@given(data=st.data(), count=st.integers(1, 4))
def test_a_long_conversation_keeps_its_end(name, data, count):
    turns = [f"turn {number} " + data.draw(TEXT) for number in range(count)]
    talk = [message for text in turns for message in (user(f"ask {text}"), assistant(f"say {text}"))]
    whole = tokenize_row(TOKENIZERS[name], Talk(talk, 1), LONG).example
    last_turn = tokenize_row(TOKENIZERS[name], Talk(talk[-2:], 1), LONG).example
    need = len(last_turn.prompt) + len(last_turn.answers[0].tokens)
    all_ids = [*whole.prompt.tolist(), *whole.answers[0].tokens.tolist()]
    limit = data.draw(st.integers(need, len(all_ids)))
    cut = tokenize_row(TOKENIZERS[name], Talk(talk, 1), Rules(max_length=limit, max_prompt_length=limit - 1))
    left = [*cut.example.prompt.tolist(), *cut.example.answers[0].tokens.tolist()]
    assert len(left) <= limit
    assert left == all_ids[len(all_ids) - len(left) :]
    assert cut.answers == 0
    assert runs(name, cut.example.answers[0]) == [said(name, f"say {text}") for text in turns[cut.turns :]]
    assert len(left) == limit or cut.turns or not cut.prompts


def test_steps_beyond_the_length_lose_their_labels(tmp_path):
    TOKENIZERS["chatml"].save_pretrained(tmp_path)
    row = Steps([user("q")], ["one", "two", "three"], [1, 1, 0])
    whole = tokenize_row(TOKENIZERS["chatml"], row, LONG).example
    ends = np.flatnonzero(whole.answers[0].marks >= 0)
    prompt = len(whole.prompt)
    for room, kept in ((ends[2] + 1, 3), (ends[2], 2), (ends[1] + 1, 2), (ends[1], 1), (ends[0], 0)):
        rules = Rules(max_length=int(prompt + room), max_prompt_length=prompt)
        cut = tokenize_row(TOKENIZERS["chatml"], row, rules)
        assert (cut.labels, int((cut.example.answers[0].marks >= 0).sum())) == (3 - kept, kept)
        assert tokenize_chunk(str(tmp_path), rules, [row]).empty == ([] if kept else [0])


def test_one_process_or_two_make_the_same_bytes(tiny_tokenizer_dir: Path):
    rows = [Pair([user(f"question {number}")], "yes " * (number % 7 + 1), "no") for number in range(600)]
    told: list[tuple[int, int]] = []
    one, two = (
        tokenize_rows(tiny_tokenizer_dir, rows, LONG, workers, lambda done, total: told.append((done, total)))
        for workers in (1, 2)
    )
    assert told == [(256, 600), (512, 600), (600, 600)] * 2
    for left, right in zip(one, two, strict=True):
        assert left.counts == right.counts
        for a, b in zip((left.kept, *left.flat), (right.kept, *right.flat), strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def die(rows: Sequence[Row]) -> Chunk:
    os._exit(9)


def test_a_process_that_is_killed_is_reported():
    with pytest.raises(UserError, match="one of the 2 processes that tokenize was killed"):
        list(_mapped(die, [[Pair([user("q")], "a", "b")]] * 4, 2))


# ---- Examples ----


def make(prompt: int, *answers: list[int]) -> Example:
    return Example(
        np.arange(prompt, dtype=np.int32),
        tuple(Answer(np.arange(len(marks), dtype=np.int32) + 50, np.asarray(marks, np.int8)) for marks in answers),
    )


PAIRS = [make(3, [1] * 4, [1] * 2), make(1, [1], [1] * 3), make(2, [1] * 2, [1] * 2), make(2, [1] * 6, [1])]


def same(one: Example, two: Example) -> bool:
    pairs = zip((one.prompt, *sum(one.answers, ())), (two.prompt, *sum(two.answers, ())), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_examples_are_what_went_in_also_from_disk(tmp_path):
    rows = [make(3, [-1, 1, 1]), make(1, [0, -1]), make(2, [-1, -1, 1, 0])]
    where = np.asarray([[0, 4], [1, 2], [1, 3]])
    memory = Examples.of(rows, heldout=[False, True, False], where=where, places=("a, line", "b, row"))
    memory.save(tmp_path)
    for examples in (memory, Examples.load(tmp_path, memory.places)):
        assert len(examples) == 3 and examples.answers == 1
        assert all(same(examples[i], rows[i]) for i in range(3))
        assert examples.totals.tolist() == [6, 3, 6]
        assert examples.scored.tolist() == [[2], [1], [2]]
        assert examples.fingerprint() == memory.fingerprint()
        assert [examples.origin(i) for i in range(3)] == ["a, line 4", "b, row 2", "b, row 3"]
        part = examples.select(~examples.heldout)
        assert [same(part[i], rows[j]) for i, j in enumerate((0, 2))] == [True, True]
        assert part.select(np.asarray([1])).origin(0) == "b, row 3"
        with pytest.raises(IndexError):
            part[2]


def test_fingerprints_of_pairs_are_those_of_old_feature_caches():
    digest = hashlib.sha256()
    for prompt, answers in PAIRS:
        parts = [prompt, *(answer.tokens for answer in answers)]
        digest.update(np.asarray([len(part) for part in parts], np.int64).tobytes())
        digest.update(np.concatenate(parts).tobytes())
    assert Examples.of(PAIRS).fingerprint() == digest.hexdigest()


def test_fingerprints_tell_boundaries_and_marks_apart():
    rows = [
        [make(3, [1, 1])],
        [make(3, [1, -1])],
        [make(3, [1, 0])],
        [make(3, [1], [1])],
        [make(3, [1], [0])],
        [make(3, [1]), make(0, [1])],
    ]
    assert len({Examples.of(row).fingerprint() for row in rows}) == len(rows)


def test_length_weights_make_both_kinds_of_pairs_equal():
    weights = length_weights(Examples.of(PAIRS))  # longer, shorter, equal, longer
    np.testing.assert_allclose(weights, [0.75, 1.5, 1, 0.75])
    assert weights.dtype == np.float32
    assert length_weights(Examples.of([PAIRS[0], PAIRS[2]])).tolist() == [1, 1]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=30))
def test_length_weights_balance(lengths):
    weights = length_weights(Examples.of([make(1, [1] * a, [1] * b) for a, b in lengths]))
    longer, shorter = (np.asarray([sign * (a - b) > 0 for a, b in lengths]) for sign in (1, -1))
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)
    if longer.any() and shorter.any():
        np.testing.assert_allclose(weights[longer].sum(), weights[shorter].sum(), rtol=1e-5)
    else:
        assert (weights == 1).all()


def test_a_description_counts():
    facts = describe(Examples.of(PAIRS, heldout=[True, False, False, False], groups=[7, 7, 8, 9]))
    assert (facts["rows"], facts["held-out rows"], facts["prompts"]) == (4, 1, 3)
    assert (facts["tokens"], facts["scored tokens"]) == (29, 21)
    assert facts["tokens a prompt"] == pytest.approx({"mean": 2, "50%": 2, "90%": 2.7, "99%": 2.97, "most": 3})
    assert facts["longer answer wins"] == pytest.approx(2 / 3)
    assert describe(Examples.of([PAIRS[2]]))["longer answer wins"] is None


def test_a_masked_example_shows_what_is_scored():
    talk = [user("q"), assistant("a"), user("r"), assistant("b")]
    shown = render_masked(tokenize_row(TOKENIZERS["mistral"], Talk(talk, 1), LONG).example, TOKENIZERS["mistral"])
    assert shown == "prompt:\n<s>[INST] q [/INST]\nanswer 1 of 1 (scored: ⟦…⟧):\n⟦a</s>⟧[INST] r [/INST]⟦b</s>⟧"
    steps = tokenize_row(TOKENIZERS["mistral"], Steps([user("q")], ["a", "b"], [1, 0]), LONG).example
    assert render_masked(steps, TOKENIZERS["mistral"], labels=True).endswith("\na⟦\n⟧=1b⟦\n⟧=0")
