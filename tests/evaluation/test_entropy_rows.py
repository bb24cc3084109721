"""Texts in, rows and figures out: offsets, resuming, what is refused, and correlations worked out by hand."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from sla_jax.errors import UserError
from sla_jax.evaluation.entropy import figures, reader, rows, run, texts
from sla_jax.evaluation.entropy.config import EntropyConfig
from sla_jax.evaluation.entropy.tokens import Tokens, names, tokenized
from sla_jax.loading import Loaded, load_model
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

SENTENCE = "The quick  brown fox,\n naïve 東京 👍🏽 café. "
TALK = [{"role": "user", "content": "How much is 12 + 30?"}, {"role": "assistant", "content": "It is 42."}]
ROWS: list[dict[str, Any]] = [
    {"text": "The quick brown fox jumps over the lazy dog. " * 4},
    {"text": TALK},
    {"text": ""},
    {"text": "Grüße aus Köln, naïve café. 東京", "id": 17},
    {"text": "Paris."},
]


def with_bos(tokenizer: Any) -> Any:
    """The same tokenizer, which now puts <|im_start|> in front of every text."""
    bos = [("<|im_start|>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=bos
    )
    return tokenizer


def trimming(tokenizer: Any) -> Any:
    """The same tokenizer, which leaves white space out of its offsets."""
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


MAKERS = {
    "byte-level": byte_level_tokenizer,
    "byte-level, trimmed": lambda: trimming(byte_level_tokenizer()),
    "byte-level, BOS": lambda: with_bos(byte_level_tokenizer()),
    "sentencepiece": sentencepiece_tokenizer,
    "sentencepiece, BOS": lambda: with_bos(sentencepiece_tokenizer()),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Loaded:
    return load_model(checkpoint)


def data_file(folder: Path, lines: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def config(folder: Path, *data: Path, **options: Any) -> EntropyConfig:
    common: dict[str, Any] = {"checkpoint": "tiny", "window": 64, "batch_tokens": 256, "block": 2}
    return EntropyConfig(**{**common, "out": folder / "rows.jsonl", "data": tuple(map(str, data)), **options})


def measured(settings: EntropyConfig, model: Loaded, fingerprint: str = "f") -> figures.Figures:
    return run.measure(settings, model, fingerprint, lambda done, total, note: None)


# ---- tokens and their characters ----


def test_spans_cover_the_text_and_fit_their_tokens(tokenizer: Any) -> None:
    found, pieces = tokenized(tokenizer, SENTENCE), names(tokenizer, len(tokenizer))
    reach = 0
    for token, (begin, end) in zip(found.ids, found.spans, strict=True):
        assert begin <= reach and begin <= end
        if "\ufffd" in pieces[token]:
            assert not found.text[begin:end].isascii(), "part of a character"
        elif begin < end:
            assert pieces[token].strip() == found.text[begin:end].strip()
        reach = max(reach, end)
    assert found.text[reach:].strip() == ""
    assert found.counted == (0, len(found.ids))


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_bos_has_an_empty_span_and_moves_no_other(make: Any) -> None:
    bare, begun = tokenized(make(), SENTENCE), tokenized(with_bos(make()), SENTENCE)
    assert begun.ids == [1, *bare.ids] and begun.spans == [(0, 0), *bare.spans]


def test_of_a_conversation_the_last_answer_counts() -> None:
    tokenizer = byte_level_tokenizer()
    found, pieces = tokenized(tokenizer, TALK), names(tokenizer, 320)
    first, end = found.counted
    assert "".join(pieces[i] for i in found.ids[first:end]) == "It is 42.<|im_end|>"
    assert found.text[found.spans[first][0] :].startswith("It is 42.") and len(found.ids) > end
    assert tokenized(tokenizer, TALK[:1]).counted == (0, len(tokenized(tokenizer, TALK[:1]).ids))


def test_a_template_that_writes_the_prompt_anew_is_refused() -> None:
    tokenizer = byte_level_tokenizer(template="{{ messages | length }}{{ messages[-1]['content'] }}")
    with pytest.raises(UserError, match="writes this conversation's prompt differently"):
        tokenized(tokenizer, TALK)


# ---- texts ----


@given(st.text("ab \n東", max_size=60), st.integers(1, 20))
def test_segments_joined_are_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("plain") / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    found = list(texts.segments(path, size))
    assert "".join(str(one.content) for one in found) == text
    assert all(0 < len(one.content) <= size for one in found)
    assert [one.id for one in found] == [
        f"{path}:{sum(len(before.content) for before in found[:number])}" for number in range(len(found))
    ]


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    lines = data_file(tmp_path, ROWS)
    whole = tmp_path / "data.json"
    whole.write_text(json.dumps(ROWS), encoding="utf-8")
    zipped = tmp_path / "plain.txt.gz"
    zipped.write_bytes(gzip.compress(b"one line\nand one\r\n"))
    found = list(texts.Source(config(tmp_path, lines, whole, zipped, segment=10)))
    assert [one.content for one in found[:5]] == [one.content for one in found[5:10]] == [row["text"] for row in ROWS]
    assert [one.id for one in found[:5]] == [f"{lines}:1", f"{lines}:2", f"{lines}:3", "17", f"{lines}:5"]
    assert [one.content for one in found[10:]] == ["one line\n", "and one\n"]
    assert len(list(texts.Source(config(tmp_path, lines, whole, limit=7)))) == 7


def test_a_data_set_is_read_by_its_name(tmp_path: Path) -> None:
    data_file(tmp_path, [{"words": "one"}, {"words": "two"}], "train.jsonl")
    settings = config(tmp_path, dataset=str(tmp_path), split="train", field="words")
    assert [(one.id, one.content) for one in texts.Source(settings)] == [
        (f"{tmp_path}:train:0", "one"),
        (f"{tmp_path}:train:1", "two"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a"', "data.jsonl, line 2: not JSON"),
        ('{"txt": "a"}', "line 2: the row has no field 'text'; it has 'txt'. Did you mean 'txt'"),
        ('{"text": 3}', "line 2: 'text' is a number; it has to be a string, or a list of messages"),
        ('{"text": [{"role": "user"}]}', "line 2: 'text' is a list"),
        ('{"text": "\\ud800"}', "line 2: 'text' has half a character .* at 0"),
        ("7", "line 2: a row has to be a JSON object"),
    ],
)
def test_a_row_that_is_none_is_named_before_anything_is_read(
    tmp_path: Path, model: Loaded, line: str, says: str
) -> None:
    path = data_file(tmp_path, ROWS[:1])
    path.write_text(path.read_text() + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=says):
        measured(config(tmp_path, path), model)
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "neither is given"),
        ({"data": ("a.jsonl",), "dataset": "b"}, "both are given"),
        ({"data": ("a.jsonl",), "split": "test"}, "belong to a --dataset"),
        ({"data": ("a.jsonl",), "chunk": 0}, "chunk=0 is out of range"),
        ({"data": ("a.jsonl",), "out": Path("rows.json")}, "has to end with .jsonl"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        EntropyConfig(**{"checkpoint": "tiny", "out": tmp_path / "rows.jsonl", **options})


def test_files_that_are_not_there_or_of_no_kind_are_named(tmp_path: Path) -> None:
    data_file(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"there is no file .*date.jsonl.* Did you mean 'data.jsonl'"):
        texts.Source(config(tmp_path, tmp_path / "date.jsonl"))
    (tmp_path / "data.csv").write_text("text\n")
    with pytest.raises(UserError, match="is not a kind of file that is read"):
        texts.Source(config(tmp_path, tmp_path / "data.csv"))


# ---- rows ----


def test_a_row_says_what_was_read(tmp_path: Path, model: Loaded) -> None:
    settings = config(tmp_path, data_file(tmp_path, ROWS), top=3)
    found = measured(settings, model)
    lines = [json.loads(line) for line in settings.out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(ROWS) == found.texts
    for line, row in zip(lines, ROWS, strict=True):
        count = len(line["tokens"])
        columns = ("token_ids", "offsets", "entropy", "pred_tokens", "correct", "losses", "top", "rewards")
        assert {len(line[name]) for name in columns} == {count}
        assert count == 0 or all(
            line[name][0] is None for name in ("entropy", "pred_tokens", "correct", "losses", "top")
        )
        first, end = max(line["counted"][0], 1), line["counted"][1]
        assert line["loss"] == (pytest.approx(np.mean(line["losses"][first:end])) if count else None)
        for place in range(1, count):
            assert 0 <= line["entropy"][place] <= math.log(320) + 1e-4
            (best, p), (_, q), _ = line["top"][place]
            assert best == line["pred_tokens"][place] and 1 >= p >= q >= 0
            if line["correct"][place]:
                assert best == line["tokens"][place] and math.exp(-line["losses"][place]) == pytest.approx(p, rel=1e-4)
        if row["text"] != TALK:
            assert line["text"] == row["text"]
            assert count == 0 or line["bytes"] == len(row["text"].encode()) - len(line["tokens"][0].encode())
    assert lines[1]["bytes"] == len(b"It is 42.<|im_end|>") and lines[3]["id"] == "17"
    assert found.tokens == sum(line["counted"][1] - max(line["counted"][0], 1) for line in lines if line["tokens"])
    assert set(found.correlations) == {"position", "correctness", "reward"}


def test_wherever_it_is_cut_it_goes_on_to_the_same_bytes(tmp_path: Path, model: Loaded) -> None:
    path = data_file(tmp_path, ROWS)
    settings = config(tmp_path, path)
    whole = measured(settings, model)
    raw = settings.out.read_bytes()
    ends = [place + 1 for place, byte in enumerate(raw) if byte == 10]
    for cut in [0, 1, *ends[:-1], *(end + 20 for end in ends[:-1]), len(raw) - 1, len(raw)]:
        settings.out.write_bytes(raw[:cut])
        assert measured(settings, model) == whole
        assert settings.out.read_bytes() == raw, f"cut at byte {cut}"


def test_rows_of_other_settings_are_kept_and_refused(tmp_path: Path, model: Loaded) -> None:
    path = data_file(tmp_path, ROWS)
    settings = config(tmp_path, path)
    measured(settings, model)
    before = settings.out.read_bytes()
    with pytest.raises(UserError, match=r"holds rows of other settings \(top: was 5, now 2\)"):
        measured(config(tmp_path, path, top=2), model)
    with pytest.raises(UserError, match="model: was"):
        measured(settings, model, fingerprint="g")
    assert settings.out.read_bytes() == before
    data_file(tmp_path, ROWS[:2])
    with pytest.raises(UserError, match="texts: was"):
        measured(settings, model)
    assert measured(config(tmp_path, path, overwrite=True), model).texts == 2
    settings.out.with_suffix(".settings.json").unlink()
    with pytest.raises(UserError, match="this program did not make it"):
        measured(config(tmp_path, path, overwrite=True), model)


def test_nan_is_an_error_and_what_was_read_stays(
    tmp_path: Path, model: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, right, calls = config(tmp_path, data_file(tmp_path, ROWS)), reader.TextReader.read, []

    def wrong(self: Any, ids: Any) -> Any:
        found = right(self, ids)
        calls.append(ids)
        if len(calls) == 2:
            found[1].entropy[4] = np.nan
        return found

    monkeypatch.setattr(reader.TextReader, "read", wrong)
    with pytest.raises(UserError, match="line 4: the model's entropy at token 4 is nan"):
        measured(settings, model)
    monkeypatch.undo()
    assert 2 <= len(settings.out.read_text(encoding="utf-8").splitlines()) < 4
    assert measured(settings, model).texts == 5


ROW = {"counted": [0, 3], "entropy": [None, 1.0, 2.0], "losses": [None, 1, 2], "correct": [None, 1, 0], "bytes": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entropy": [None, None, 1.0]}, "'entropy' has to be a number for each of the tokens 1 to 3"),
        ({"counted": [0, 10**15]}, "'counted' ends at 1000000000000000 of 3 tokens"),
        ({"counted": [0]}, "list index out of range"),
        ({"losses": [None, 10**400, 1]}, "too large"),
        ({"bytes": float("inf")}, "infinity"),
        ({"bytes": None}, "int"),
    ],
)
def test_a_file_that_is_no_such_rows_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert len(list(rows.read_counted(data_file(tmp_path, [ROW])))) == 1
    with pytest.raises(UserError, match=f"line 1: .*{said}"):
        list(rows.read_counted(data_file(tmp_path, [ROW | change])))


def test_no_floats_digit_is_lost() -> None:
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    reading = reader.Reading(values, values, np.zeros((50, 1), np.int32), -np.abs(values)[:, None], values)
    tokens = Tokens("a" * 50, [0] * 50, [(i, i + 1) for i in range(50)], (0, 50))
    line = json.loads(json.dumps(rows.row(texts.Text("x", "a" * 50, "here"), tokens, reading, ["a"], top=0)))
    assert np.array_equal(np.array(line["rewards"], np.float32), values) and "top" not in line
    assert np.array_equal(np.array(line["entropy"][1:], np.float32), values[1:])


# ---- figures ----


def counted(entropy: list[float], reward: list[float] | None = None, correct: list[int] | None = None) -> rows.Counted:
    count = len(entropy)
    return rows.Counted(
        position=np.arange(1.0, count + 1),
        entropy=np.array(entropy),
        loss=np.full(count, 2.0),
        correct=np.array(correct or [0] * count, np.float64),
        reward=None if reward is None else np.array(reward),
        bytes=2 * count,
    )


def test_figures_worked_out_by_hand() -> None:
    found = figures.figures([counted([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1, 0, 0]), counted([6.0], [0.0])])
    assert (found.texts, found.tokens, found.bytes) == (2, 4, 8)
    assert (found.entropy, found.loss, found.correct) == (3.0, 2.0, 0.25)
    assert found.entropy_bits == pytest.approx(12 / math.log(2) / 8) and found.loss_bits == pytest.approx(
        1 / math.log(2)
    )
    position, reward = found.correlations["position"], found.correlations["reward"]
    assert (position.within, position.texts, position.tokens) == (1.0, 1, 4) and math.isnan(position.error)
    assert reward.spearman == -1.0 and reward.within == -1.0
    assert found.correlations["correctness"].pearson == pytest.approx(-2 / math.sqrt(14 * 0.75))


def test_within_texts_has_its_standard_error_over_texts() -> None:
    up, down = counted([1.0, 2.0, 3.0]), counted([3.0, 1.0, 2.0])  # Spearman 1 and -1/2
    position = figures.figures([up, down, up, down]).correlations["position"]
    assert position.within == pytest.approx(0.25) and position.texts == 4
    assert position.error == pytest.approx(math.sqrt(4 * 0.75**2 / 3) / 2)


def test_what_does_not_exist_is_a_dash_and_a_null() -> None:
    found = figures.figures([counted([1.0, 1.0, 1.0])])
    assert set(found.correlations) == {"position", "correctness"}
    assert "position              —         —   — ± — of 0 texts" in figures.table(found)
    assert figures.as_json(found)["correlations"]["position"]["pearson"] is None
    assert "1 texts, 3 tokens, 6 bytes" in figures.table(found)
    json.dumps(figures.as_json(figures.figures([])), allow_nan=False)


@pytest.mark.parametrize("content", ["half \ud83d", [{"role": "user", "content": "half \ud83d"}]])
def test_half_a_character_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match="has half a surrogate pair"):
        tokenized(byte_level_tokenizer(), content)
