"""benchmarks/loops.py on a tiny model: both methods answer the same prompts, and the share is of the stated measure."""

import json
from pathlib import Path

import pytest

from benchmarks import loops
from sla_jax.errors import UserError
from sla_jax.scoring.loops import falls_into_loop
from tests.programs import tiny_checkpoint


def test_a_table_of_both_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    prompts, trained = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text("".join(json.dumps({"instruction": f"Say {word}."}) + "\n" for word in ("one", "two", "three")))
    trained.write_text(json.dumps({"messages": [{"role": "user", "content": "say  TWO."}], "chosen": "x"}))
    common = ["--prompts", str(prompts), "--exclude", str(trained), "--json", str(tmp_path / "loops.json")]
    loops.main([str(checkpoint), *common, "--max-tokens", "24", "--search", "2", "4", "1", "--rows", "2"])
    figures = json.loads((tmp_path / "loops.json").read_text())
    assert list(figures["answers"]) == ["greedy", "look-ahead 2/4/1"]
    for name, texts in figures["answers"].items():
        assert len(texts) == 2 and figures["share_of_loops"][name] == sum(map(falls_into_loop, texts)) / 2
    assert "| look-ahead 2/4/1 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="no prompt is left of 3"):
        loops.main([str(checkpoint), *common, "--max-prompt-tokens", "1"])


def test_a_row_counts_loops_and_their_error() -> None:
    given = [loops.Answer("", 10, True, False)] * 3 + [loops.Answer("", 30, False, True)]
    row = {"method": "x", "answers in a loop": "1 of 4", "share": "25.0% ± 21.7%"}
    assert loops.row("x", given) == row | {"ended by themselves": "75%", "tokens": "15"}
