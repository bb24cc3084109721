"""A base model after train.py's SFT stops at the end of its turn, in generate.py, serve.py and eval.py, each a program.

The files of the base model (generation_config.json, config.json, the tokenizer) know <|endoftext|> only; it is the chat
template that closes a turn with <|im_end|>, which the training scores last.
"""

import json
from pathlib import Path

import httpx
import jax
import pytest
import yaml

from sla_jax import checkpoint
from sla_jax.evaluation.rows import read_answers
from sla_jax.model.config import from_hf
from sla_jax.model.policy import init_policy
from tests.programs import run_program
from tests.serving.background import Background
from tests.serving.toy_worker import PATIENCE
from tests.tiny import byte_level_tokenizer, tiny_hf

pytestmark = pytest.mark.slow

PROMPT, ANSWER, LIMIT = "Say it.", "Yes, it is.", 64
TEXT_END, TURN_END = 0, 2


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that train.py leaves."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder / "files")
    (folder / "files" / "generation_config.json").write_text(json.dumps({"eos_token_id": TEXT_END}))
    raw = tiny_hf("llama", vocab_size=320, eos_token_id=TEXT_END)
    policy = init_policy(from_hf(raw), jax.random.key(0))
    checkpoint.save(folder / "base", policy, raw, extras=folder / "files", provenance={"source": "tests"})
    chat = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
    (folder / "rows.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    config = {
        "model": str(folder / "base"),
        "out": str(folder / "run"),
        "task": "sft",
        "data": {
            "files": [str(folder / "rows.jsonl")],
            "heldout": 0,
            "cache": None,
            "max_length": 64,
            "max_prompt_length": 48,
        },
        "channel": {"weight": 0},
        "policy": {"train": "full", "weight": 1},
        "optimizer": {"batch_size": 4, "epochs": 60, "learning_rate": 0.01},
        "save_every": 1000,
    }
    run_program("train.py", write(folder / "train.yaml", config))
    return folder / "run" / "checkpoint"


def write(path: Path, config: dict) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_generate_stops(tuned: Path) -> None:
    words = ["--search.method", "greedy", "--max-tokens", str(LIMIT), "--json"]
    end = json.loads(run_program("generate.py", str(tuned), PROMPT, *words).stdout.splitlines()[-1])
    assert (end["text"], end["finish_reason"], end["token_ids"][-1]) == (ANSWER, "stop", TURN_END)
    assert len(end["token_ids"]) < LIMIT


def test_the_server_stops(tuned: Path, tmp_path: Path) -> None:
    profiles = [{"name": "greedy", "method": "greedy", "slots": 1}]
    config = {"checkpoint": str(tuned), "model": "tuned", "profiles": profiles, "engine": {"context": 128}}
    body = {"model": "tuned", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": LIMIT}
    with Background("serve.py", write(tmp_path / "serve.yaml", config), "--port", "0") as server:
        url = server.line_with("ready: ").split()[1]
        said = httpx.post(f"{url}/v1/chat/completions", json=body | {"temperature": 0}, timeout=PATIENCE).json()
    (choice,) = said["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    assert said["usage"]["completion_tokens"] < LIMIT


def test_evaluation_stops(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": PROMPT}) + "\n")
    config = {
        "name": "run",
        "checkpoint": str(tuned),
        "out": str(tmp_path / "run"),
        "max_tokens": LIMIT,
        "benchmarks": [{"name": "own", "file": str(tmp_path / "prompts.jsonl")}],
        "methods": [{"name": "greedy", "method": "greedy"}],
    }
    run_program("eval.py", "generate", write(tmp_path / "eval.yaml", config))
    (answer,) = read_answers(tmp_path / "run" / "answers" / "own" / "greedy.jsonl")
    (turn,) = answer.turns
    assert (turn.text, turn.finish_reason, turn.token_ids[-1]) == (ANSWER, "stop", TURN_END)
