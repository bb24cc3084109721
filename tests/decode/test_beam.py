"""Beam search against transformers' on a tiny random model, and against exhaustive search on toys."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

import convert
import sla_jax
from sla_jax.decode import beam
from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.beam_program import BeamProgram
from sla_jax.decode.completion import Completion
from sla_jax.decode.pool import Phase
from sla_jax.decode.program import Engine
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from tests import toys
from tests.programs import tiny_checkpoint
from tests.toys import Row

LIMIT = 12
PROMPTS = [[5, 6, 7], [9, 40, 41, 42, 43], list(range(30, 40))]
_plant = jax.jit(beam.plant, static_argnames="phase")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and transformers', the same random weights; not sharp, so that answers end and beams change places."""
    folder = tmp_path_factory.mktemp("beam")
    ours = tiny_checkpoint(folder / "tiny", channel=False, sharpness=4.0)
    convert.main(["export", str(ours), str(folder / "hf")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    return sla_jax.load(ours), theirs


def answers(model: Any, prompt: list[int], decoder: BeamSearch, ends: tuple[int, ...]) -> list[Completion]:
    """All ended answers, best first."""
    model.end_tokens = ends
    chunks = list(model.stream(prompt, search=decoder, max_tokens=LIMIT))
    return list(chunks[-1].ended)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early", [True, False, "never"])
def test_beam_search_is_transformers(models: tuple[Any, Any], early: Any, penalty: float) -> None:
    ours, theirs = models
    decoder = BeamSearch(beams=3, length_penalty=penalty, early_stopping=early, chunk=5)
    greedy = [chunk.token_ids for chunk in ours.stream(PROMPTS[0], max_tokens=LIMIT)]
    ends = (greedy[0][3], 7)  # something ends in the middle
    for prompt in PROMPTS:
        found = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=LIMIT,
            do_sample=False,
            length_penalty=penalty,
            early_stopping=early,
            eos_token_id=list(ends),
            pad_token_id=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        mine = answers(ours, prompt, decoder, ends)
        texts = [row[len(prompt) :].tolist() for row in found.sequences]
        assert [one.tokens for one in mine] == [text[: len(one.tokens)] for text, one in zip(texts, mine, strict=True)]
        assert all(not set(text[len(one.tokens) :]) - {1} for text, one in zip(texts, mine, strict=True))
        np.testing.assert_allclose([one.score for one in mine], found.sequences_scores.numpy(), rtol=1e-4, atol=1e-4)


def play(decoder: BeamSearch, rows: list[Row]) -> list[list[Completion]]:
    """The answers of all rows, which have one limit, best first."""
    engine = Engine(prefill=toys.no_prefill, steps=lambda params, decoder: toys.steps(decoder.chunk))
    phase = Phase(lanes=decoder.beams, tokens=rows[0].limit, chunk=1)
    cache, logits, _, prompts = toys.planted(phase, rows)
    started = _plant(cache, logits, prompts, phase=phase)
    logs = list(BeamProgram(engine).play(None, decoder, started))
    assert all(round_.done for round_ in logs[-1])
    return [[one for rounds in logs for one in rounds[row].ended] for row in range(len(rows))]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact).sum())


def most_probable(row: Row) -> tuple[tuple[int, ...], float]:
    """Of all answers of exactly `limit` tokens, the one with the highest log-probability, by trying them all."""
    world, size = toys.plain(row.tables, row.start), row.tables.logits.shape[1]
    best: tuple[tuple[int, ...], float] = ((), -np.inf)
    for text in itertools.product(range(size), repeat=row.limit):
        total = sum(float(log_softmax(world([text[:i]])[0][0])[token]) for i, token in enumerate(text))
        best = max(best, (text, total), key=lambda pair: pair[1])
    return best


def test_enough_beams_find_the_most_probable_answer() -> None:
    """4 tokens out of 3: 27 beams hold everything that could become the best."""
    rows = [Row(toys.random_tables(seed, 5, 3), seed % 5, 4, ()) for seed in range(6)]
    for found, row in zip(play(BeamSearch(beams=27, length_penalty=0.0, chunk=2), rows), rows, strict=True):
        assert found[0].score == pytest.approx(most_probable(row)[1], abs=1e-5)
        assert sum(found[0].logprobs) == pytest.approx(found[0].score, abs=1e-5)


def test_one_beam_is_greedy_and_rows_do_not_meet() -> None:
    rows = [Row(toys.random_tables(seed, 5, 4), seed % 5, 9, (seed % 4,)) for seed in range(8)]
    greedy = [list(answer.tokens) for answer in toys.play(sla_jax.Greedy(chunk=4), rows)]
    one = BeamSearch(beams=1, length_penalty=0.0, early_stopping=True)
    assert [found[0].tokens for found in play(one, rows)] == greedy
    three = BeamSearch(beams=3)
    assert play(three, rows)[::-1] == play(three, rows[::-1])


def test_what_is_refused(models: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="takes no sampling options"):
        models[0].stream([1], search=BeamSearch(), sampling=Sampling(temperature=1.0))
    with pytest.raises(UserError, match="beams=0 is out of range"):
        BeamSearch(beams=0)
