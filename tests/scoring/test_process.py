"""Process reward models of every format, judged as the slow versions judge; what a step is; what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import generate
import sla_jax
from sla_jax import checkpoint
from sla_jax.errors import UserError
from sla_jax.scoring import rows, steps
from sla_jax.scoring.candidate import Candidate, Scorer, StepScorer, detailed
from sla_jax.scoring.formats import LAYOUTS, label_tokens
from sla_jax.scoring.process import ProcessScorer
from sla_jax.scoring.registry import ScorerConfig, make_scorer
from sla_jax.text import load_tokenizer
from tests.process_models import BAD, GOOD, MODELS, TAG, Made, shepherd_tokenizer
from tests.scoring.test_models import reward_checkpoint
from tests.tiny import byte_level_tokenizer

QUESTION = "How much is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ANSWERS = (
    ("It is 42.",),
    ("12 + 30 is\n30 + 12.", "Please do not", "the answer - 42"),
    ("naïve café 東京", "It is 42, and 7 more is 49."),
    ("Paris.", "Paris.", "Paris.", "Paris."),
)


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """As in test_models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BATCH_TOKENS", 512)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each format's model, and our checkpoint of it beside it."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: make(folder / name) for name, make in MODELS.items()}
    for name, one in found.items():
        checkpoint.import_checkpoint(str(one.directory), folder / f"{name}-ours")
    return {name: one._replace(directory=folder / f"{name}-ours") for name, one in found.items()}


def scorer_of(made: dict[str, Made], name: str, **options: Any) -> ProcessScorer:
    """Without a format where the checkpoint leaves no doubt."""
    given = name if name in ("math_shepherd", "rlhflow") else None
    return ProcessScorer(made[name].directory, format=given, **options)


def candidates(*answers: tuple[str, ...], separator: str = "\n\n") -> list[Candidate]:
    return [Candidate(MESSAGES, separator.join(answer), [], True) for answer in answers]


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_judged_as_the_slow_version_judges_them(made: dict[str, Made], name: str) -> None:
    scorer = scorer_of(made, name)
    assert isinstance(scorer, Scorer) and isinstance(scorer, StepScorer) and scorer.format == name
    got = scorer.steps(candidates(*ANSWERS))
    for answer, found in zip(ANSWERS, got, strict=True):
        np.testing.assert_allclose(found, made[name].judge(QUESTION, answer), rtol=0, atol=1e-4)
    flat = np.concatenate(got)
    assert flat.std() > 0.02 and (0 < flat).all() and (flat < 1).all()
    assert scorer.score(candidates(*ANSWERS)) == [found[-1] for found in got]


def test_a_channel_gives_its_reward_at_the_separators(checkpoint: Path) -> None:
    scorer = ProcessScorer(checkpoint)
    model = sla_jax.load(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    prompt = model.prompt_ids(MESSAGES)
    for answer, found in zip(ANSWERS, scorer.steps(candidates(*ANSWERS)), strict=True):
        ids, places = [], []
        for step in answer:
            ids += tokenizer.encode(step) + tokenizer.encode("\n\n")
            places.append(len(ids) - 1)
        want = np.array(model.token_rewards(prompt, ids))[places]
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_public_token_ids_are_those_of_the_public_vocabulary() -> None:
    tokenizer = shepherd_tokenizer()
    assert label_tokens(tokenizer) == (GOOD, BAD) == (648, 387)
    row = LAYOUTS["math_shepherd"](tokenizer, MESSAGES, ["one", "two"], "")
    assert [row.ids[place] for place in row.places] == [TAG, TAG] == [12902, 12902]


@pytest.mark.parametrize("name", MODELS)
def test_what_looks_like_a_mark_is_text(made: dict[str, Made], name: str) -> None:
    """Marks in the question's and the steps' own words are no ends of steps."""
    scorer = scorer_of(made, name)
    odd = [Candidate([{"role": "user", "content": "ки + ки?"}], "a + b ки\n+\n\nки+\n\n", [], False)]
    assert [len(found) for found in scorer.steps(odd)] == [2]


@pytest.mark.parametrize("name", MODELS)
def test_a_trailing_separator_makes_no_step(made: dict[str, Made], name: str) -> None:
    scorer = scorer_of(made, name)
    plain, *others = (
        scorer.steps([Candidate(MESSAGES, text, [], False)])[0]
        for text in ("Paris.\n\nIt is", "Paris.\n\nIt is\n\n", "Paris.\n\n\n\nIt is\n\n \n\n")
    )
    assert len(plain) == 2
    for other in others:
        np.testing.assert_allclose(other, plain, rtol=0, atol=1e-6)
    (empty,) = scorer.steps([Candidate(MESSAGES, "", [], False)])
    assert len(empty) == 1 and np.isfinite(empty).all()


def test_aggregates(made: dict[str, Made]) -> None:
    (found,) = scorer_of(made, "head").steps(candidates(ANSWERS[1]))
    wanted = {"last": found[-1], "min": min(found), "prod": float(np.prod(found)), "mean": float(np.mean(found))}
    assert wanted.keys() == steps.AGGREGATES.keys() and len(set(wanted.values())) == 4
    for how, want in wanted.items():
        scorer = scorer_of(made, "head", aggregate=how)
        (score,) = detailed(scorer, candidates(ANSWERS[1]))
        np.testing.assert_allclose(score.total, want, rtol=1e-6)
        assert score.parts == {f"step {i}": value for i, value in enumerate(found, 1)}
        assert how in scorer.name


def test_a_separator_of_ones_own(made: dict[str, Made]) -> None:
    """It splits the answer, and stands behind each step where the checkpoint was not trained here."""
    scorer = scorer_of(made, "skywork", separator="\n")
    (found,) = scorer.steps([Candidate(MESSAGES, "one\ntwo\n\nthree", [], True)])
    want = made["skywork"].judge(QUESTION, ["one", "two", "three"])
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-4)
    (other,) = scorer_of(made, "head", separator=" ;").steps(candidates(ANSWERS[1], separator=" ;"))
    (same,) = scorer_of(made, "head").steps(candidates(ANSWERS[1]))
    assert len(other) == len(same) and not np.allclose(other, same, atol=1e-3)


def test_label_tokens_can_be_given(made: dict[str, Made]) -> None:
    usual = scorer_of(made, "rlhflow")
    good, bad = label_tokens(usual.model.tokenizer)
    (found,) = scorer_of(made, "rlhflow", label_ids=(bad, good)).steps(candidates(ANSWERS[1]))
    np.testing.assert_allclose(found, 1 - np.array(usual.steps(candidates(ANSWERS[1]))[0]), atol=1e-6)


def test_formats_and_layouts_are_the_same() -> None:
    assert tuple(LAYOUTS) == steps.FORMATS


@pytest.mark.parametrize("name", LAYOUTS)
def test_half_a_character_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="has half a surrogate pair"):
        LAYOUTS[name](byte_level_tokenizer(), MESSAGES, ["one", "half \ud83d"], "\n")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("math_shepherd", {}, "is a language model without.*say by format which it is: math_shepherd, rlhflow"),
        ("math_shepherd", {"format": "qwen"}, "cannot be read in the format 'qwen'.*one of: math_shepherd, rlhflow"),
        ("skywork", {"format": "rlhflow"}, "cannot be read in the format 'rlhflow'.*one of: skywork"),
        ("head", {"format": "qwen"}, "judges at the token <extra_0>, which the tokenizer"),
        ("head", {"label_ids": (1, 2)}, "format 'head' has no label tokens; label_ids belong to math_shepherd"),
        ("rlhflow", {"format": "rlhflow", "label_ids": (1, 9999)}, "label_ids=1, 9999: this model's tokens are 0 to"),
        ("head", {"format": "heads"}, "no format of PRMs 'heads'.*Did you mean 'head'"),
        ("head", {"aggregate": "least"}, "no aggregate 'least'; known: last, min, prod, mean"),
        ("head", {"separator": ""}, "separator is empty"),
        ("channel", {"aggregate": "prod"}, "multiplies probabilities, and a channel gives rewards"),
        ("scalar", {}, "scorer kind reward_model.*which it is: skywork"),
        ("three", {}, "a score head of 3 outputs; a PRM has one or two"),
    ],
)
def test_what_is_refused(
    made: dict[str, Made], checkpoint: Path, name: str, options: dict, message: str, tmp_path: Path
) -> None:
    if name in ("scalar", "three"):
        directory = reward_checkpoint(tmp_path / "model", num_labels=1 if name == "scalar" else 3)
    else:
        directory = checkpoint if name == "channel" else made[name].directory
    with pytest.raises(UserError, match=message):
        ProcessScorer(directory, **options)


def test_best_of_n_ranked_by_a_prm(made: dict[str, Made], checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    """From the command line; the answer is the candidate whose last step scores highest, and the tokens are counted."""
    flags = "--search.method best_of_n --search.n 3 --search.chunk 8 --max-tokens 16 --sampling.temperature 1 --json"
    scorer = ["--scorer.kind", "prm", "--scorer.checkpoint", str(made["head"].directory), "--scorer.aggregate", "min"]
    generate.main([str(checkpoint), QUESTION, *flags.split(), *scorer])
    *lines, end = map(json.loads, capsys.readouterr().out.splitlines())
    ended = [one for line in lines for one in line.get("candidates", ())]
    config = ScorerConfig(kind="prm", checkpoint=str(made["head"].directory), aggregate="min")
    best = max(ended, key=lambda one: one["score"])
    (score,) = make_scorer(config).score([Candidate(MESSAGES, end["text"], [], True)])
    np.testing.assert_allclose(best["score"], score, rtol=0, atol=1e-5)
    assert len(ended) == 3 and end["cost"]["scorer_tokens"] > 0
