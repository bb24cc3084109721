"""The speculation benchmark runs tiny, goes on from its file, and counts what it says."""

import json
from pathlib import Path

import pytest

from benchmarks import speculation
from benchmarks.speculation import Found
from sla_jax.errors import UserError
from tests.programs import tiny_checkpoint


def test_it_runs_and_reads_back_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculation, "TEXTS", ("a",))
    monkeypatch.setattr(speculation, "OPEN", ("b",))
    checkpoint, answers = tiny_checkpoint(tmp_path / "tiny"), tmp_path / "answers.jsonl"
    options = [str(checkpoint), "--limit", "1", "--drafts", "2", "--max-tokens", "12", "--json", str(answers)]
    speculation.main(options)
    first = capsys.readouterr().out
    assert first.count("1 of 1") == 2 * 2 * 2  # kinds, searches, with guesses and without
    about, *rows = map(json.loads, answers.read_text().splitlines())
    assert about["max_tokens"] == 12 and len(rows) == 8
    compiled.clear()
    speculation.main(options)
    assert capsys.readouterr().out == first
    assert not compiled
    with pytest.raises(UserError, match="another run"):
        speculation.main([*options, "--max-tokens", "13"])


def test_a_line_compares_with_the_same_search_without_guesses() -> None:
    plain = [Found([1, 2, 3], 3, 0, 0, 1.0), Found([4], 1, 0, 0, 1.0)]
    ours = [Found([1, 2, 3], 1, 4, 2, 0.5), Found([5], 1, 0, 0, 0.5)]
    line = speculation.row("copies", "greedy", 4, ours, plain)
    assert line["same answers"] == "1 of 2" and line["guesses right"] == "50%"
    assert (line["tokens a pass"], line["passes saved"], line["÷ without"]) == ("2.00", "50%", "2.00")
