"""How tokens are chosen: filters and penalties against plain numpy, draws against their distribution, and searches that
sample against the oracle in a world whose scores are already perturbed: a draw depends only on the text before it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.decode import choice as choosing
from sla_jax.decode.choice import Text, choices
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.result import unpack
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from tests import oracles, toys
from tests.decode.test_toys import VOCAB, asked, expected, same, some_rows
from tests.toys import Row

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def text(vocabulary: int, ends: tuple[int, ...] = (-1,)) -> Text:
    """An empty response in one lane."""
    zero = jnp.zeros((1, 1), jnp.int32)
    seen = jnp.zeros((1, vocabulary), jnp.int32)
    return Text(seen, zero[..., None] - 1, zero, zero.astype(jnp.uint32), jnp.asarray([ends], jnp.int32))


def allowed(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Which tokens top-k, then top-p of what is left, then min-p keep; ties with the last one stay."""
    keep = np.ones(len(scores), bool)
    if sampling.top_k:
        keep = scores >= np.sort(scores)[::-1][: sampling.top_k][-1]
    weights = np.where(keep, np.exp(scores - scores.max(), dtype=np.float64), 0.0)
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        count = int(np.searchsorted(np.cumsum(weights[order]), sampling.top_p * weights.sum() - 1e-9)) + 1
        keep &= weights >= weights[order[count - 1]]
    return keep & (np.exp(scores - scores.max()) >= sampling.min_p)


@FEW
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=24),
    st.integers(0, 30),
    st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95, 1.0]),
    st.sampled_from([0.0, 0.03, 0.3, 0.9]),
)
def test_filters_are_numpys(eighths: list[int], top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = np.array(eighths, np.float32) / 8
    keep = choosing.kept(choices([sampling]), jnp.asarray(scores)[None, None])[0, 0]
    assert np.asarray(keep).tolist() == allowed(scores, sampling).tolist()


def test_penalties_are_those_of_transformers_and_openai() -> None:
    """Prompt 3 3 5, committed response 4 4, uncommitted 4 7: repetition sees all, the others only the response."""
    from transformers import RepetitionPenaltyLogitsProcessor

    torch = pytest.importorskip("torch")
    logits = np.linspace(-2, 2, 10, dtype=np.float32)
    settings_ = Sampling(
        repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((9, -3.0), (0, 2.0))
    )
    seen = np.zeros((1, 10), np.int32)
    seen[0, [3, 5]], seen[0, 4] = 1, 4
    recent = jnp.asarray([[[-1, 4, 7]]])
    told = text(10)._replace(seen=jnp.asarray(seen), recent=recent, length=jnp.full((1, 1), 4, jnp.int32))
    ours = choosing.adjusted(choices([settings_]), jnp.asarray(logits)[None, None], told)[0, 0]
    biased = logits.copy()
    biased[9], biased[0] = biased[9] - 3, biased[0] + 2
    penalized = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 3, 5, 4, 4, 4, 7]]), torch.tensor(biased)[None])
    expected = penalized[0].numpy()
    expected[4] -= 0.5 + 3 * 0.25
    expected[7] -= 0.5 + 0.25
    assert np.asarray(ours) == pytest.approx(expected, abs=1e-6)


def test_no_end_token_before_min_tokens() -> None:
    told = text(5, ends=(2, -1))
    chosen = choices([Sampling(min_tokens=1)])
    logits = jnp.asarray([0.0, 1.0, 9.0, 0.0, 0.0])[None, None]
    first = choosing.adjusted(chosen, logits, told)[0, 0]
    later = choosing.adjusted(chosen, logits, told._replace(length=told.length + 1))[0, 0]
    assert first[2] == -jnp.inf and later[2] == 9.0 and int(jnp.argmax(first)) == 1


def test_draws_follow_the_distribution() -> None:
    """4000 seeds: the first of two draws by softmax(logits / T), the second by what is left (five standard errors)."""
    logits = np.array([0.0, 0.7, 1.1, -0.4, 0.2], np.float32)
    count, temperature = 4000, 0.8
    chosen = choices([Sampling(temperature=temperature, seed=seed) for seed in range(count)])
    one = text(5)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), one)
    order = choosing.ranking(chosen, jnp.broadcast_to(logits, (count, 1, 5)), many)[:, 0]
    first, second = np.asarray(jnp.argsort(-order, axis=-1))[:, :2].T
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    drawn = np.bincount(first, minlength=5) / count
    assert np.abs(drawn - p).max() < 5 * np.sqrt(0.25 / count)
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (first, second), 1 / count)
    expected = p[:, None] * p[None, :] / (1 - p[:, None]) * (1 - np.eye(5))
    assert np.abs(pairs - expected).max() < 5 * np.sqrt(0.25 / count)


def perturbed(row: Row) -> oracles.World:
    """The row's world with the scores that its sampling makes of them, by the text alone."""
    plain, chosen = toys.plain(row.tables, row.start), choices([row.sampling])

    @jax.jit
    def order(logits: Any, told: Text) -> Any:
        return choosing.ranking(chosen, logits[None, None], told)[0, 0]

    def world(texts: list[oracles.Text]) -> list[tuple[np.ndarray, float]]:
        return [
            (np.asarray(order(logits, told(t))), reward)
            for t, (logits, reward) in zip(texts, plain(texts), strict=True)
        ]

    def told(said: oracles.Text) -> Text:
        seen = np.zeros((1, VOCAB), np.int32)
        seen[0, list(row.prompt)] = 1
        path = jnp.zeros((1, 1), jnp.uint32)
        for token in said:
            seen[0, token] += 2
            path = choosing.follow(path, jnp.full((1, 1), token, jnp.int32))
        length = jnp.full((1, 1), len(said), jnp.int32)
        ends = jnp.asarray([[*row.ends, -1, -1, -1][:3]], jnp.int32)
        return Text(jnp.asarray(seen), jnp.full((1, 1, 1), -1, jnp.int32), length, path, ends)

    return world


def sampled_rows(seed: int) -> list[Row]:
    """Rows that choose in every way there is, greedy ones among them."""
    ways = [
        Sampling(),
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.6, seed=2**63 + 1, top_k=3),
        Sampling(temperature=2.0, top_p=0.8),
        Sampling(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=-0.25),
        Sampling(temperature=1.5, seed=-3, min_p=0.2, min_tokens=4, logit_bias=((1, 0.75), (3, -0.5))),
        Sampling(temperature=0.9, seed=7, frequency_penalty=1.0),
    ]
    rows = some_rows(seed, limits=9, worlds=3)
    return [row._replace(sampling=ways[i % len(ways)], prompt=(i % VOCAB, 1)) for i, row in enumerate(rows)]


@pytest.mark.parametrize("decoder", [SLA(width=2, chunk=3, depth=1), SLA(width=3, chunk=1, depth=2, branch_first=True)])
def test_searches_that_sample_are_the_oracles(decoder: SLA) -> None:
    rows = sampled_rows(1)
    for ours, row in zip(toys.play(decoder, rows), rows, strict=True):
        same(ours, oracles.sla(perturbed(row), asked(row, decoder)))


def test_width_one_is_plain_sampling() -> None:
    rows = sampled_rows(2)
    plain = toys.play(Greedy(chunk=4), rows)
    narrow = toys.play(SLA(width=1, chunk=2, depth=2), rows)
    assert [answer.tokens for answer in plain] == [answer.tokens for answer in narrow]
    assert [a.tokens for a in plain] == [oracles.greedy(perturbed(r), r.limit, frozenset(r.ends)) for r in rows]
    assert any(
        a.tokens != b.tokens
        for a, b in zip(plain, toys.play(Greedy(chunk=4), [r._replace(sampling=Sampling()) for r in rows]), strict=True)
    )


def test_a_branch_that_the_filters_forbid_is_no_branch() -> None:
    """With top_k=1 there is one token to choose: a search of width 3 is greedy, in one lane."""
    rows = [row._replace(sampling=Sampling(temperature=1.0, top_k=1)) for row in some_rows(5, limits=8, worlds=2)]
    unique = [row for row in rows if len({*row.tables.logits[0]}) == VOCAB]
    for row in unique:
        tables = row.tables._replace(logits=np.sort(row.tables.logits, axis=1) + np.arange(VOCAB, dtype=np.float32))
        (ours,) = toys.play(SLA(width=3, chunk=2, depth=1), [row._replace(tables=tables)])
        assert ours.tokens == oracles.greedy(toys.plain(tables, row.start), row.limit, frozenset(row.ends))
        assert ours.explored == len(ours.tokens)
    assert unique


def test_alternatives_are_the_models_own() -> None:
    """Two rows ask for 3 alternatives beside each token; sampling and penalties do not change them."""
    rows = [row._replace(sampling=Sampling(temperature=1.0, seed=3)) for row in some_rows(8, limits=6, worlds=2)[-2:]]
    decoder = SLA(width=2, chunk=2, depth=1)
    log: list[Any] = []
    state = toys.state(decoder, rows, tops=3)
    while not log or not all(round_.done for round_ in log[-1]):
        state, packed = toys.program(decoder).round(None, state)
        log.append(unpack(jax.device_get(packed), tops=3))
    for index, row in enumerate(rows):
        tokens = [token for rounds in log for token in rounds[index].tokens]
        tops = [top for rounds in log for top in rounds[index].tops]
        logprobs = [value for rounds in log for value in rounds[index].logprobs]
        for i, (token, top, logprob) in enumerate(zip(tokens, tops, logprobs, strict=True)):
            ((logits, _),) = toys.plain(row.tables, row.start)([tuple(tokens[:i])])
            exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
            order = np.argsort(-exact, kind="stable")[:3]
            assert [t for t, _ in top] == order.tolist()
            assert [p for _, p in top] == pytest.approx(exact[order], abs=1e-5)
            assert logprob == pytest.approx(exact[token], abs=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1e9])
def test_an_early_margin_commits_sooner(margin: float) -> None:
    decoder = SLA(width=2, chunk=2, depth=2, early_margin=margin)
    rows = some_rows(13, limits=10, worlds=3)
    sooner = 0
    for ours, row in zip(toys.play(decoder, rows), rows, strict=True):
        theirs = expected(row, decoder)
        assert (ours.tokens, ours.explored) == (theirs.tokens, theirs.explored)
        late = expected(row, dataclasses.replace(decoder, early_margin=None))
        sooner += late.explored - ours.explored
    assert sooner > 0 if margin < 1 else sooner == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"presence_penalty": 2.5},
        {"repetition_penalty": 0.0},
        {"seed": 2**64},
        {"logit_bias": ((1, 200.0),)},
        {"logit_bias": ((1, 2.0), (1, 3.0))},
        {"logit_bias": tuple((i, 1.0) for i in range(301))},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Sampling(**bad)
