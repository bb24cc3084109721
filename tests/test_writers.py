"""Every program that writes a folder refuses one that another process is writing, before it does anything to it."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import convert
import eval as evaluate
import train
from sla_jax.checkpoint.staging import partial_path
from sla_jax.errors import front_door
from sla_jax.evaluation.generate import generate
from sla_jax.evaluation.judges.data import JudgeData, PairFile, write_judge_data
from sla_jax.locks import LOCK, one_writer
from tests.evaluation import report_run
from tests.evaluation.runs import Echo, settings


def training(out: Path) -> None:
    train.main(["--out", str(out), "--overwrite"])


def pairs(out: Path) -> None:
    file = out.parent / "pairs.yaml"
    file.write_text(f"model: nowhere\nprompts: [nowhere.jsonl]\nscorers: [{{kind: rules}}]\nout: {out}\n")
    train.main(["pairs", str(file), "--overwrite"])


def answers(out: Path) -> None:
    generate(settings(out.parent, out=out), Echo())


def judge_data(out: Path) -> None:
    (out.parent / "a.jsonl").write_text('{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}\n')
    file = PairFile(file=str(out.parent / "a.jsonl"))
    write_judge_data(JudgeData(channel=(file,), sources=(file,), out=str(out)))


def held(target: Path, act: Callable[[], None], capsys: pytest.CaptureFixture[str], lock: Path | None = None) -> None:
    """Run `act` while another holds `target`: one paragraph, exit code 2, and nothing is changed there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with one_writer(target, lock):
        if lock is None:
            (target / "theirs").write_text("")
        before = sorted(target.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            front_door(lambda argv: act(), [])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and sorted(target.rglob("*")) == before
    assert said.startswith("error: process ") and f" is writing {target}, and two writers" in said, said
    assert "Traceback" not in said and said.count("\n") == 1


@pytest.mark.parametrize("act", [training, pairs, answers, judge_data], ids=lambda act: act.__name__)
def test_a_folder_that_is_being_written_is_refused(
    act: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held(tmp_path / "out", lambda: act(tmp_path / "out"), capsys)


def test_judging_and_reporting_hold_what_they_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = report_run.write_run(tmp_path / "run")
    config = tmp_path / "judges.yaml"
    config.write_text(f"out: {out}\njudges: [{{kind: gsm8k, name: words}}]\n")
    held(out / "judgements" / "words", lambda: evaluate.main(["judge", str(config)]), capsys)
    held(out / "report", lambda: evaluate.main(["report", str(out)]), capsys)


def test_converting_holds_where_it_writes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "theirs"
    convert.main(["export", str(checkpoint), str(out)])
    for command, source in (("export", checkpoint), ("import", out)):
        target = tmp_path / command
        act = functools.partial(convert.main, [command, str(source), str(target)])
        held(target, act, capsys, partial_path(target) / LOCK)
