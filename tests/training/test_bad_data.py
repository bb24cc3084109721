"""What is wrong with data, in one table each for rows, files and settings, and what a user is told about it.

Every message names the place (file and line, or the setting), what came, and what to do.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sla_jax.config import parse
from sla_jax.errors import UserError
from sla_jax.training.data import load_examples
from sla_jax.training.data_config import DataConfig, SourceConfig, Task
from sla_jax.training.rows import LAYOUTS

PAIR = {"prompt": "hello there", "chosen": "good answer", "rejected": "bad answer"}
TALK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
STEPS = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
BENCH: dict[str, Any] = {"problem": "q", "steps": ["a", "b"], "label": 1}
GOOD: dict[Task, dict[str, Any]] = {"pairs": PAIR, "sft": TALK, "steps": STEPS}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def ended(*before: Any) -> dict[str, Any]:
    """A pair whose responses are whole conversations."""
    return {"chosen": [*before, assistant("good")], "rejected": [*before, assistant("bad")]}


# (task, a row or the text of a line, what is said of it)
ROWS: list[tuple[Task, Any, str]] = [
    # lines
    ("pairs", "{", "not JSON (Expecting property name enclosed in double quotes at column"),
    ("pairs", b'{"prompt": "\xff"}', "not UTF-8 text (invalid start byte at byte 12)"),
    ("pairs", [1], "the row is not a JSON object"),
    # fields
    ("pairs", {"prompt": "a", "chosen": "b"}, "no 'rejected' field (the row has prompt, chosen)"),
    (
        "pairs",
        {"prompt": "a", "choosen": "b", "rejected": "c"},
        "no 'chosen' field (is 'choosen' meant to be 'chosen'?)",
    ),
    ("pairs", {"promt": "a", "chosen": "b", "rejected": "c"}, "(is 'promt' meant to be 'prompt'?)"),
    ("pairs", {"promt": "a", "chosen": "so b", "rejected": "so c"}, "(is 'promt' meant to be 'prompt'?)"),
    ("pairs", {**PAIR, "chosen": None}, "'chosen' is null"),
    ("pairs", {"chosen": "a", "rejected": "b"}, "'chosen' and 'rejected' do not begin with the same words"),
    ("pairs", {**PAIR, "messages": [user("q")]}, "both 'prompt' and 'messages'"),
    ("pairs", {**PAIR, "prompt": ""}, "'prompt' is not a non-empty text"),
    ("pairs", {**PAIR, "prompt": 7}, "'prompt' is not a non-empty text"),
    ("pairs", {**PAIR, "chosen": " \n"}, "'chosen' is empty"),
    ("pairs", {**PAIR, "chosen": 3}, "'chosen' is not text but a number"),
    (
        "pairs",
        {**PAIR, "chosen": [assistant("x")]},
        "'chosen' is a list and 'rejected' is text; both have to be the same",
    ),
    ("pairs", {**PAIR, "chosen": "bad answer"}, "chosen and rejected are the same text"),
    ("pairs", {**PAIR, "chosen": "half \ud83d"}, "'chosen' has half a character (a lone surrogate) at 5"),
    # messages
    ("pairs", {**PAIR, "prompt": []}, "'prompt' is not a non-empty list of messages"),
    ("pairs", {**PAIR, "prompt": ["hello"]}, "prompt[0] is not a message {role, content}"),
    ("pairs", {**PAIR, "prompt": [{"from": "human", "value": "q"}]}, "prompt[0] is not a message {role, content}"),
    ("pairs", {**PAIR, "prompt": [{"role": "users", "content": "q"}]}, "the role 'users', not one of system, user"),
    ("pairs", {**PAIR, "prompt": [{"role": "users", "content": "q"}]}, "Did you mean 'user'?"),
    ("pairs", {**PAIR, "prompt": [user([{"type": "text", "text": "q"}])]}, "prompt[0].content is a list; a message's"),
    ("pairs", {**PAIR, "prompt": [user(None)]}, "prompt[0].content is null"),
    ("pairs", {**PAIR, "prompt": [user("q"), assistant("x")]}, "in 'prompt' the last message before the response is"),
    ("pairs", {"chosen": [user("q")], "rejected": [user("r")]}, "'chosen' ends with a message of the 'user'"),
    (
        "pairs",
        {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
        "'chosen' and 'rejected' differ in message 1, before the response",
    ),
    (
        "pairs",
        {"prompt": "another question", **ended(user("q"))},
        "'prompt' is 'another question' and the conversation",
    ),
    ("pairs", {"prompt": [user("r")], **ended(user("q"))}, "'prompt' differs in message 1 from the conversation"),
    ("pairs", {"messages": [user("r")], **ended(user("q"))}, "'messages' differs in message 1 from the conversation"),
    # Anthropic HH
    (
        "pairs",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"},
        "the dialogues in 'chosen' and 'rejected' differ in turn 1",
    ),
    (
        "pairs",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"},
        "the dialogue in 'rejected' does not end with an 'Assistant:' turn",
    ),
    (
        "pairs",
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        "'chosen' is empty",
    ),
    # conversations
    ("sft", {"text": "once upon a time"}, "none of the fields 'messages', 'completion', 'instruction'"),
    ("sft", {"message": TALK["messages"]}, "(is 'message' meant to be 'messages'?)"),
    ("sft", {"messages": [user("q")]}, "'messages' has no assistant message"),
    ("sft", {"messages": [*TALK["messages"], user("r")]}, "ends with a message of the 'user', which nothing answers"),
    ("sft", {"messages": [assistant("a")]}, "message 1, the assistant's, is the first; it answers nothing"),
    ("sft", {"messages": [*TALK["messages"], assistant("b")]}, "message 3, the assistant's, follows another one"),
    ("sft", {"messages": [user("q"), assistant(" ")]}, "'messages[1].content' is empty"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls=[{"id": 1}])]}, "messages[1] calls a tool, which is not"),
    ("sft", {"completion": "a"}, "neither 'prompt' nor 'messages'"),
    ("sft", {"instruction": "add", "input": 3, "output": "b"}, "'input' is a number, not text"),
    ("sft", {"instruction": "add", "outputs": "b"}, "no 'output' field (is 'outputs' meant to be 'output'?)"),
    # steps
    ("steps", {**STEPS, "completions": "a\nb"}, "'completions' is text, not a non-empty list of texts"),
    ("steps", {**STEPS, "completions": ["a", ""]}, "'completions[1]' is empty"),
    ("steps", {**STEPS, "labels": [True]}, "2 completions and 1 labels; every step has one label"),
    ("steps", {**STEPS, "labels": [1, -1]}, "labels[1] is -1, not true, false, 1 or 0"),
    ("steps", {**STEPS, "labels": ["+", "-"]}, "labels[0] is '+', not true, false, 1 or 0"),
    ("steps", {**STEPS, "labels": True}, "'labels' is true or false, not a list"),
    (
        "steps",
        {"prompt": "q", "steps": ["a"], "labels": [1]},
        "no 'completions' field (the row has prompt, steps, labels)",
    ),
    ("steps", {**BENCH, "label": 2}, "the first bad step is 2, but the answer has 2 steps: give 0 to 1, or -1"),
    ("steps", {**BENCH, "label": True}, "'label' is true or false, not the index of the first bad step or -1"),
    ("steps", {**BENCH, "steps": []}, "'steps' is a list, not a non-empty list of texts"),
    ("steps", {"problem": "q", "label": -1}, "no 'steps' field"),
]


def load(tokenizer: Path, task: Task = "pairs", **fields: Any) -> Any:
    config = DataConfig(**{"heldout": 0, "cache": None, "max_length": 64, "max_prompt_length": 32, **fields})
    return load_examples(
        config, task, tokenizer, max_positions=128, seed=0, progress=lambda done, total: None, say=lambda line: None
    )


def line(row: Any) -> bytes:
    if isinstance(row, bytes):
        return row + b"\n"
    return ((row if isinstance(row, str) else json.dumps(row)) + "\n").encode()


@pytest.mark.parametrize(("task", "row", "said"), ROWS)
def test_a_bad_row_is_named_or_counted(
    tmp_path: Path, tiny_tokenizer_dir: Path, task: Task, row: Any, said: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(line(GOOD[task]) + line(row) + line(GOOD[task]))
    with pytest.raises(UserError) as caught:
        load(tiny_tokenizer_dir, task, files=(str(file),))
    message = str(caught.value)
    assert message.startswith(f"{file}, line 2: ")
    assert said in message
    assert LAYOUTS[task] in message and "data.on_bad_row" in message and "\n" not in message
    skipped = load(tiny_tokenizer_dir, task, files=(str(file),), on_bad_row="skip", max_bad=0.4)
    assert (len(skipped), skipped.counts["bad"]) == (2, 1)
    assert said.rstrip("?") in skipped.refused[0].reason
    with pytest.raises(UserError, match="1 of 3 rows cannot be used, more than data.max_bad=0.3") as caught:
        load(tiny_tokenizer_dir, task, files=(str(file),), on_bad_row="skip", max_bad=0.3)
    assert f"{file}, line 2" in str(caught.value)


# ---- files ----


def cut_gzip(path: Path) -> None:
    whole = gzip.compress(b"".join(line({**PAIR, "prompt": str(number)}) for number in range(500)))
    path.write_bytes(whole[: len(whole) // 2])


# (name, its content, what is said)
FILES: list[tuple[str, bytes | None, str]] = [
    ("none.jsonl", None, r"there is no file .*none\.jsonl.*Did you mean 'nine\.jsonl'\?"),
    ("a.csv", b"prompt,chosen,rejected\n", r"a\.csv is not a kind of file .*\.parquet"),
    ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz, line 1: not JSON"),
    ("a.json.gz", b"\x1f\x8bno more", r"a\.json\.gz cannot be read behind line 0: .*Is it complete"),
    ("a.jsonl", "{}".encode("utf-16"), r"a\.jsonl is UTF-16 text"),
    ("a.parquet", b"nothing", r"a\.parquet is not a readable Parquet file"),
    ("a.arrow", b"nothing", r"a\.arrow is not a readable Arrow file"),
    ("file.arrow", b"ARROW1 nothing", r"file\.arrow is not a readable Arrow file"),
    ("a.json", b"[{]", r"a\.json, line 1: not JSON \(.* at column 3"),
    ("empty.jsonl", b"", r"empty\.jsonl holds no pair with split='train' \(0 rows of other splits, 0 bad rows\)"),
    ("test.jsonl", line({**PAIR, "split": "test"}), r"holds no pair with split='train' \(1 rows of other splits"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
def test_files_that_cannot_be_used(
    tmp_path: Path, tiny_tokenizer_dir: Path, name: str, content: bytes | None, said: str
) -> None:
    (tmp_path / "nine.jsonl").write_bytes(line(PAIR))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        load(tiny_tokenizer_dir, files=(str(tmp_path / name),))


def test_a_file_that_ends_too_early_says_behind_which_line(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    cut_gzip(tmp_path / "a.jsonl.gz")
    with pytest.raises(UserError, match=r"a\.jsonl\.gz cannot be read behind line [1-9]\d*: .*Is it complete"):
        load(tiny_tokenizer_dir, files=(str(tmp_path / "a.jsonl.gz"),))


def test_a_directory_is_no_file(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load(tiny_tokenizer_dir, files=(str(tmp_path),))


def test_a_dataset_that_is_not_there_says_what_to_do(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match=r"'nobody/no-such-set' .*cannot be loaded: .*--data\.files"):
        load(tiny_tokenizer_dir, dataset="nobody/no-such-set")
    (tmp_path / "train.jsonl").write_bytes(line(PAIR))
    with pytest.raises(UserError, match=r"split trian\) cannot be loaded: Unknown split \"trian\""):
        load(tiny_tokenizer_dir, dataset=str(tmp_path), split="trian")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(PAIR))
    with pytest.raises(UserError, match=r"the token cache .*a\.jsonl cannot be written.*--data\.cache"):
        load(tiny_tokenizer_dir, files=(str(tmp_path / "a.jsonl"),), cache=str(tmp_path / "a.jsonl"))


def test_a_tokenizer_without_a_template_is_named(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(line(PAIR))
    (tmp_path / "tokenizer.json").write_bytes((tiny_tokenizer_dir / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"line 1: this tokenizer has no chat template"):
        load(tmp_path, files=(str(tmp_path / "a.jsonl"),))


# ---- settings ----

FILE = {"files": ("a.jsonl",)}
SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({**FILE, "generated": 3}, "data names files and generated; give one source"),
    ({"dataset": "x", "sources": (SourceConfig(files=("a",)),)}, "data names dataset and sources; give one source"),
    ({**FILE, "subset": "x"}, "data.subset is given without data.dataset"),
    (
        {"max_length": 8, "max_prompt_length": 8},
        "data.max_prompt_length=8 must be at least 1 and below data.max_length=8",
    ),
    ({"heldout": 1}, "data.heldout=1 would hold out every row; use 0"),
    ({"heldout": -1}, "data.heldout=-1 must be at least 0"),
    ({"heldout": 5, "heldout_split": "test"}, "data.heldout=5 and data.heldout_split='test' both say"),
    ({"heldout": 0, "heldout_split": "train"}, "data.heldout_split='train' is also the split to train on"),
    ({"heldout": 0, "heldout_split": "test", "generated": 3}, "the pairs of data.generated have none"),
    ({"heldout": 0, "heldout_limit": 3}, "data.heldout_limit is given without data.heldout or data.heldout_split"),
    ({"limit": -3}, "data.limit=-3 must be at least 0"),
    ({"workers": -1}, "data.workers=-1 must be at least 0"),
    ({"length_pool": -1}, "data.length_pool=-1 must be at least 0"),
    ({"max_bad": 1.0}, "data.max_bad=1.0 is a part of all rows"),
    ({"separator": ""}, "data.separator is empty"),
    ({"cache": ""}, "data.cache is empty; give a folder, or None"),
    ({"split": "x", "sources": (SourceConfig(files=("a",)),)}, "data.split='x' stands beside data.sources"),
]
SOURCES: list[tuple[dict[str, Any], str]] = [
    ({}, "a source in data.sources names neither files nor dataset"),
    ({**FILE, "dataset": "x"}, "data.sources names files and dataset"),
    ({**FILE, "subset": "x"}, "data.sources: subset is given without dataset"),
    ({**FILE, "weight": 0.0}, "data.sources: weight=0.0 must be a number above 0"),
    ({**FILE, "weight": float("nan")}, "data.sources: weight=nan must be a number above 0"),
]
# settings that are wrong for a task, a policy or what the files turn out to hold
TASKS: list[tuple[Task, dict[str, Any], str]] = [
    ("pairs", {}, "there is no training data; give --data.files"),
    ("sft", {"generated": 3}, "data.generated makes preference pairs, and this run trains on sft rows"),
    ("pairs", {"separator": "\n\n"}, "data.separator belongs to rows of steps, and this run trains on pairs"),
    ("sft", {"last_step_only": True}, "data.last_step_only belongs to rows of steps"),
    ("pairs", {"generated": 3, "max_length": 129}, "data.max_length=129 is beyond the 128 positions of the policy"),
]


@pytest.mark.parametrize(("fields", "said"), SETTINGS)
def test_contradictions_in_the_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(("fields", "said"), SOURCES)
def test_contradictions_in_a_source(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        SourceConfig(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(("task", "fields", "said"), TASKS)
def test_settings_that_do_not_fit(tiny_tokenizer_dir: Path, task: Task, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tiny_tokenizer_dir, task, **fields)
    assert said in str(caught.value)


def test_a_mix_without_rows_of_one_source_is_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    for name, split in (("one", "train"), ("two", "test")):
        (tmp_path / f"{name}.jsonl").write_bytes(line({**PAIR, "split": split}))
    sources = tuple(SourceConfig(files=(str(tmp_path / f"{name}.jsonl"),)) for name in ("one", "two"))
    with pytest.raises(UserError, match=r"source 1 of data\.sources would give no row .*have 1, 0 rows.*weights 1, 1"):
        load(tiny_tokenizer_dir, sources=sources)


def test_a_mix_is_written_in_yaml_and_a_typo_in_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("sources:\n- {files: [a.jsonl], weight: 2}\n- {dataset: b, split: test}\n")
    config = parse(DataConfig, [str(file), "--limit", "5"], prog="x", description="y")
    assert config.sources == (SourceConfig(files=("a.jsonl",), weight=2.0), SourceConfig(dataset="b", split="test"))
    assert config.limit == 5
    file.write_text("sources:\n- {fils: [a.jsonl]}\n")
    with pytest.raises(UserError, match=r"unknown key 'fils' under 'sources\[0\]'.*Did you mean 'files'\?"):
        parse(DataConfig, [str(file)], prog="x", description="y")
