"""A damaged file of a checkpoint is one paragraph and exit code 2 at every door, and nothing is written."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

import convert
import eval as evaluate
import generate
import serve
import train
from sla_jax.checkpoint.staging import SUMS
from sla_jax.errors import LONGEST, front_door
from tests.checkpoint import gguf_files, models
from tests.damage import unsummed

DOORS: dict[str, tuple[Any, list[str]]] = {
    "convert.py inspect": (convert, ["inspect", "{dir}"]),
    "convert.py export": (convert, ["export", "{dir}", "{out}"]),
    "generate.py": (generate, ["{dir}", "Hi"]),
    "serve.py": (serve, ["{config}"]),
    "serve.py --dry-run": (serve, ["{config}", "--dry-run"]),
    "eval.py channel": (evaluate, ["channel", "{dir}", "--data", "{pairs}"]),
    "eval.py entropy": (evaluate, ["entropy", "{dir}", "--data", "{pairs}", "--out", "{out}.jsonl"]),
    "train.py": (train, ["--model", "{dir}", "--data.files", "{pairs}", "--data.generated", "0", "--out", "{out}"]),
    "train.py --dry-run": (
        train,
        ["--model", "{dir}", "--data.files", "{pairs}", "--data.generated", "0", "--dry-run"],
    ),
    "train.py pairs": (train, ["pairs", "--model", "{dir}", "--prompts", "{pairs}", "--out", "{out}"]),
}
DEEP = '{"a":' * 10**5
# what every door reads of a checkpoint
DAMAGE: dict[str, tuple[str, Any]] = {
    "a million million layers": ("config.json", {"num_hidden_layers": 10**12}),
    "no number": ("config.json", {"rms_norm_eps": float("nan")}),
    "deep": ("config.json", DEEP),
    "no object": ("sla_jax.json", "[]"),
    "other parameters": ("sla_jax.json", {"parameters": {"embed": {"shape": [2**70], "dtype": "float32"}}}),
    "parameters that are none": ("sla_jax.json", {"parameters": [1]}),
    "provenance that is none": ("sla_jax.json", {"provenance": 1}),
}
# what is read where texts are
OF_TEXTS: dict[str, tuple[str, Any]] = {
    "tokenizer.json, cut": ("tokenizer.json", '{"version": "1.0", "model": {"ty'),
    "tokenizer.json, deep": ("tokenizer.json", DEEP),
    "a normalizer that fills memory": (
        "tokenizer.json",
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**5}},
    ),
    "settings of another kind": ("tokenizer_config.json", "[1, 2"),
}
WITHOUT_TEXTS = ("convert.py inspect", "convert.py export", "serve.py --dry-run", "train.py --dry-run")


def spoiled(source: Path, place: Path, name: str, content: Any) -> dict[str, Path]:
    """The names of files in DOORS, for a copy of a checkpoint in which one file is replaced, or has other fields."""
    folder = place / "checkpoint"
    shutil.copytree(source, folder)
    (folder / SUMS).unlink()
    if not isinstance(content, str):
        content = json.dumps(json.loads(unsummed((folder / name).read_text())) | content)
    (folder / name).write_text(content)
    pairs, config = place / "pairs.jsonl", place / "serve.yaml"
    pairs.write_text('{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}\n' * 9)
    config.write_text(f"checkpoint: {folder}\nport: 0\nprofiles: [{{name: greedy, method: greedy, slots: 1}}]\n")
    return {"dir": folder, "pairs": pairs, "config": config, "out": place / "out"}


def told(door: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one paragraph with which a program ends."""
    with pytest.raises(SystemExit) as stop:
        front_door(door.main, words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("error: ") == 1 and len(said) < LONGEST + 2000
    return said[said.index("error: ") :]


# all damage at the cheapest door, which reads a checkpoint as the others do, and two kinds of it at every door
EVERY = [("convert.py inspect", kind) for kind in DAMAGE] + [
    (door, kind) for door in DOORS for kind in list(DAMAGE)[:4:3]
]
TEXTS = [("generate.py", kind) for kind in OF_TEXTS]
TEXTS += [(door, "tokenizer.json, cut") for door in DOORS if door not in WITHOUT_TEXTS]


@pytest.mark.parametrize(("door", "kind"), dict.fromkeys(EVERY))
def test_a_damaged_checkpoint_is_told_at_every_door(
    door: str, kind: str, bare_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, words = DOORS[door]
    files = spoiled(bare_checkpoint, tmp_path, *DAMAGE[kind])
    said = told(program, [word.format(**files) for word in words], capsys)
    assert said.count("\n") == 1 and ("config.json" in said or "sla_jax.json" in said or str(files["dir"]) in said)
    assert not files["out"].exists() or not any(files["out"].rglob("*checkpoint*"))


@pytest.mark.parametrize(("door", "kind"), dict.fromkeys(TEXTS))
def test_a_damaged_tokenizer_is_told_at_every_door_that_reads_texts(
    door: str, kind: str, bare_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, words = DOORS[door]
    files = spoiled(bare_checkpoint, tmp_path, *OF_TEXTS[kind])
    said = told(program, [word.format(**files) for word in words], capsys)
    assert said.count("\n") == 1 and str(files["dir"]) in said


def test_a_template_without_an_end_is_told(
    bare_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = "{{ 'a' * 10 ** 11 }}"
    files = spoiled(bare_checkpoint, tmp_path, "chat_template.jinja", bomb)
    said = told(generate, [str(files["dir"]), "Hi"], capsys)
    assert said.startswith("error: the chat template was stopped: it takes more than 1024 MiB of memory.")


def header(**tensors: Any) -> bytes:
    raw = json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw


SOURCES: dict[str, tuple[str, bytes]] = {
    "nothing": ("model.safetensors", b""),
    "a hole": ("model.safetensors", header(a={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + bytes(8)),
    "a deep header": ("model.safetensors", struct.pack("<Q", 10**5) + b'{"a":' * 20000),
    "an index that leads away": ("model.safetensors.index.json", b'{"weight_map": {"a": "../model.safetensors"}}'),
    "a PyTorch file": ("pytorch_model.bin.index.json", b'{"weight_map": {"a": "/etc/passwd"}}'),
    "a tokenizer": ("tokenizer.json", b'{"a":' * 10**5),
    "a config": ("config.json", b'{"architectures": {"LlamaForCausalLM": 1}}'),
    "settings of generation": ("generation_config.json", b"[" * 10**5),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.hf_dir(tmp_path_factory.mktemp("source") / "hf", "llama")


@pytest.mark.parametrize(("name", "content"), SOURCES.values(), ids=list(SOURCES))
def test_a_damaged_source_is_told_by_convert(
    name: str, content: bytes, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "hf")
    if "pytorch" in name:
        (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / name).write_bytes(content)
    said = told(convert, ["import", str(tmp_path / "hf"), str(tmp_path / "ours")], capsys)
    assert said.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_damaged_gguf_is_told_by_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers: dict[str, Any] = {"llama.block_count": 2**31}
    gguf_files.write(tmp_path / "m.gguf", **layers)
    said = told(convert, ["import", str(tmp_path / "m.gguf"), str(tmp_path / "ours")], capsys)
    assert "num_hidden_layers=2147483648; expected a whole number from 1 to 1024" in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
