"""Tokenizers of strangers: a few steps that would fill the memory are told before they are taken."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.text import load_tokenizer, tokens_beyond


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(*texts: bytes) -> dict[str, Any]:
    raw = (4).to_bytes(4, "little") + bytes(4) + b"".join(text + b"\0" for text in texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}


BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "a hundred for one, five times": (
        {"normalizer": sequence(*[replace("a", "a" * 100)] * 5)},
        r"1e\+10 times as long",
    ),
    "in sequences in sequences": (
        {"normalizer": sequence(sequence(*[replace("a", "aa")] * 3), *[replace("a", "aa")] * 3)},
        "64 times",
    ),
    "between all letters": ({"normalizer": sequence(*[replace("", " ", "Regex")] * 40)}, "times as long"),
    "one long one": ({"normalizer": replace("a", "a" * 10**6)}, r"1e\+06 times"),
    "a table with a long text": ({"normalizer": charsmap(b"fi", b"x" * 5000)}, "5e\\+03 times"),
    "on the way out": ({"decoder": {"type": "Sequence", "decoders": [replace("a", "a" * 100)] * 5}}, "its decoder can"),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "its normalizer adds more than"),
    "a long frame": (
        {"post_processor": {"type": "TemplateProcessing", "single": [{}] * 10**4, "pair": [], "special_tokens": {}}},
        "its post_processor adds more than",
    ),
    "a long end of each word": (
        {"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "x" * 10**5}},
        "its model adds",
    ),
}


def changed(source: Path, target: Path, fields: dict[str, Any]) -> Path:
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    found = json.loads((target / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(found | fields))
    return target


@pytest.mark.parametrize(("fields", "said"), BOMBS.values(), ids=list(BOMBS))
def test_steps_that_would_fill_memory_are_told(
    fields: dict[str, Any], said: str, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    changed(tiny_tokenizer_dir, tmp_path, fields)
    for read in (load_tokenizer, lambda path: tokens_beyond(path, 7)):
        with pytest.raises(UserError, match=said) as error:
            read(tmp_path)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "normalizer",
    [
        sequence({"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        sequence(charsmap("ﬁ".encode(), b"f" * 30)),
        sequence({"type": "NFKC"}, replace(" {2,}", " ", "Regex"), replace("``", '"'), replace("''", '"')),
    ],
)
def test_those_of_real_tokenizers_are_read(
    normalizer: dict[str, Any], tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    assert load_tokenizer(changed(tiny_tokenizer_dir, tmp_path, {"normalizer": normalizer})).chat_template


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": 5}, "cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, "cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "cannot be read"),
        ({"added_tokens": [{"id": "x"}]}, "cannot be read"),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
            "cannot be read",
        ),
    ],
    ids=repr,
)
def test_parts_of_another_kind_are_told(
    fields: dict[str, Any], said: str, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_tokenizer(changed(tiny_tokenizer_dir, tmp_path, fields))
    assert "\n" not in str(error.value)


def test_a_tokenizer_file_that_is_cut_anywhere_is_told(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    whole = (changed(tiny_tokenizer_dir, tmp_path, {}) / "tokenizer.json").read_bytes()
    for keep in range(0, len(whole), 997):
        (tmp_path / "tokenizer.json").write_bytes(whole[:keep])
        with pytest.raises(UserError, match="tokenizer.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}, "tokenizer_class": "Tok"},
        {"chat_template": [{"name": "x"}]},
        {"added_tokens_decoder": {"x": {"content": 5}}},
        {"bos_token": 5},
        {"extra_special_tokens": 5},
        {"model_max_length": "x"},
    ],
    ids=repr,
)
def test_settings_of_a_stranger_run_nothing(fields: dict[str, Any], tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    changed(tiny_tokenizer_dir, tmp_path, {})
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | fields))
    for name in ("evil.py", "tokenization_evil.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\nclass Tok: pass\n")
    try:
        load_tokenizer(tmp_path)
    except UserError as error:
        assert "cannot be read" in str(error)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("named", [["tokenizer.4.0.json"], ["../tokenizer.4.0.json"], "x", [5]])
def test_no_other_file_is_read_in_place_of_the_one_that_was_looked_at(
    named: Any, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    changed(tiny_tokenizer_dir, tmp_path, {})
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"fast_tokenizer_files": named}))
    with pytest.raises(UserError, match="names other files than tokenizer.json"):
        load_tokenizer(tmp_path)
