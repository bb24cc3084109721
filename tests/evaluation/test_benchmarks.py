"""Prompts of every layout, which of them are taken, and what is said of rows that are wrong."""

import gzip
import json

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.benchmarks import load_benchmark, md5
from sla_jax.evaluation.settings import BenchmarkConfig

MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}
ARENA = {"uid": "ab12", "category": "arena-hard-v0.1", "cluster": "Puzzles", "prompt": "Solve."}
ARENA_OLD = {"question_id": "cd34", "category": "arena-hard-v0.1", "turns": [{"content": "Solve."}]}
ALPACA = {"instruction": "Say.", "output": "Said.", "generator": "davinci", "dataset": "helpful_base"}
MATH = {"problem": "1+1?", "solution": "…", "answer": "2", "subject": "Algebra", "level": 2, "unique_id": "test/1.json"}
GSM8K = {"question": "How many?", "answer": "It is 3 - 1 = 2.\n#### 2"}
IFEVAL = {"key": 1000, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


def load(tmp_path, rows, **config):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_benchmark(BenchmarkConfig(**{"name": "mine", "file": str(path), **config}))


@pytest.mark.parametrize(
    ("name", "row", "id_", "turns", "category", "level", "reference"),
    [
        ("mt_bench", MT_BENCH, "81", ("Write.", "Rewrite."), "writing", None, None),
        ("arena_hard", ARENA, "ab12", ("Solve.",), "Puzzles", None, None),
        ("arena_hard", ARENA_OLD, "cd34", ("Solve.",), "arena-hard-v0.1", None, None),
        ("alpaca_eval", ALPACA, "0", ("Say.",), "helpful_base", None, None),
        ("math500", MATH, "test/1.json", ("1+1?",), "Algebra", "2", "2"),
        ("gsm8k", GSM8K, "0", ("How many?",), None, None, "2"),
        ("mine", {"id": 3, "prompt": "p", "level": 1, "answer": "x"}, "3", ("p",), None, "1", "x"),
        ("mine", {"turns": ["p", "q"], "category": "k"}, "0", ("p", "q"), "k", None, None),
    ],
)
def test_layouts(tmp_path, name, row, id_, turns, category, level, reference):
    (prompt,) = load(tmp_path, [row], name=name).prompts
    assert prompt == (id_, turns, category, level, reference, ())


def test_ifeval_keeps_what_its_program_checks(tmp_path):
    (prompt,) = load(tmp_path, [IFEVAL], name="ifeval").prompts
    assert prompt.id == "1000" and prompt.turns == ("No commas.",)
    assert json.loads(prompt.reference or "") == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def test_references_of_mt_bench_go_to_their_questions(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text(json.dumps({"question_id": 81, "choices": [{"index": 0, "turns": ["r1", "r2"]}]}) + "\n")
    one, two = load(tmp_path, [MT_BENCH, MT_BENCH | {"question_id": 82}], name="mt_bench", references=str(file)).prompts
    assert json.loads(one.reference or "") == ["r1", "r2"] and two.reference is None
    file.write_text(json.dumps({"question_id": 81, "choices": [{"turns": [3]}]}) + "\n")
    with pytest.raises(UserError, match=r"references.jsonl, line 1: 'choices'"):
        load(tmp_path, [MT_BENCH], name="mt_bench", references=str(file))


def test_a_conversation_has_a_history_and_a_prompt(tmp_path):
    rows = [{"messages": TALK}, {"messages": [*TALK, {"role": "assistant", "content": "d"}]}]
    one, two = load(tmp_path, rows).prompts
    assert one.turns == two.turns == ("c",)
    assert [message["content"] for message in one.history] == ["a", "b"] and one.history == two.history


def test_a_template_and_a_system_message_are_asked(tmp_path):
    asked = load(tmp_path, [{"messages": TALK}], template="{prompt} Use \\boxed{}.", system="Be brief.").prompts[0]
    assert asked.turns == ("c Use \\boxed{}.",)
    assert [message["role"] for message in asked.history] == ["system", "user", "assistant"]


def test_splits_folds_limits_and_exclusions_leave_their_rows_in_order(tmp_path):
    rows = [{"prompt": f"prompt {i}", "split": "test" if i % 2 else "train"} for i in range(60)]
    whole = load(tmp_path, rows)
    assert [prompt.id for prompt in whole.prompts] == [str(i) for i in range(60)]
    tested = load(tmp_path, rows, split="test").prompts
    assert [prompt.id for prompt in tested] == [str(i) for i in range(1, 60, 2)], "ids are rows of the file"
    folded = load(tmp_path, rows, fold=5).prompts
    assert 0 < len(folded) < 30
    assert [one.id for one in folded] == [one.id for one in whole.prompts if md5(one.turns[0]) % 5 == 0]
    five, six = (load(tmp_path, rows, limit=limit).prompts for limit in (5, 6))
    assert len(five) == 5 and set(five) < set(six), "a larger limit keeps the prompts of a smaller one"
    assert [int(one.id) for one in six] == sorted(int(one.id) for one in six)
    without = load(tmp_path, rows, exclude=("7",)).prompts
    assert len(without) == 59 and "7" not in {one.id for one in without}
    assert len({load(tmp_path, rows, limit=limit).digest for limit in (5, 6)}) == 2


def test_turns_beyond_those_wanted_are_not_asked(tmp_path):
    rows = [{"turns": ["a", "b"]}, {"turns": ["c"]}]
    assert [one.turns for one in load(tmp_path, rows).prompts] == [("a", "b"), ("c",)]
    assert [one.turns for one in load(tmp_path, rows, turns=1).prompts] == [("a",), ("c",)]


def test_zipped_arrays_are_read(tmp_path):
    path = tmp_path / "math.json.gz"
    path.write_bytes(gzip.compress(json.dumps([MATH]).encode()))
    assert load_benchmark(BenchmarkConfig(name="math500", file=str(path))).prompts[0].reference == "2"


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("mt_bench", {"question_id": 1, "turns": "x"}, "'turns' is \"x\"; in the layout mt_bench it has to be a list"),
        ("mt_bench", {"turns": ["x"]}, "'question_id' is missing"),
        ("mt_bench", {"question_id": 1, "turns": []}, "'turns' is []"),
        ("alpaca_eval", {"instructions": "x"}, "'instruction' is missing; in the layout alpaca_eval it has"),
        ("alpaca_eval", {"instructions": "x"}, "Did you mean 'instructions'?"),
        ("arena_hard", {"uid": "a", "prompt": " "}, "'prompt' is \" \"; in the layout arena_hard it has"),
        ("math500", MATH | {"answer": 2}, "'answer' is 2"),
        ("gsm8k", GSM8K | {"answer": "two"}, "'answer' is \"two\"; in the layout gsm8k it has"),
        ("ifeval", IFEVAL | {"kwargs": []}, "'kwargs' is []; in the layout ifeval it has to be a list of 1 objects"),
        ("mine", {"prompt": "a", "question": "b"}, "several prompts (prompt, question)"),
        ("mine", {"text": "a"}, "no prompt among text"),
        ("mine", {"messages": [{"role": "bot", "content": "a"}]}, "the roles being system, user, assistant"),
        ("mine", {"messages": TALK[:2][1:]}, "the last but for answers a user's"),
        ("mine", [1], "[1] is no object"),
    ],
)
def test_a_malformed_row_is_named_with_file_line_and_field(tmp_path, name, row, says):
    good = {"mt_bench": MT_BENCH, "alpaca_eval": ALPACA, "arena_hard": ARENA, "math500": MATH | {"unique_id": "0"}}
    good |= {"gsm8k": GSM8K, "ifeval": IFEVAL | {"key": 1}, "mine": {"prompt": "fine"}}
    with pytest.raises(UserError) as error:
        load(tmp_path, [good[name], row], name=name)
    assert "prompts.jsonl, line 2: " in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    ("rows", "config", "says"),
    [
        ([{"prompt": "a"}], {"split": "test"}, "line 1: no text 'split'"),
        ([{"prompt": "a"}], {"exclude": ("b",)}, "excludes 'b', which it does not have"),
        ([{"prompt": "a", "split": "test"}], {"split": "train"}, "has no prompt"),
        ([{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}], {}, "line 2: the id 'x' is that of"),
    ],
)
def test_what_cannot_be_chosen_is_an_error(tmp_path, rows, config, says):
    with pytest.raises(UserError) as error:
        load(tmp_path, rows, **config)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "it has neither"),
        ({"file": "a", "hub": "b"}, "it has both"),
        ({"file": "a", "subset": "b"}, "which belongs to a hub name"),
        ({"file": "a", "references": "b"}, "belong to the layout mt_bench; its layout is any"),
        ({"file": "a", "limit": 0}, "limit=0; it has to be at least 1"),
        ({"file": "a", "turns": 0}, "turns=0; it has to be at least 1"),
        ({"file": "a", "template": "no place"}, "{prompt} has to stand in it"),
        ({"file": "a", "name": "a/b"}, "names are files"),
        ({"file": "a", "name": "a.vs.b"}, "names are files"),
    ],
)
def test_bad_settings_are_named(config, says):
    with pytest.raises(UserError) as error:
        BenchmarkConfig(**{"name": "mine", **config})
    assert says in str(error.value)


def test_a_data_set_is_loaded_by_its_name(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]).to_json(tmp_path / "test.jsonl")
    config = BenchmarkConfig(name="mine", hub=str(tmp_path), split="test")
    assert [prompt.turns for prompt in load_benchmark(config).prompts] == [("a",), ("b",)]
    with pytest.raises(UserError, match="cannot be loaded: .* give its rows as a file"):
        load_benchmark(BenchmarkConfig(name="mine", hub=str(tmp_path), split="validation"))
