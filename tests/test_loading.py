"""`loading.end_tokens`: everything that ends an answer, from four places, and the same at every door."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import convert
import sla_jax
from sla_jax.checkpoint import import_checkpoint
from sla_jax.errors import UserError
from sla_jax.loading import end_tokens, load_model
from sla_jax.serving.settings import Engines, Profile, ServeConfig
from sla_jax.serving.worker import open_model
from sla_jax.text import load_tokenizer, response_ids, turn_end
from tests.checkpoint import gguf_files, models
from tests.tiny import CHATML, byte_level_tokenizer

TEXT_END, TURN_START, TURN_END = 0, 1, 2  # <|endoftext|>, <|im_start|>, <|im_end|>
CHAT = [{"role": "user", "content": "Say it."}]


def closing(end: str) -> str:
    """A template that puts `end` behind every turn, the user's too."""
    return "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}" + end + "\n{% endfor %}"


def directory(path: Path, *, generation: Any = None, config: Any = None, **tokenizer: Any) -> Path:
    """What `end_tokens` reads of a checkpoint; `generation` and `config` are eos_token_id of the two files."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"vocab_size": 320} | ({} if config is None else config)))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    made = byte_level_tokenizer(template=tokenizer.pop("template", CHATML))
    for name, value in tokenizer.items():
        setattr(made, name, value)
    made.save_pretrained(path)
    return path


def found(path: Path) -> list[int]:
    return end_tokens(path, load_tokenizer(path))


def eos(value: Any) -> dict[str, Any]:
    return {"eos_token_id": value}


# ---- the union ----


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation": eos(0), "config": eos(0), "eos_token": "<|endoftext|>"}, [0, 2]),  # a base model, fine-tuned
        ({"generation": eos(0), "config": eos(0), "eos_token": "<|im_end|>"}, [0, 2]),
        ({"config": eos([2, 0])}, [2, 0]),  # without generation_config.json
        ({"generation": eos([7, 8]), "config": eos(9), "eos_token": "<|endoftext|>"}, [7, 8, 9, 0, 2]),
        ({"generation": eos(None), "config": eos([None, 5])}, [5, 2]),
        ({"generation": {"bos_token_id": 1}, "eos_token": None, "template": None}, []),
        ({"eos_token": None}, [2]),
        ({"generation": eos("<|endoftext|>"), "config": eos(["<|im_end|>", 9])}, [0, 2, 9]),
        ({"generation": eos([320, 2, -1, 10**9]), "config": eos(319)}, [2, 319]),  # rows are 0 to 319
    ],
    ids=str,
)
def test_the_four_places_add_up(tmp_path, files, expected):
    assert found(directory(tmp_path / "a", **files)) == expected


IDS = st.none() | st.integers(-2, 330) | st.lists(st.none() | st.integers(-2, 330), max_size=3)


@given(generation=st.none() | IDS.map(eos), config=IDS.map(eos))
def test_any_files_give_each_token_of_the_embedding_once(tmp_path_factory, generation, config):
    path = directory(tmp_path_factory.getbasetemp() / "any", config=config)
    (path / "generation_config.json").write_text(json.dumps(generation or {}))
    said = [one for file in (generation or eos(None), config) for one in flat(file["eos_token_id"])]
    tokens = found(path)
    assert set(tokens) == {one for one in said if one is not None and 0 <= one < 320} | {TURN_END}
    assert len(set(tokens)) == len(tokens)


def flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("value", [True, 2.5, "2", "<|im_edn|>", {"id": 2}, [2, "no"]])
@pytest.mark.parametrize("name", ["generation", "config"])
def test_what_is_no_token_is_refused_by_file_and_value(tmp_path, name, value):
    path = directory(tmp_path / "a", **{name: eos(value)})
    with pytest.raises(UserError, match=r"(generation_)?config\.json: eos_token_id is .*; expected the id of a token"):
        found(path)


# ---- what a template closes a turn with ----


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, TURN_END),
        (closing("<|endoftext|>"), TEXT_END),  # one token after every turn, as Mistral's </s>
        ("<|im_start|>" + closing("<|im_end|>"), TURN_END),  # begins with a token of its own, as Llama 3
        (closing("<|im_end|> <|endoftext|>"), TURN_END),  # the first one, which is the last that training scores
        (closing(" "), None),
        (closing("### End"), None),  # text
        ("{% for m in messages %}{{ m['role'] }}<|im_end|>{% endfor %}", None),  # never says the answer
        ("{{ raise_exception('no tools') }}" + CHATML, None),
        ("{% for tool in tools %}{{ tool }}{% endfor %}" + CHATML, None),  # fails without tools
        ("{% if %}", None),
        (None, None),
    ],
)
def test_the_token_that_closes_a_turn(template, expected):
    tokenizer = byte_level_tokenizer(template=template)
    assert turn_end(tokenizer) == expected
    if expected is not None:
        assert response_ids(tokenizer, CHAT, "Yes.")[1][-1] == expected


def test_a_template_that_refuses_a_lone_user_closes_turns_too():
    assert turn_end(byte_level_tokenizer(template="{{ messages[2].role.x }}" + CHATML)) == TURN_END


def test_an_end_of_turn_that_is_not_marked_special_counts():
    """It is one token, and the last that training scores."""
    tokenizer = byte_level_tokenizer(template=CHATML.replace("<|im_end|>", "<end_of_turn>"))
    tokenizer.add_tokens(["<end_of_turn>"])
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<end_of_turn>") == len(tokenizer) - 1


# ---- the doors ----


def test_a_gguf_file_ends_answers_with_what_it_names_and_what_its_template_says(tmp_path, capsys):
    ends = {"eos": 0, "eot": 9, "eom": 7}
    fields: dict[str, Any] = {f"tokenizer.ggml.{name}_token_id": token for name, token in ends.items()}
    gguf_files.write(tmp_path / "m.gguf", **fields, **{"tokenizer.chat_template": CHATML})
    import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    assert found(tmp_path / "ours") == [0, 9, 7, TURN_END]
    names = load_tokenizer(tmp_path / "ours").convert_ids_to_tokens([9, 7])
    convert.main(["inspect", str(tmp_path / "ours")])
    printed = capsys.readouterr().out
    assert f"<|endoftext|> (0), {names[0]} (9), {names[1]} (7), <|im_end|> (2)" in printed


def test_a_base_model_with_a_template_ends_turns_at_every_door(tmp_path):
    """The library, which generate.py and eval.py use, what scorers, judges and train.py pairs load, and the server.

    tests/slow/test_end_of_turn.py has such a model trained, and stopped by each of the programs."""
    src = models.hf_dir(tmp_path / "src", vocab_size=320, eos_token_id=TEXT_END)
    raw = models.config(src)
    directory(src, generation=eos(TEXT_END), config=raw, eos_token="<|endoftext|>")
    base = tmp_path / "base"
    assert import_checkpoint(str(src), base) == []
    assert sla_jax.load(base).end_tokens == (TEXT_END, TURN_END)
    assert load_model(base, generates=False).end_tokens == (TEXT_END, TURN_END)
    profiles = (Profile(name="greedy", method="greedy", slots=1),)
    opened = open_model(ServeConfig(checkpoint=str(base), profiles=profiles, engine=Engines(context=128)))
    assert opened.model.end_tokens == (TEXT_END, TURN_END)
