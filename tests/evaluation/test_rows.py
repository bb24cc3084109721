"""Rows of a run's files: read strictly, written the same way, the clock kept apart."""

import json
from pathlib import Path

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation import rows
from sla_jax.evaluation.rows import Answer, Judgement, Turn
from sla_jax.files import drop_cut_line, write_text
from tests.damage import unsummed

CANDIDATE = {"text": "a", "score": None, "step_scores": [0.5], "finish": "rejected", "n_tokens": 1}


def answer(id_="p1", **changes):
    cost = {"steps": 2, "seconds": 0.5, "scorer_seconds": 0.0}
    turn = Turn("Hi?", "Hello.", [5, 6], "stop", [0.25, -1.5], cost, None)
    return Answer(id_, "bench", "greedy", "talk", None, None, (turn,))._replace(**changes)


def write(tmp_path, *lines):
    path = tmp_path / "answers" / "bench" / "greedy.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_an_answer_comes_back_as_it_was_with_its_seconds(tmp_path):
    whole = answer(history=({"role": "system", "content": "Be kind."},), reference="ü\u2028")
    whole = whole._replace(turns=(*whole.turns, whole.turns[0]._replace(prompt="And?", candidates=[CANDIDATE])))
    path = write(tmp_path, rows.as_line(whole))
    assert "seconds" not in path.read_text()
    write_text(rows.seconds_path(path), rows.seconds_line(whole))
    assert rows.read_answers(path) == [whole]


def test_messages_are_the_conversation_up_to_a_turn():
    two = answer(history=({"role": "system", "content": "Be kind."},))
    two = two._replace(turns=(*two.turns, two.turns[0]._replace(prompt="And?", finish_reason="length")))
    assert [message["content"] for message in two.messages(1)] == ["Be kind.", "Hi?", "Hello.", "And?"]
    assert [message["role"] for message in two.messages(1)] == ["system", "user", "assistant", "user"]
    assert two.messages(0) == two.messages(1)[:2]
    assert [one.finished for one in two.candidates()] == [True, False]


def test_a_judgement_comes_back_as_it_was(tmp_path):
    one = Judgement("p1", (0.5, 1.0), 0.75, {"why": ["because"]})
    path = write(tmp_path, rows.judgement_line(one))
    assert rows.read_judgements(path) == [one]
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.judgement_line(one._replace(score=float("nan")))


def broken(**changes):
    return json.loads(unsummed(rows.as_line(answer()))) | changes


def turned(**changes):
    row = broken()
    return row | {"turns": [row["turns"][0] | changes]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (broken(id=7), "'id' is 7; it has to be a text"),
        (broken(turns=[]), "'turns' is []; it has to be a list of at least one turn"),
        (broken(turns=["x"]), "'turns[0]' is \"x\"; it has to be an object"),
        (broken(level=1), "'level' is 1"),
        (turned(text=None), "'turns[0].text' is null; it has to be a text"),
        (turned(token_ids=[1.5, 2]), "'turns[0].token_ids' is [1.5, 2]"),
        (turned(rewards=[0.25, None]), "'turns[0].rewards[1]' is null; it has to be a finite number"),
        (turned(rewards=[0.25, float("nan")]), "'turns[0].rewards[1]' is NaN; it has to be a finite number"),
        (turned(rewards=[0.25, 10**400]), "'turns[0].rewards[1]' is 1000"),
        (turned(rewards=[0.25]), "one number for each of the 2 tokens"),
        (turned(cost=3), "'turns[0].cost' is 3; it has to be an object"),
        (turned(candidates=[CANDIDATE | {"score": "high"}]), "'turns[0].candidates[0].score' is \"high\""),
        ("[1]\n", "[1] is no object"),
        ("{]\n", "not JSON"),
        ('{"id": "p', "may have been cut off"),
    ],
)
def test_a_defect_is_named_with_file_line_and_field(tmp_path, row, says):
    path = write(tmp_path, rows.as_line(answer("p0")), row)
    with pytest.raises(UserError) as error:
        rows.read_answers(path)
    assert f"{path}, line 2: " in str(error.value) and says in str(error.value)


def test_a_field_that_is_missing_is_named(tmp_path):
    row = broken()
    del row["turns"][0]["finish_reason"]
    with pytest.raises(UserError, match=r"line 1: 'turns\[0\].finish_reason' is missing; it has to be a text"):
        rows.read_answers(write(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"id": "a", "scores": [1], "score": NaN, "details": {}}\n', "'score' is NaN; it has to be a finite number"),
        ('{"id": "a", "scores": [true], "score": 1, "details": {}}\n', "'scores[0]' is true"),
        ('{"id": "a", "scores": [1], "score": 1}\n', "'details' is missing; it has to be an object"),
    ],
)
def test_a_bad_judgement_is_named(tmp_path, row, says):
    with pytest.raises(UserError) as error:
        rows.read_judgements(write(tmp_path, row))
    assert "greedy.jsonl, line 1: " in str(error.value) and says in str(error.value)


def test_doubles_and_absent_files_are_errors(tmp_path):
    path = write(tmp_path, rows.as_line(answer()), rows.as_line(answer()))
    with pytest.raises(UserError, match="line 2: 'id' 'p1' is there twice"):
        rows.read_answers(path)
    with pytest.raises(UserError, match=r"there is no file .*nothing\.jsonl"):
        rows.read_answers(tmp_path / "answers" / "bench" / "nothing.jsonl")


def test_seconds_have_one_number_a_turn(tmp_path):
    path = write(tmp_path, rows.as_line(answer()))
    write_text(rows.seconds_path(path), '{"id": "p1", "seconds": [], "scorer_seconds": []}\n')
    with pytest.raises(UserError, match="'p1' has not one number for each of its 1 turns"):
        rows.read_answers(path)


def test_mending_drops_what_was_cut_off_and_nothing_else(tmp_path):
    path = write(tmp_path, rows.as_line(answer()), '{"id": "p2", "tur')
    drop_cut_line(path)
    assert path.read_text() == rows.as_line(answer())
    drop_cut_line(path)
    assert path.read_text() == rows.as_line(answer())
    alone = write(tmp_path, '{"id"')
    drop_cut_line(alone)
    assert alone.read_bytes() == b""
    drop_cut_line(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("ids", "wanted", "says"),
    [
        (["a", "c"], ["a", "b"], "mine.jsonl, line 2: 'id' is 'c', and other.jsonl has 'b' there"),
        (["a"], ["a", "b"], "mine.jsonl ends before 'b', line 2 of other.jsonl"),
        (["a", "b"], ["a"], "mine.jsonl, line 2: 'id' 'b' is not in other.jsonl"),
    ],
)
def test_files_about_other_prompts_are_told_apart(ids, wanted, says):
    rows.check_ids(Path("mine.jsonl"), wanted, Path("other.jsonl"), wanted)
    with pytest.raises(UserError) as error:
        rows.check_ids(Path("mine.jsonl"), ids, Path("other.jsonl"), wanted)
    assert says in str(error.value)
