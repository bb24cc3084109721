"""docs/training.md names every option with its default, every metric that a run logs, and every file that it leaves."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest

from sla_jax.model.lora import LoraConfig
from sla_jax.scoring.registry import KINDS, ScorerConfig
from sla_jax.scoring.rules import WEIGHTS
from sla_jax.sharding import make_mesh
from sla_jax.training import losses, metrics
from sla_jax.training.config import (
    BestConfig,
    ChannelOptions,
    FeaturesConfig,
    OptimizerConfig,
    PolicyOptions,
    StepsConfig,
    TrainConfig,
)
from sla_jax.training.data_config import DataConfig, SourceConfig
from sla_jax.training.loop import train_on
from sla_jax.training.loss_config import PolicyLoss, PolicyName, RewardLoss, RewardName
from sla_jax.training.onpolicy_config import PairsConfig
from sla_jax.training.resume import NOT_COMPARED
from tests.programs import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
TABLES = {"train.py": TrainConfig, "train.py pairs": PairsConfig}
OF_ANY_STEP = ("loss", "grad_norm", "learning_rate", "epoch", "padding", "seconds", "tokens_per_second", "mfu")
WORDS = {"True": "true", "False": "false", "None": "null", "()": "[]", "\n": r'"\n"'}


def options(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, default) of every field."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options(hints[field.name], f"{prefix}{field.name}.")
        else:
            made = field.default_factory
            yield f"{prefix}{field.name}", field.default if made is dataclasses.MISSING else made()


def written(default: Any) -> str:
    """A default as the page writes it."""
    if default is dataclasses.MISSING or default == "":
        return "required"
    if default == (ScorerConfig(),):
        return f"one of kind {ScorerConfig().kind}"
    if isinstance(default, tuple) and default:
        return ", ".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else WORDS.get(str(default), str(default))


def section(heading: str) -> str:
    """What stands below a heading, up to the next of its level or above."""
    (hashes,) = re.findall(rf"^(#+) {re.escape(heading)}$", PAGE, re.MULTILINE)
    below = PAGE.split(f"\n{hashes} {heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(hashes)}}} ", below, maxsplit=1)[0]


def cells(text: str, name: str) -> list[str]:
    """The cells behind the row's name in a table of options."""
    rows = [line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line.split(" | ")[0]]
    assert len(rows) == 1, f"docs/training.md has {len(rows)} rows for the option {name}"
    return [cell.strip() for cell in rows[0].strip("|").split(" | ")[1:]]


@pytest.mark.parametrize(
    ("page", "name", "default"),
    [(page, name, default) for page, cls in TABLES.items() for name, default in options(cls)],
)
def test_every_option_has_its_row_and_its_default(page: str, name: str, default: Any) -> None:
    kind, said, meaning = cells(section(page), name)
    assert kind and meaning
    assert said == written(default)


@pytest.mark.parametrize(("name", "default"), list(options(StepsConfig)))
def test_every_option_of_eval_has_its_row_and_its_default(name: str, default: Any) -> None:
    said, meaning = cells(section("Evaluation"), name)
    assert meaning
    assert said == ("required" if name in ("checkpoint", "data") else written(default))


@pytest.mark.parametrize("cls", [SourceConfig, ScorerConfig])
def test_parts_of_lists_are_named(cls: Any) -> None:
    place = section("Options")
    assert all(re.search(rf"[`{{ ,]{field.name}[`}},]", place) for field in dataclasses.fields(cls))


def test_no_row_names_an_option_that_is_not_there() -> None:
    """Within a table; a name is a dotted path of fields."""
    for page, cls in TABLES.items():
        table = section(page).split("A source of `data.sources`")[0]
        found = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
        assert set(found) == {name for name, _ in options(cls)}


def test_what_may_change_in_a_run_is_told() -> None:
    (told,) = re.findall(r"Only these fields may change: (.*?)\. ", " ".join(PAGE.split()))
    assert set(re.findall(r"`([\w.]+)`", told)) == set(NOT_COMPARED)


@pytest.mark.parametrize("name", [*get_args(RewardName), *get_args(PolicyName), *KINDS, *WEIGHTS])
def test_every_loss_scorer_and_part_of_the_rule_is_in_a_table(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("part", "weight"), WEIGHTS.items())
def test_the_rules_weights(part: str, weight: float) -> None:
    assert f"| `{part}` | {weight:.2f} |" in PAGE


# ---- metrics ----


def named(kind: str) -> set[str]:
    """Names in the table of a kind of line: those that stand alone in the first column."""
    first, second = section("Metrics").split('Lines with `"kind": "heldout"`')
    table = first if kind == "train" else second
    return {name for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", cell)}


def contributions() -> Iterator[str]:
    """The names that all the losses give."""
    pairs, marks, weights = jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3), jnp.int8), jnp.ones(2)
    scored = losses.Scored(pairs, pairs, pairs[..., 0], None, marks, weights)
    counts = losses.count(marks, weights)
    for name in get_args(RewardName):
        yield from losses.reward_loss(RewardLoss(name=name, coherence_mc=1.0, coherence_td=1.0), scored, counts)[1]
    for name in get_args(PolicyName):
        yield from losses.policy_loss(PolicyLoss(name=name), scored, counts)[1]
    steps = losses.Scored(pairs[:, :1], None, None, None, marks[:, :1], weights)
    yield from losses.step_loss(steps, losses.count(marks[:, :1], weights))[1]


def test_every_metric_is_in_the_table_and_no_other() -> None:
    assert named("train") == {*contributions(), *OF_ANY_STEP}


def test_no_metric_of_a_loss_takes_the_name_of_a_lines_own_fields() -> None:
    assert not set(contributions()) & {"kind", "step"}


def test_every_figure_is_in_the_table() -> None:
    assert named("heldout") == set(metrics.DESCRIPTIONS)


def test_a_run_logs_and_leaves_what_the_page_says(tmp_path: Path) -> None:
    """A channel and DPO of an adapter at once."""
    config = TrainConfig(
        data=DataConfig(generated=12, heldout=3, max_length=96, max_prompt_length=48, cache=None),
        channel=ChannelOptions(width=4),
        policy=PolicyOptions(train="lora", weight=1.0, loss=PolicyLoss(name="dpo"), lora=LoraConfig(rank=2)),
        optimizer=OptimizerConfig(batch_size=4, max_steps=1),
        features=FeaturesConfig(mode="recompute", batch_tokens=512),
        best=BestConfig(metric="nll"),
        out=str(tmp_path / "run"),
    )
    out = train_on(config, make_mesh(devices=jax.devices()[:1]))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["heldout", "train", "heldout"]
    for line in lines:
        assert not line.keys() - named(line["kind"]) - {"kind", "step"}
    folder = section("The run's folder")
    for path in out.iterdir():
        assert re.search(rf"`{re.escape(path.name)}[/`]", folder), path.name
