"""Running judges: what they leave, that nothing judged is lost, that faults are named by file, line and field."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sla_jax.config import load_yaml
from sla_jax.errors import UserError
from sla_jax.evaluation.judges.config import PROXY, JudgeConfig, JudgeRun
from sla_jax.evaluation.judges.protocol import Comparison, Judge, PairJudge, Winner, judgement, not_finite
from sla_jax.evaluation.judges.run import run_judges
from sla_jax.evaluation.rows import Answer, Judgement, read_judgements
from sla_jax.scoring.registry import ScorerConfig
from tests.damage import unsummed
from tests.evaluation.answers import answer, judged, path_of, read, write_run

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b", "c", "d", "e")
LENGTH = JudgeConfig(kind="intrinsic", name="length")


class Length:
    """Scores by the number of characters; `faults` maps an id to what becomes of it."""

    def __init__(self, **faults: float | str):
        self.faults, self.seen = faults, list[str]()

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        found = []
        for one in answers:
            fault = self.faults.get(one.id)
            if isinstance(fault, str):
                raise UserError(fault)
            scores = [float(len(turn.text)) if fault is None else fault for turn in one.turns]
            found.append(judgement(one, scores, {}))
        self.seen += [one.id for one in answers]
        return found


class Longer:
    """Prefers the longer answer."""

    def __init__(self) -> None:
        self.seen = list[str]()

    def compare(self, method: Answer, baseline: Answer) -> Comparison:
        self.seen.append(method.id)
        more = len(method.turns[0].text) - len(baseline.turns[0].text)
        winner: Winner = "method" if more > 0 else "baseline" if more < 0 else "tie"
        return Comparison(method.id, baseline.method, winner, {"more": more})


def five(out: Path) -> Path:
    return write_run(out, *(answer(name, "x" * (i + 1), "yy") for i, name in enumerate(NAMES)))


def run(out: Path, judge: Judge | PairJudge, config: JudgeConfig = LENGTH, **changes: Any) -> list[str]:
    return run_judges(JudgeRun(out=str(out), judges=(config,), batch=2, **changes), make=lambda _: judge)


def test_every_answer_is_judged_once_with_the_mean_of_its_turns(tmp_path: Path) -> None:
    out, judge = five(tmp_path / "run"), Length()
    assert isinstance(judge, Judge) and not isinstance(judge, PairJudge)
    assert run(out, judge) == ["length (measure): 5 judged now, 5 in all"]
    found = read_judgements(judged(out, "length"))
    assert [one.scores for one in found] == [(float(i + 1), 2.0) for i in range(5)]
    assert [one.score for one in found] == [(i + 3) / 2 for i in range(5)]
    again = Length()
    assert run(out, again) == ["length (measure): 0 judged now, 5 in all"] and again.seen == []
    description = json.loads((out / "judgements" / "length" / "judge.json").read_text(encoding="utf-8"))
    assert (description["kind"], description["label"]) == ("intrinsic", "measure")


@pytest.mark.parametrize("cut", [0, 1, 7, 40, 100, 150])
def test_a_run_cut_off_anywhere_ends_with_the_same_bytes(tmp_path: Path, cut: int) -> None:
    out = five(tmp_path / "run")
    run(out, Length())
    path = judged(out, "length")
    whole = path.read_bytes()
    assert cut < len(whole)
    path.write_bytes(whole[:cut])
    run(out, Length())
    assert path.read_bytes() == whole


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named_and_the_others_are_kept(tmp_path: Path, value: float) -> None:
    """c is the first of the second batch; d behind it, of the same batch, was computed and is kept too."""
    out = five(tmp_path / "run")
    with pytest.raises(UserError, match=r"greedy\.jsonl, line 3: .*'c'.*scores\[0\]"):
        run(out, Length(c=value))
    assert [row["id"] for row in read(judged(out, "length"))] == ["a", "b", "d"]
    mended = Length()
    run(out, mended)
    assert mended.seen == ["c", "e"]
    assert [row["id"] for row in read(judged(out, "length"))] == list(NAMES)  # in the answers' order again
    other = five(tmp_path / "other")
    run(other, Length())
    assert judged(out, "length").read_bytes() == judged(other, "length").read_bytes()


def test_numbers_within_details_count_too() -> None:
    one = judgement(answer("a", "x"), [1.0], {"parts": [{"rating": math.nan}], "text": "nan", "fine": [1, True]})
    assert not_finite(one) == "details.parts[0].rating"
    assert not_finite(one._replace(details={"text": "nan"})) is None


def test_an_answer_that_a_judge_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    out = five(tmp_path / "run")
    with pytest.raises(UserError, match=r"greedy\.jsonl, line 4: too long for me"):
        run(out, Length(d="too long for me"))
    assert [row["id"] for row in read(judged(out, "length"))] == ["a", "b", "c"]


def test_judgements_of_other_settings_or_answers_are_refused(tmp_path: Path) -> None:
    out = five(tmp_path / "run")
    rules = JudgeConfig(kind="rules", name="length", scorer=ScorerConfig(kind="rules"))
    run(out, Length())
    with pytest.raises(UserError, match="other settings of the judge.*kind: was .intrinsic., now .rules."):
        run(out, Length(), rules)
    write_run(out, answer("a", "x"), seed=2)
    with pytest.raises(UserError, match="other settings of the answers.*seed: was 1, now 2"):
        run(out, Length())


def test_more_methods_may_be_judged_later(tmp_path: Path) -> None:
    out = five(tmp_path / "run")
    run(out, Length())
    write_run(out, *(answer(name, "zzz", method="sla") for name in NAMES), methods={"sla": {"method": "sla"}})
    later = Length()
    assert run(out, later, methods=("sla",)) == ["length (measure): 5 judged now, 5 in all"]
    assert later.seen == list(NAMES) and judged(out, "length", "sla").exists()
    with pytest.raises(UserError, match="no answers by the method 'slo'.*Did you mean 'sla'"):
        run(out, Length(), methods=("slo",))


class Drifting(Length):
    """Gives an answer another number every time, as a device may in the last bits."""

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        return [one._replace(score=one.score + i / 100) for i, one in enumerate(super().score(answers), len(self.seen))]


def three(method: str, texts: str) -> list[Answer]:
    return [answer(name, f"{name}: {text}", method=method) for name, text in zip("abc", texts, strict=True)]


def test_equal_answers_tie_to_the_last_bit_whenever_they_are_judged(tmp_path: Path) -> None:
    """sla gives greedy's answer to a and b; late, judged by another run of the judge, gives it to b and c."""
    texts = {"greedy": "xyz", "sla": "xyw", "late": "wyz"}
    out, judge = tmp_path / "run", Drifting()
    for method in ("greedy", "sla"):
        write_run(out, *three(method, texts[method]))
    run(out, judge)
    assert judge.seen == ["a", "b", "c", "c"]  # prompt by prompt, equal answers once
    first, second = (read_judgements(judged(out, "length", method)) for method in ("greedy", "sla"))
    assert first[:2] == second[:2] and first[2] != second[2]
    write_run(out, *three("late", texts["late"]))
    later = Drifting()
    run(out, later)
    assert later.seen == ["a"] and read_judgements(judged(out, "length", "late"))[1:] == first[1:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "z"}\n', r"greedy\.jsonl, line 1: 'id' 'z' is not in .*answers"),
        ('{"id": "a"}\n{"id": "a"}\n', r"line 2: 'id' 'a' is there twice"),
        ('{"name": "a"}\n', r"line 1: 'id' is missing"),
        ("{]\n", r"line 1: not JSON"),
    ],
)
def test_a_damaged_file_of_judgements_is_named(tmp_path: Path, line: str, message: str) -> None:
    out = five(tmp_path / "run")
    path = judged(out, "length")
    path.parent.mkdir(parents=True)
    path.write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        run(out, Length())
    assert path.read_text(encoding="utf-8") == line


def test_pairs_are_compared_with_the_baseline(tmp_path: Path) -> None:
    short = [answer(name, "x") for name in NAMES]
    long = [answer(name, "x" * i, method="sla") for i, name in enumerate(NAMES)]
    out = write_run(tmp_path / "run", *short, *long)
    judge = Longer()
    config = JudgeConfig(kind="llm", url="http://x/v1", model="m", baseline="greedy")
    run(out, judge, config)
    found = read(judged(out, "llm", "sla.vs.greedy"))
    assert [row["winner"] for row in found] == ["baseline", "tie", "method", "method", "method"]
    assert {row["baseline"] for row in found} == {"greedy"} and judge.seen == list(NAMES)
    assert not judged(out, "llm").exists()  # a baseline is not compared with itself
    again = Longer()
    run(out, again, config)
    assert again.seen == []


def test_pairs_need_the_same_prompts(tmp_path: Path) -> None:
    answers = [answer("a", "x"), answer("b", "x"), answer("a", "x", method="sla"), answer("c", "x", method="sla")]
    out = write_run(tmp_path / "run", *answers)
    config = JudgeConfig(kind="llm", url="http://x/v1", model="m", baseline="greedy")
    with pytest.raises(UserError, match=r"sla\.jsonl, line 2: 'id' is 'c'.*greedy\.jsonl has 'b'"):
        run(out, Longer(), config)


def test_a_judge_keeps_to_its_sets(tmp_path: Path) -> None:
    both = [answer("a", "4", benchmark="gsm8k", reference="#### 4"), answer("a", "x")]
    out = write_run(tmp_path / "run", *both)
    run_judges(JudgeRun(out=str(out), judges=(JudgeConfig(kind="gsm8k"),)))
    assert [path.parent.name for path in (out / "judgements" / "gsm8k").glob("*/*.jsonl")] == ["gsm8k"]
    with pytest.raises(UserError, match="'math' has no answers to judge; the run's sets: bench, gsm8k"):
        run(out, Length(), JudgeConfig(kind="math"))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no settings.json"):
        run(tmp_path, Length())
    out = write_run(tmp_path / "empty")
    with pytest.raises(UserError, match="no answers under"):
        run(out, Length())
    path = path_of(five(out), answer("a"))
    path.write_text(unsummed(path.read_text(encoding="utf-8")).replace('"text"', '"txet"', 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"greedy\.jsonl, line 1: 'turns\[0\]\.text' is missing"):
        run(out, Length())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "amro"}, "Did you mean 'armo'"),
        ({"kind": "channel"}, "needs scorer.kind=channel"),
        ({"kind": "armo"}, "needs 'checkpoint'"),
        ({"kind": "llm", "url": "http://x"}, "needs 'model'"),
        ({"kind": "gsm8k", "checkpoint": "x"}, "'checkpoint' means nothing to the judge 'gsm8k'"),
        ({"kind": "math", "timeout": 0.0}, "above 0"),
        ({"kind": "intrinsic", "name": "a/b"}, "is a folder"),
    ],
)
def test_judges_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JudgeConfig(**fields)


def test_a_channel_is_always_the_teachers_proxy() -> None:
    scorer = ScorerConfig(kind="channel", checkpoint="x")
    assert JudgeConfig(kind="channel", scorer=scorer).said == PROXY
    with pytest.raises(UserError, match="search followed it"):
        JudgeConfig(kind="channel", scorer=scorer, label="independent")
    with pytest.raises(UserError, match="two judges are called 'intrinsic'"):
        JudgeRun(out="x", judges=(JudgeConfig(kind="intrinsic"), JudgeConfig(kind="intrinsic")))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "eval").glob("judges*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_judges_are_read(path: Path) -> None:
    """Each file judges the run that the file without `judges-` in its name makes, and has a proxy to compare with."""
    config = load_yaml(JudgeRun, path)
    name = path.stem.removeprefix("judges-")
    assert config.out == f"runs/eval/{name}" and (path.parent / f"{name}.yaml").is_file()
    assert [judge.said for judge in config.judges].count(PROXY) == 1
    assert [judge.said for judge in config.judges].count("independent") == (name == "smollm2")
    assert f"eval.py judge configs/eval/{path.name}" in path.read_text(encoding="utf-8") or name == "smoke"
