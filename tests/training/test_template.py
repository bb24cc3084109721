"""Rows become the same tokens on every day, with the template's variables, and none that the policy cannot read."""

import json
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.loading import Loaded
from sla_jax.text import load_tokenizer
from sla_jax.training.config import EvalConfig
from sla_jax.training.data import load_examples
from sla_jax.training.data_config import DataConfig
from sla_jax.training.evaluate import _data
from sla_jax.training.examples import Examples, exact_text
from sla_jax.training.onpolicy import tokenized
from sla_jax.training.onpolicy_config import PairsConfig
from sla_jax.training.onpolicy_prompts import choose_prompts
from tests.tiny import CHATML, byte_level_tokenizer, tiny_config

TEMPLATE = (
    "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML + "{% if add_generation_prompt and "
    "enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
ROWS: dict[str, Any] = {
    "pairs": {"prompt": "Hi there", "chosen": "Yes", "rejected": "No"},
    "sft": {"messages": [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yes"}]},
    "steps": {"prompt": "Hi there", "completions": ["Yes"], "labels": [True]},
}
OFF = {"enable_thinking": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_level_tokenizer(template=TEMPLATE)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def load(folder: Path, task: Any, *rows: Any, vocabulary: int | None = 320, **fields: Any) -> Examples:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or [ROWS[task]]))
    return load_examples(
        DataConfig(**{"files": (str(file),), "heldout": 0, "cache": str(folder / "cache"), **fields}),
        task,
        folder / "model",
        max_positions=2048,
        seed=0,
        progress=lambda done, total: None,
        say=lambda line: None,
        vocabulary=vocabulary,
    )


def prompt(folder: Path, examples: Examples) -> str:
    return exact_text(load_tokenizer(folder / "model"), examples[0].prompt.tolist())


@pytest.mark.parametrize("task", ROWS)
def test_the_day_is_a_setting(folder: Path, task: str) -> None:
    usual, other = load(folder, task), load(folder, task, date="2026-11-30")
    assert "26 Jul 2024" in prompt(folder, usual) and "30 Nov 2026" in prompt(folder, other)
    assert usual.fingerprint() == load(folder, task, cache=None).fingerprint() != other.fingerprint()


@pytest.mark.parametrize("task", ROWS)
def test_variables_are_a_setting(folder: Path, task: str) -> None:
    plain, off = load(folder, task), load(folder, task, template=OFF)
    assert prompt(folder, off) == prompt(folder, plain) + "<think>\n\n</think>\n\n"
    tokenizer = load_tokenizer(folder / "model")
    said = [exact_text(tokenizer, examples[0].answers[0].tokens.tolist()) for examples in (plain, off)]
    assert said[0] == said[1] and said[0].startswith("Yes")


def test_variables_that_nobody_reads_and_no_day_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="does not read the variable 'enable_thinkin'.* Did you mean 'enable_thinking'"):
        load(folder, "pairs", template={"enable_thinkin": False})
    with pytest.raises(UserError, match="date='yesterday' is no day"):
        DataConfig(generated=1, date="yesterday")


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_token_without_embedding_makes_a_bad_row(folder: Path, field: str) -> None:
    bad = {**ROWS["pairs"], field: "fill [PAD] here"}
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: .*: the token '\[PAD\]' \(320\) has no embedding"):
        load(folder, "pairs", ROWS["pairs"], bad)
    skipped = load(folder, "pairs", ROWS["pairs"], bad, on_bad_row="skip", max_bad=0.5)
    assert (len(skipped), skipped.counts["bad"]) == (1, 1)
    assert len(load(folder, "pairs", ROWS["pairs"], bad, vocabulary=321)) == 2, "a larger embedding has it"


def test_a_checkpoint_is_measured_as_it_was_trained(folder: Path) -> None:
    (folder / "model" / "train.yaml").write_text("data: {generated: 8, date: 2026-11-30, template: {a: 1}}\n")
    common: dict[str, Any] = {"checkpoint": str(folder / "model"), "data": ("x",)}
    found = _data(EvalConfig(**common), tiny_config(), ("x",), None)
    assert (found.template, found.date) == ({"a": 1}, "2026-11-30")
    found = _data(EvalConfig(**common, template={}, date="2024-01-01"), tiny_config(), ("x",), None)
    assert (found.template, found.date) == ({}, "2024-01-01")


def test_a_changed_named_template_makes_other_tokens(folder: Path) -> None:
    other = folder / "model" / "additional_chat_templates" / "short.jinja"
    other.parent.mkdir()
    found = []
    for text in (CHATML, "Say: " + CHATML):
        other.write_text(text)
        found.append(prompt(folder, load(folder, "pairs", template={"chat_template": "short"})))
    assert found[1] == "Say: " + found[0]


@pytest.mark.parametrize("task", ["pairs", "sft"])
def test_a_long_prompt_of_a_template_that_refuses_its_last_turn_alone(folder: Path, task: str) -> None:
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    (folder / "model" / "chat_template.jinja").write_text(strict + CHATML)
    chat = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b " * 90},
        {"role": "user", "content": "c"},
    ]
    row = {"prompt": chat, "chosen": "x " * 60, "rejected": "No"}
    if task == "sft":
        row = {"messages": [*chat, {"role": "assistant", "content": "x " * 60}]}
    found = load(folder, task, row, max_length=160, max_prompt_length=150)
    assert (found.counts["cut_prompts"], found.counts["cut_answers"]) == (1, 0)
    assert prompt(folder, found).endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


def test_prompts_that_the_template_refuses_are_named(folder: Path) -> None:
    (folder / "model" / "chat_template.jinja").write_text("{{ 1 // (messages[0].content | length - 2) }}")
    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "Hello"}\n{"prompt": "Hi"}\n')
    model = Loaded(None, tiny_config(vocab_size=320), load_tokenizer(folder / "model"), (2,))
    config = PairsConfig(model="m", prompts=(str(file),), out="o", max_tokens=8)
    with pytest.raises(UserError, match=r"prompts.jsonl, line 2: the chat template refuses .*ZeroDivisionError"):
        tokenized(config, model, choose_prompts(config)[0])


def test_prompts_of_pairs_with_a_token_without_embedding_are_named(folder: Path) -> None:
    file = folder / "prompts.jsonl"
    file.write_text('{"prompt": "Hi"}\n{"prompt": "a [PAD]"}\n')
    config = PairsConfig(model="m", prompts=(str(file),), out="o", max_tokens=8)
    model = Loaded(None, tiny_config(vocab_size=320), load_tokenizer(folder / "model"), (2,))
    with pytest.raises(UserError, match=r"prompts.jsonl, line 2: the token '\[PAD\]' \(320\) has no embedding"):
        tokenized(config, model, choose_prompts(config)[0])
    with pytest.raises(UserError, match="is no day"):
        PairsConfig(model="m", prompts=("p",), out="o", date="7/26/2024")
