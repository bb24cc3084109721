"""Pairs from a model's own answers: the same whatever the batch or the interruption, and what is refused."""

import dataclasses
import gzip
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.scoring.registry import ScorerConfig
from sla_jax.training import onpolicy
from sla_jax.training.onpolicy import main, make_pairs
from sla_jax.training.onpolicy_config import PairsConfig
from sla_jax.training.onpolicy_pairs import best_and_worst
from sla_jax.training.onpolicy_prompts import Prompt, choose_prompts, cut, read_prompts
from sla_jax.training.rows import parse_row
from tests.programs import tiny_checkpoint

QUESTIONS = ("What is 12 + 30?", "Who jumps?", "Is Paris the capital of France?", "Say naïve.", "Why be rude?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", sharpness=8.0)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    return path


@pytest.fixture(scope="module")
def make(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PairsConfig]:
    folder = tmp_path_factory.mktemp("runs")

    def make(out: str, **changes: Any) -> PairsConfig:
        common: dict[str, Any] = {"samples": 2, "rows": 4, "max_tokens": 20, "temperatures": (0.9, 1.1)}
        places: dict[str, Any] = {"model": str(model), "prompts": (str(prompts),), "out": str(folder / out)}
        return PairsConfig(**(places | common | changes))

    return make


@pytest.fixture(scope="module")
def finished(make: Callable[..., PairsConfig]) -> Path:
    return make_pairs(make("whole"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def files(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text() for name in ("candidates.jsonl", "pairs.jsonl", "summary.json")}


def test_what_a_run_writes(finished: Path, prompts: Path, model: Path) -> None:
    rows, pairs = lines(finished / "candidates.jsonl"), lines(finished / "pairs.jsonl")
    assert [row["messages"][0]["content"] for row in rows] == list(QUESTIONS), "in the order of the file"
    assert [row["origin"] for row in rows] == [f"{prompts}, line {n}" for n in range(1, 6)]
    answers = [one for row in rows for one in row["candidates"]]
    assert len({one["seed"] for one in answers}) == 10 and len({one["text"] for one in answers}) == 10
    assert all(one["n_tokens"] == len(one["tokens"]) <= 20 for one in answers)
    assert all(one["n_tokens"] == 20 for one in answers if not one["finished"])
    assert pairs and all(pair["chosen_score"] > pair["rejected_score"] for pair in pairs)
    for pair in pairs:
        origin = pair["provenance"]
        row = next(row for row in rows if row["id"] == origin["prompt"])
        chosen, rejected = (row["candidates"][i] for i in origin["candidates"])
        assert (pair["chosen"], pair["rejected"]) == (chosen["text"], rejected["text"])
        assert origin["finished"] == [chosen["finished"], rejected["finished"]]
        assert (origin["model"], origin["scorer"], origin["seed"]) == (str(model), "rules", 42)
        assert sorted(origin["sampling"]["temperatures"]) == [0.9, 1.1]
        assert parse_row(pair, "pairs") == (row["messages"], pair["chosen"], pair["rejected"]), "what train.py reads"
    figures = json.loads((finished / "summary.json").read_text())
    assert figures["prompts"]["read"] == figures["prompts"]["used"] == 5 and figures["pairs"] == len(pairs)
    assert figures["answers"]["number"] == 10 and figures["by_temperature"]["0.9"]["number"] == 5


def test_answers_may_hold_any_character(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for `str.splitlines`, not in a file of JSON lines."""
    (tmp_path / "candidates.jsonl").write_text('{"id": "a", "text": "1\u2028\u00852"}\n{"id": "b"}\n{"id": "c"')
    assert list(onpolicy.read_candidates(tmp_path)) == ["a", "b"]
    assert (tmp_path / "candidates.jsonl").read_text().endswith('{"id": "b"}\n')


def test_another_batch_size_draws_the_same_answers(finished: Path, make: Callable[..., PairsConfig]) -> None:
    assert files(make_pairs(make("two", rows=2))) == files(finished)


class Dies(Exception):
    """Stands for a kill."""


def test_a_killed_run_ends_as_if_it_had_not_been(
    finished: Path, make: Callable[..., PairsConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make("killed")
    asked: list[int] = []

    def dying(config: PairsConfig, model: Any, program: Any, batch: Sequence[Any]) -> list[dict[str, Any]]:
        if asked:
            raise Dies
        asked.append(len(batch))
        return real(config, model, program, batch)

    real = onpolicy.answer
    monkeypatch.setattr(onpolicy, "answer", dying)
    with pytest.raises(Dies):
        make_pairs(config)
    path = Path(config.out) / "candidates.jsonl"
    assert len(lines(path)) == 2
    path.write_text(path.read_text()[:-40])  # a line cut short
    asked.clear()
    with pytest.raises(Dies):
        make_pairs(config)
    assert asked == [2] and len(lines(path)) == 2, "the batch with the cut line is drawn again, its other line kept"
    monkeypatch.setattr(onpolicy, "answer", real)
    assert files(make_pairs(config)) == files(finished)


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_stop_after_the_batch_under_way(
    number: int,
    ends: type[BaseException],
    make: Callable[..., PairsConfig],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, real = make(f"signal-{number}"), onpolicy.answer

    def interrupted(*arguments: Any) -> list[dict[str, Any]]:
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(onpolicy, "answer", interrupted)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(ends) as stop:
        make_pairs(config)
    assert not isinstance(stop.value, SystemExit) or stop.value.code == 0
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert "2 of 5 prompts are answered" in capsys.readouterr().err
    monkeypatch.setattr(onpolicy, "answer", real)
    assert files(make_pairs(config)) == files(finished)


def test_another_scorer_scores_the_same_answers(
    finished: Path, make: Callable[..., PairsConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shortest.py").write_text("def score(candidates): return [-len(c.text) for c in candidates]\n")
    monkeypatch.chdir(tmp_path)
    config = make("rescored")
    out = Path(config.out)
    out.mkdir()
    for path in finished.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(onpolicy, "answer", None)
    short = ScorerConfig(kind="python", function="shortest:score")
    saved = (out / "pairs.yaml").read_text()
    edited = saved.replace(str(finished), str(out))
    (out / "pairs.yaml").write_text(edited)
    with pytest.raises(UserError, match=r"pairs\.yaml: it is damaged: .* if you changed it yourself"):
        make_pairs(config)
    (out / "pairs.yaml").write_text(edited.rpartition("# ")[0])
    pairs = lines(make_pairs(dataclasses.replace(config, scorers=(short,), min_margin=1.0)) / "pairs.jsonl")
    assert pairs and all(len(pair["chosen"]) < len(pair["rejected"]) for pair in pairs)
    assert {pair["provenance"]["scorer"] for pair in pairs} == {"shortest:score"}


def test_another_config_in_the_same_folder_is_refused(finished: Path, make: Callable[..., PairsConfig]) -> None:
    with pytest.raises(UserError, match=r"max_tokens: was 20, now 21; seed: was 42, now 43"):
        make_pairs(make("whole", seed=43, max_tokens=21))
    assert (finished / "pairs.jsonl").exists()


def test_a_folder_that_is_something_else_is_refused(make: Callable[..., PairsConfig], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="is no run of this program"):
        make_pairs(dataclasses.replace(make(""), out=str(tmp_path), overwrite=True))
    assert (tmp_path / "letter.txt").exists()


def test_prompts_that_changed_underneath_are_refused_and_overwrite_starts_anew(
    make: Callable[..., PairsConfig], prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(prompts.read_text())
    config = make("changing", prompts=(str(path),))
    first = files(make_pairs(config))
    path.write_text(prompts.read_text().replace("Who jumps?", "Who sleeps?"))
    with pytest.raises(UserError, match="the prompts of the run"):
        make_pairs(config)
    again = files(make_pairs(dataclasses.replace(config, overwrite=True)))
    assert again["candidates.jsonl"].split("\n")[0] == first["candidates.jsonl"].split("\n")[0]
    assert "Who sleeps?" in again["candidates.jsonl"] and "Who jumps?" not in again["candidates.jsonl"]


def test_a_refused_run_leaves_nothing(make: Callable[..., PairsConfig]) -> None:
    config = make("refused", max_prompt_tokens=1)
    with pytest.raises(UserError, match="no prompt is left of 5"):
        make_pairs(config)
    assert not Path(config.out).exists()


def test_the_front_door(make: Callable[..., PairsConfig], finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make("whole")
    words = ["--model", config.model, "--prompts", *config.prompts, "--out", config.out, "--samples", "2"]
    main([*words, "--rows", "4", "--max-tokens", "20", "--temperatures", "0.9", "1.1"])
    assert capsys.readouterr().out.splitlines()[0] == str(finished / "pairs.jsonl")


# ---- prompts ----


def test_every_layout_of_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "answer"}]},
        {"question": "d", "answer": "#### 1"},
        {"instruction": "e", "output": "x"},
        {"turns": ["f", "and then?"]},
        {"prompt": [{"role": "user", "content": "g"}]},
    ]
    plain, packed, array = (tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.json"))
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    array.write_text(json.dumps(rows, indent=1))
    found = [[prompt.messages for prompt in read_prompts(str(path), None)] for path in (plain, packed, array)]
    assert found[0] == found[1] == found[2]
    assert [messages[-1]["content"] for messages in found[0]] == list("abcdefg")
    assert len(found[0][1]) == 2 and read_prompts(str(array), None)[3].origin == f"{array}, row 4"


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("[1]", None, "row 1: the row is not a JSON object"),
        ('{"text": "a"}', None, "line 1: no prompt among text"),
        ('{"prompt": "a", "question": "b"}', None, "several prompts .prompt, question."),
        ('{"prompt": "a"}', "question", "the row has no 'question'"),
        ('{"prompt": " "}', None, "'prompt' is empty"),
        ('{"prompt": 3}', None, "neither text nor a list"),
        ('{"messages": [{"role": "boss", "content": "a"}]}', None, "the role 'boss'"),
        ('{"messages": [{"role": "user"}]}', None, "not {role, content}"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', None, "no message but the assistant's"),
        ('{"prompt": "a"}\n{"prompt": ', None, "line 2: not JSON"),
        ("", None, "holds no prompt"),
    ],
)
def test_bad_prompts_are_named(text: str, field: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_prompts(str(path), field)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("promts.jsonl", "Did you mean 'prompts.jsonl'"),
        ("a.txt", "not a kind of file"),
    ],
)
def test_files_that_cannot_be_read(name: str, reason: str, tmp_path: Path) -> None:
    for there in ("prompts.jsonl", "a.txt"):
        (tmp_path / there).write_text('{"prompt": "a"}')
    with pytest.raises(UserError, match=reason):
        read_prompts(str(tmp_path / name), None)


def test_doubles_and_excluded_prompts_are_left_out_and_counted(
    make: Callable[..., PairsConfig], prompts: Path, tmp_path: Path
) -> None:
    banned = tmp_path / "measured.jsonl"
    banned.write_text('{"instruction": "WHO   jumps?"}\n')
    config = make("", prompts=(str(prompts), str(prompts)), exclude=(str(banned),))
    found, counts = choose_prompts(config)
    assert [prompt.text for prompt in found] == [text for text in QUESTIONS if text != "Who jumps?"]
    assert counts == {"read": 10, "excluded": 2, "doubles": 4}


def test_a_smaller_limit_takes_a_part_of_a_larger_one() -> None:
    every = [Prompt([{"role": "user", "content": f"question {n}"}], "") for n in range(40)]
    ten, twenty = (cut(every, n) for n in (10, 20))
    assert len(ten) == 10 and [prompt for prompt in twenty if prompt in ten] == ten
    assert [prompt for prompt in every if prompt in twenty] == twenty and cut(every, 90) == every


# ---- pairs ----


def test_ties_small_margins_and_empty_answers_give_no_pair(make: Callable[..., PairsConfig]) -> None:
    def row(*answers: tuple[str, float]) -> dict[str, Any]:
        made = [{"text": text, "score": score, "finished": True} for text, score in answers]
        return {"id": "x", "origin": "y", "messages": [], "candidates": made}

    config = make("", samples=4, rows=4, min_margin=0.2)
    rows = [
        row(("a", 0.5), ("b", 0.5)),
        row(("a", 0.5), ("a", 0.9)),
        row(("a", 0.5), ("b", 0.6)),
        row(("a", 0.5), (" ", 0.0)),
        row(("a", 0.5), ("b", 0.1), ("c", 0.9), ("d", 0.9)),
    ]
    pairs, dropped = best_and_worst(config, rows, "rules")
    assert dropped == {"ties": 3, "small_margins": 1, "empty_answers": 1}
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("c", "b")]
    assert pairs[0]["provenance"]["candidates"] == [2, 1]
    assert pairs[0]["provenance"]["sampling"]["temperatures"] == [0.9, 1.1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": ()}, "no prompt files"),
        ({"samples": 1}, "samples=1 is out of range"),
        ({"limit": 0}, "limit=0 is out of range"),
        ({"rows": 5}, "rows=5 is no multiple of samples=2.*give rows as 4"),
        ({"temperatures": ()}, "expected at least one number"),
        ({"temperatures": (0.0,)}, "two candidates at temperature 0"),
        ({"min_margin": -1.0}, "min_margin=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_bad_settings_are_refused(make: Callable[..., PairsConfig], changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make("", **changes)
