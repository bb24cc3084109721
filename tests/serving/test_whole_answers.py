"""Decoders of whole answers behind the server, on a tiny model: answers are the library's, alone and among others."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import sla_jax
from sla_jax.decode.completion import Completion
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.serving.request import Request
from sla_jax.serving.settings import Profile
from sla_jax.serving.worker import open_model
from tests.programs import tiny_checkpoint
from tests.serving.real_worker import Driver, serve_config, started
from tests.serving.toy_worker import PATIENCE
from tests.serving.whole import CHAT, Whole, ids, serving, until

PROFILES = (
    Profile(name="greedy", method="greedy", chunk=3, slots=2, traces=True),
    Profile(name="sla", method="sla", width=2, chunk=3, depth=1, slots=2, traces=True),
    Profile(name="best", method="best_of_n", n=3, chunk=4, slots=2),
    Profile(name="rejection", method="speculative_rejection", n=4, chunk=4, slots=2),
    Profile(name="beam", method="beam", beams=3, chunk=5, slots=2),
    Profile(name="steps", method="step_beam", n=4, width=2, chunk=4, separator="r", lookahead=1, max_steps=5, slots=2),
    Profile(name="dvts", method="dvts", n=4, width=2, chunk=4, separator="e", aggregate="mean", boxed=True, slots=2),
)
WARM = {"temperature": 1.0, "seed": 7}
LONG = {"temperature": 1.0, "seed": 3, "ignore_eos": True}
# profile, prompt, max_tokens, how tokens are chosen; lengths on both sides of every bucket
CASES: dict[str, tuple[str, Any, int, dict[str, Any]]] = {
    "greedy": ("greedy", ids(1, 9), 20, {}),
    "sla": ("sla", CHAT, 14, {}),
    "best": ("best", CHAT, 22, WARM),
    "best, long": ("best", ids(2, 70), 70, {**WARM, "top_k": 20, "frequency_penalty": 0.4}),
    "rejection": ("rejection", CHAT, 22, WARM),
    "rejection, other limit": ("rejection", CHAT, 50, {**WARM, "min_tokens": 30}),
    "rejection, long": ("rejection", ids(4, 12), 200, {**WARM, "seed": 5, "min_p": 0.02, "min_tokens": 150}),
    "beam": ("beam", CHAT, 22, {}),
    "beam, other limit": ("beam", ids(3, 70), 13, {}),
    "steps": ("steps", CHAT, 50, {**WARM, "min_tokens": 30}),
    "steps, long": ("steps", ids(5, 70), 90, {**WARM, "seed": 2, "top_k": 30}),
    "dvts": ("dvts", CHAT, 60, {**WARM, "min_tokens": 20}),
    "dvts, short": ("dvts", ids(6, 9), 11, {**WARM, "seed": 9}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("whole_answers") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> sla_jax.LanguageModel:
    return sla_jax.load(checkpoint)


@pytest.fixture(scope="module")
def expected(model: sla_jax.LanguageModel) -> dict[str, list[sla_jax.Chunk]]:
    """Every case alone, through the library."""
    decoders = {profile.name: profile.decoder() for profile in PROFILES}

    def chunks(profile: str, prompt: Any, limit: int, sampling: dict[str, Any]) -> list[sla_jax.Chunk]:
        options: dict[str, Any] = {"max_tokens": limit, "sampling": Sampling(**sampling)}
        return list(model.stream(prompt, search=decoders[profile], **options))

    return {name: chunks(*case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def trees(model: sla_jax.LanguageModel) -> dict[str, list[dict[str, Any]]]:
    """The trees of a search, round by round, through the library."""
    found = {}
    for name in ("greedy", "sla"):
        profile, prompt, limit, sampling = CASES[name]
        decoder = next(one.decoder() for one in PROFILES if one.name == profile)
        options: dict[str, Any] = {"max_tokens": limit, "sampling": Sampling(**sampling), "return_tree": True}
        chunks = model.stream(prompt, search=decoder, **options)
        found[name] = [dataclasses.asdict(chunk.tree) for chunk in chunks if chunk.tree is not None]
    return found


@pytest.fixture(scope="module")
def server(checkpoint: Path, expected: Any, trees: Any) -> Iterator[Whole]:
    """Two lengths of the cache, two of candidates. What the library compiles is compiled before."""
    with serving(checkpoint, PROFILES, engine={"context": 256, "buckets": (64, 256)}) as server:
        yield server


@pytest.fixture
def whole(server: Whole) -> Iterator[Whole]:
    """The server; every test leaves it empty, and none makes it compile anything."""
    yield server
    until(server.settled, "the server is empty")
    assert all(not pools.seats for pools in server.worker.worker.pools.values())
    now, ready = server.compiled()
    assert now == ready


def body(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """(path, what is sent)."""
    profile, prompt, limit, sampling = CASES[name]
    chat = isinstance(prompt[0], dict)
    source = {"messages" if chat else "prompt": prompt}
    asked = {**source, "model": f"tiny:{profile}", "max_tokens": limit, **sampling, "return_token_ids": True, **more}
    return "/v1/chat/completions" if chat else "/v1/completions", asked


def tokens_of(chunks: list[sla_jax.Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def ended_of(chunks: list[sla_jax.Chunk]) -> list[Completion]:
    return sorted((one for chunk in chunks for one in chunk.ended), key=lambda one: one.candidate)


def streamed(whole: Whole, name: str, **more: Any) -> list[dict[str, Any]]:
    path, asked = body(name, stream=True, **more)
    with httpx.stream("POST", whole.url + path, json=asked, timeout=PATIENCE) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("order", "together"), [(1, 1), (1, 9), (-1, 4)])
def test_answers_are_the_librarys_alone_and_among_others(whole, expected, order, together):
    async def go() -> list[list[int]]:
        turns = asyncio.Semaphore(together)

        async def one(name: str) -> list[int]:
            path, asked = body(name)
            async with turns:
                reply = await client.post(path, json=asked)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["token_ids"]

        async with httpx.AsyncClient(base_url=whole.url, timeout=PATIENCE) as client:
            return await asyncio.gather(*(one(name) for name in names))

    names = list(CASES)[::order]
    answers = dict(zip(names, asyncio.run(go()), strict=True))
    assert answers == {name: tokens_of(chunks) for name, chunks in expected.items()}
    assert len({len(answer) for answer in answers.values()}) > 4


@pytest.mark.parametrize("name", ["best", "rejection", "rejection, long", "beam", "steps", "dvts"])
def test_every_candidate_is_told_and_is_the_librarys(whole, expected, name):
    path, asked = body(name, search={"return_candidates": True})
    reply = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()
    told = sorted(reply["choices"][0]["candidates"], key=lambda one: one["candidate"])
    ended = ended_of(expected[name])
    assert [(one["candidate"], one["finish"], one["round"], one["n_tokens"]) for one in told] == [
        (one.candidate, one.finish, one.round, len(one.tokens)) for one in ended
    ]
    assert [one["score"] for one in told] == pytest.approx([one.score for one in ended], rel=1e-3, abs=1e-3)
    for one, library in zip(told, ended, strict=True):
        assert one.get("step_scores", []) == pytest.approx(library.step_scores, rel=1e-3, abs=1e-3)
    spoken = reply["choices"][0].get("message", {}).get("content") or reply["choices"][0].get("text")
    assert spoken == expected[name][-1].text and spoken in {one["text"] for one in told}
    assert reply["usage"]["completion_tokens_details"]["explored_tokens"] == expected[name][-1].usage.explored_tokens
    assert reply["usage"]["completion_tokens"] == len(tokens_of(expected[name]))


@pytest.mark.parametrize("name", ["best, long", "rejection", "beam", "steps", "dvts"])
def test_a_stream_tells_of_progress_and_then_the_answer(whole, expected, name):
    chunks = streamed(whole, name, stream_options={"include_usage": True}, search={"return_candidates": True})
    *rounds, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == len(tokens_of(expected[name]))
    mine = [(one["progress"]["phase"], one["progress"]["steps"], one["progress"]["tokens"]) for one in rounds]
    assert mine == sorted(mine) and len(mine) > 1
    library = [(chunk.phase, chunk.cost.steps, chunk.alive, chunk.usage.explored_tokens) for chunk in expected[name]]
    told = [one["progress"] for one in rounds]
    assert [(one["phase"], one["steps"], one["alive"], one["explored_tokens"]) for one in told] == library
    assert max(one["phase"] for one in told) > 0 or name not in ("rejection", "steps", "dvts")
    *silent, last = [one["choices"][0] for one in rounds]
    assert all(choice["token_ids"] == [] and choice["finish_reason"] is None for choice in silent)
    assert last["token_ids"] == tokens_of(expected[name])
    assert last["finish_reason"] == expected[name][-1].finish_reason
    assert len([one for chunk in rounds for one in chunk.get("candidates", [])]) == len(ended_of(expected[name]))


def test_the_openai_client_passes_over_progress(whole, expected):
    asked: dict[str, Any] = {"model": "tiny:best", "messages": CHAT, "max_tokens": 22, **WARM}
    text = expected["best"][-1].text
    with openai.OpenAI(base_url=f"{whole.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        stream = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        with client.chat.completions.stream(**asked, stop=text[3:6]) as helped:
            for _ in helped:
                pass
            final = helped.get_final_completion()
        reply = client.chat.completions.create(**asked, n=2, logprobs=True)
    assert final.choices[0].message.content == text[: text.index(text[3:6])]
    assert reply.choices[0].message.content == text
    assert reply.choices[1].message.content != reply.choices[0].message.content
    won = max(ended_of(expected["best"]), key=lambda one: one.score)
    content = reply.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == pytest.approx(won.logprobs, rel=1e-3, abs=1e-3)


def test_rewards_of_the_chosen_answer(whole, expected):
    path, asked = body("rejection", search={"return_rewards": True})
    (round_,) = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()["choices"][0]["search"]
    won = max((one for one in ended_of(expected["rejection"]) if one.finish != "rejected"), key=lambda one: one.score)
    assert round_["rewards"] == pytest.approx(won.rewards, rel=1e-3, abs=1e-3)
    assert (round_["token_ids"], round_["margin"]) == (won.tokens, None)
    assert round_["score"] == pytest.approx(won.score, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", list(CASES))
def test_what_it_cost_is_told_with_the_last_part(whole, expected, name):
    *others, last = streamed(whole, name, search={"return_cost": True})
    assert not any("cost" in one for one in others)
    wanted = dataclasses.asdict(expected[name][-1].cost)
    told = last["cost"]
    assert set(told) == {field for field in wanted if not field.startswith("scorer_")}
    assert told | {"seconds": 0} == {field: wanted[field] for field in told} | {"seconds": 0}
    assert 0 < told["seconds"] < PATIENCE


def test_what_an_answer_cost_that_a_stop_string_cut(whole, expected):
    path, asked = body("sla", stop=expected["sla"][-1].text[-1:] or "x", search={"return_cost": True})
    reply = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()
    cost, usage = reply["choices"][0]["cost"], reply["usage"]
    assert cost["committed_tokens"] == usage["completion_tokens"]
    assert cost["explored_tokens"] == usage["completion_tokens_details"]["explored_tokens"]


@pytest.mark.parametrize("name", ["greedy", "sla"])
def test_trees_are_the_librarys(whole, trees, expected, name):
    wanted = trees[name]
    assert len(wanted) == len(expected[name])
    path, asked = body(name, search={"return_tree": True})
    rounds = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()["choices"][0]["search"]
    assert [one["search"] for one in streamed(whole, name, search={"return_tree": True}) if "search" in one] == rounds
    assert [one["round"] for one in rounds] == list(range(len(wanted)))
    assert len(wanted) > 3 and max(len(tree["branches"]) for tree in wanted) >= (4 if name == "sla" else 1)
    for mine, tree in zip((one["tree"] for one in rounds), wanted, strict=True):
        assert mine["best"] == tree["best"]
        assert mine["anchor"] == pytest.approx(tree["anchor"], rel=1e-3, abs=1e-3)
        for branch, other in zip(mine["branches"], tree["branches"], strict=True):
            assert branch.keys() == other.keys()
            for field, value in other.items():
                close = field in ("score", "logprobs", "rewards", "entropies")
                assert branch[field] == (pytest.approx(value, rel=1e-3, abs=1e-3) if close else value), field


def test_a_tree_that_nobody_asked_for_is_not_told(whole):
    path, asked = body("sla", search={"return_rewards": True})
    rounds = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()["choices"][0]["search"]
    assert rounds and all(one["token_ids"] and "tree" not in one for one in rounds)


@pytest.mark.parametrize("profile", ["best", "rejection", "beam", "steps"])
def test_a_client_that_leaves_frees_its_slot(whole, expected, profile):
    """The device is held until the client has gone; who comes next gets an answer of its own."""
    gone = threading.Event()
    rounds = whole.worker.rounds[profile]

    def hold(name: str) -> None:
        if name == profile and whole.worker.rounds[name] == rounds + 3:
            assert gone.wait(PATIENCE)

    whole.worker.before_round = hold
    path, asked = "/v1/completions", {"model": f"tiny:{profile}", "prompt": ids(6, 20), "max_tokens": 200}
    asked |= {"ignore_eos": True, "stream": True} | ({} if profile == "beam" else {"temperature": 1.0})
    with httpx.stream("POST", whole.url + path, json=asked, timeout=PATIENCE) as response:
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
        assert "progress" in json.loads(first.removeprefix("data: "))
    gone.set()
    until(whole.settled, "its slot is free")
    whole.worker.before_round = lambda name: None
    assert whole.worker.rounds[profile] - rounds < 200 // 5
    path, asked = body(profile)
    reply = httpx.post(whole.url + path, json=asked, timeout=PATIENCE).json()
    assert reply["choices"][0]["token_ids"] == tokens_of(expected[profile])


def test_candidates_and_rounds_are_counted(whole, expected):
    def value(name: str, **labels: str) -> float:
        return whole.metrics.registry.get_sample_value(name, {"profile": "rejection", **labels}) or 0.0

    def counts() -> list[float]:
        outcomes = [value("sla_jax_candidates_total", outcome=outcome) for outcome in ("stop", "length", "rejected")]
        return [*outcomes, value("sla_jax_explored_tokens_total"), value("sla_jax_committed_tokens_total")]

    before = counts()
    path, asked = body("rejection")
    httpx.post(whole.url + path, json=asked, timeout=PATIENCE)
    ended = [one.finish for one in ended_of(expected["rejection"])]
    wanted = [ended.count(outcome) for outcome in ("stop", "length", "rejected")]
    usage = expected["rejection"][-1].usage
    added = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    assert added == [*wanted, usage.explored_tokens, usage.completion_tokens]


def test_heads_over_two_devices_give_the_same_answers(checkpoint, model, expected):
    worker = started(checkpoint, profiles=PROFILES[4:] + PROFILES[2:4], mesh={"tensor": 2}, engine={"buckets": (128,)})
    requests = []
    for name in ("best", "rejection", "rejection, other limit", "beam", "steps", "dvts", "dvts, short"):
        profile, prompt, limit, sampling = CASES[name]
        tokens, chosen = tuple(model.prompt_ids(prompt)), Sampling(**sampling)
        common = {"prompt": tokens, "max_tokens": limit, "ends": model.end_tokens, "sampling": chosen}
        requests.append(Request(id=name, profile=profile, **common))
    answers = Driver(worker).run(requests, stagger=1)
    assert answers == {request.id: tokens_of(expected[request.id]) for request in requests}


def test_what_cannot_be_served_is_refused(checkpoint, tmp_path):
    with pytest.raises(UserError, match="best .best_of_n. decodes each request alone.*mesh.data=2"):
        open_model(serve_config(checkpoint, profiles=PROFILES[:3], mesh={"data": 2}))
    bare = tiny_checkpoint(tmp_path / "bare", channel=False)
    with pytest.raises(UserError, match="rejection searches with rewards .*no reward channel"):
        open_model(serve_config(bare, profiles=(PROFILES[0], PROFILES[3])))
    open_model(serve_config(bare, profiles=(PROFILES[0], dataclasses.replace(PROFILES[3], score="logprob_mean"))))
    for template, said in (({"messages": 1}, "'messages' is not free"), ({"enable_thinking": False}, "does not read")):
        with pytest.raises(UserError, match=said):
            open_model(serve_config(bare, profiles=(dataclasses.replace(PROFILES[0], template=template),)))
