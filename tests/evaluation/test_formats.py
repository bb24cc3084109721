"""Files that the benchmarks' own programs take: what these read of them, by what they require, and by hand."""

import json

import pytest

from sla_jax.evaluation import formats
from sla_jax.evaluation.generate import generate
from sla_jax.evaluation.rows import Answer, Turn
from sla_jax.evaluation.settings import BenchmarkConfig
from tests.evaluation.runs import METHODS, QUESTIONS, Echo, settings

TEXT = """# Head
## Second
1. one
2. two
- **bold** and __this__
```
# no head
- no item
```
"""


def answer(*texts, id_="81", **changes):
    turns = tuple(Turn(f"Prompt {i}", text, [1, 2], "stop", [], {}, None) for i, text in enumerate(texts))
    return Answer(id_, "bench", "sla", "writing", None, None, turns)._replace(**changes)


def fastchat_reader(path):
    """`load_model_answers` of FastChat's llm_judge/common.py, for one file."""
    found = {}
    with open(path) as file:
        for line in file:
            row = json.loads(line)
            found[row["question_id"]] = row
    return found


def test_fastchat_reads_its_model_answers(tmp_path):
    out = generate(settings(tmp_path), Echo())
    for method in METHODS:
        found = fastchat_reader(out / "formats" / "fastchat" / "mt_bench" / "model_answer" / f"{method.name}.jsonl")
        assert list(found) == [row["question_id"] for row in QUESTIONS], "by the question file's own ids"
        for row in found.values():
            assert set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
            assert row["model_id"] == method.name and len(row["choices"][0]["turns"]) == 2
            assert all(isinstance(turn, str) for turn in row["choices"][0]["turns"])


def test_alpaca_eval_reads_its_model_outputs(tmp_path):
    out = generate(settings(tmp_path), Echo())
    rows = json.loads((out / "formats" / "alpaca_eval" / "alpaca_eval" / "greedy.json").read_text())
    assert [row["instruction"] for row in rows] == [f"Do thing {i}." for i in range(3)]
    assert all(set(row) == {"instruction", "output", "generator", "dataset"} for row in rows)
    assert {row["generator"] for row in rows} == {"greedy"} and {row["dataset"] for row in rows} == {"koala"}
    assert "dataset" not in formats.alpaca_eval_row(answer("a", category=None))


def test_arena_hard_reads_its_model_answers(tmp_path):
    file = tmp_path / "arena.jsonl"
    file.write_text(json.dumps({"uid": "u1", "category": "arena-hard-v0.1", "prompt": "Solve."}) + "\n")
    arena = BenchmarkConfig(name="arena", file=str(file), layout="arena_hard")
    out = generate(settings(tmp_path, benchmarks=(arena,)), Echo())
    (line,) = (out / "formats" / "arena_hard" / "arena" / "model_answer" / "greedy.jsonl").read_text().splitlines()
    row = json.loads(line)
    # gen_judgment.py: model_answers[model][uid], answer["messages"][-1]["content"]["answer"], answer["model"]
    assert row["uid"] == "u1" and row["model"] == "greedy"
    assert row["messages"][0] == {"role": "user", "content": "Solve."}
    assert row["messages"][-1]["role"] == "assistant" and row["messages"][-1]["content"]["answer"].startswith("greedy")
    # show_result.py: the features that style is controlled by
    assert set(row["metadata"]) == {"token_len", "header_count", "list_count", "bold_count"}
    assert row["metadata"]["token_len"] == 3


def test_markdown_is_counted_outside_of_code_by_hand():
    assert formats.markdown_counts(TEXT) == {
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 1},
        "bold_count": {"**": 1, "__": 1},
    }


def test_ifeval_reads_prompts_and_responses(tmp_path):
    formats.write_format(tmp_path, "ifeval", [answer("a"), answer("b", id_="82")])
    lines = (tmp_path / "formats" / "ifeval" / "bench" / "sla.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "Prompt 0", "response": "a"},
        {"prompt": "Prompt 0", "response": "b"},
    ]


@pytest.mark.parametrize("layout", ["any", "gsm8k", "math500"])
def test_a_layout_without_a_program_of_its_own_has_no_file(tmp_path, layout):
    formats.write_format(tmp_path, layout, [answer("a")])
    assert list(tmp_path.iterdir()) == []


def test_an_identity_is_of_what_was_answered():
    one, same, other = formats.identity(answer("a")), formats.identity(answer("a")), formats.identity(answer("b"))
    assert one == same != other and len(one) == 22


def test_lengths_are_words_where_tokens_are_not_known():
    plain = answer("three little words")
    assert formats.arena_hard_row(plain)["metadata"]["token_len"] == 2
    silent = plain._replace(turns=(plain.turns[0]._replace(token_ids=[]),))
    assert formats.arena_hard_row(silent)["metadata"]["token_len"] == 3
    assert formats.fastchat_row(answer("a", id_="q-1"))["question_id"] == "q-1"
