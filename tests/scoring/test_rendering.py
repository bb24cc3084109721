"""Scorers and judges render chats as if on one day, with their variables, and name tokens without embedding."""

import shutil
from pathlib import Path

import pytest

from sla_jax.checkpoint import import_checkpoint
from sla_jax.errors import UserError
from sla_jax.evaluation.entropy.config import EntropyConfig
from sla_jax.evaluation.judges.config import JudgeConfig
from sla_jax.loading import Loaded
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.channel import ChannelScorer
from sla_jax.scoring.judge import messages_of
from sla_jax.scoring.process import ProcessScorer
from sla_jax.scoring.registry import ScorerConfig, make_scorer
from sla_jax.scoring.rows import answer_row, check_rows
from tests.checkpoint import models
from tests.damage import edit
from tests.programs import tiny_checkpoint
from tests.tiny import CHATML, byte_level_tokenizer, tiny_config

TEMPLATE = "{{ strftime_now('%d %b %Y') }}{% if style %}{{ style }}{% endif %}" + CHATML
ASK = Candidate([{"role": "user", "content": "Hi"}], "Yes", [], True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tiny_checkpoint(tmp_path_factory.mktemp("rendering") / "tiny")
    edit(directory, "chat_template.jinja", TEMPLATE)
    return directory


def read_by(scorer: ChannelScorer) -> str:
    return scorer.model.tokenizer.decode(scorer.row(ASK).ids)


def test_a_scorer_reads_what_its_settings_say(checkpoint: Path) -> None:
    config = ScorerConfig(kind="channel", checkpoint=str(checkpoint))
    changed = ScorerConfig(kind="channel", checkpoint=str(checkpoint), template={"style": "!"}, date="2026-11-30")
    usual, other = make_scorer(config), make_scorer(changed)
    assert isinstance(usual, ChannelScorer) and isinstance(other, ChannelScorer)
    assert read_by(usual).startswith("26 Jul 2024<|im_start|>") and read_by(other).startswith(
        "30 Nov 2026!<|im_start|>"
    )
    with pytest.raises(UserError, match="does not read the variable 'stile'.* Did you mean 'style'"):
        ChannelScorer(checkpoint, template={"stile": 1})
    with pytest.raises(UserError, match="reads no chat template, so it takes no template variables"):
        ProcessScorer(checkpoint, format="math_shepherd", template={"style": "!"})


def test_judges_and_entropies_take_a_template_where_they_render(checkpoint: Path) -> None:
    judge = JudgeConfig(kind="perplexity", checkpoint=str(checkpoint), template={"style": "!"})
    assert judge.rendering() == {"template": {"style": "!"}} and judge.settings()["template"] == {"style": "!"}
    assert "date" not in judge.settings() and JudgeConfig(kind="gsm8k").rendering() == {}
    with pytest.raises(UserError, match="'template' means nothing to the judge 'gsm8k'"):
        JudgeConfig(kind="gsm8k", template={})
    with pytest.raises(UserError, match="is no day"):
        JudgeConfig(kind="perplexity", checkpoint="x", date="today")
    with pytest.raises(UserError, match="is no day"):
        EntropyConfig(checkpoint="x", out=Path("o.jsonl"), data=("d",), date="today")


def test_a_token_without_embedding_is_named_with_its_conversation() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = Loaded(None, tiny_config(vocab_size=320), tokenizer, (2,))
    rows = [answer_row(model, one) for one in (ASK, ASK._replace(text="so [PAD]"))]
    check_rows(model, rows[:1])
    with pytest.raises(UserError, match=r"begins with 'user\\nHi.*: the token '\[PAD\]' \(320\) has no embedding"):
        check_rows(model, rows)


def test_a_scorer_sees_the_text_of_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]
    with pytest.raises(UserError, match="not as token ids"):
        messages_of([1, 2])


def test_an_import_names_the_tokens_that_the_embedding_lacks(tmp_path: Path) -> None:
    source = models.sla_dir(tmp_path / "source")
    size = tiny_config().vocab_size
    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    shutil.copy(tmp_path / "tokenizer" / "tokenizer.json", source)
    notes = import_checkpoint(str(source), tmp_path / "ours")
    assert any(f"tokens that the embedding's {size} rows do not hold: " in note for note in notes)
