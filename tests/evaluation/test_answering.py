"""Who answers: a model in this process, through every decoder's one door; and a server, as it is and as it fails."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.decode.methods import METHODS
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.evaluation import generate
from sla_jax.evaluation.answering import Ask
from sla_jax.evaluation.local import Local, compilations, short
from sla_jax.evaluation.remote import Remote
from sla_jax.evaluation.rows import read_answers
from sla_jax.evaluation.settings import BenchmarkConfig, GenerateConfig, MethodConfig, ServerConfig
from sla_jax.scoring.registry import ScorerConfig
from tests.evaluation.runs import bytes_of, server

GREEDY = MethodConfig(name="greedy", method="greedy", options={"chunk": 4})
SLA = MethodConfig(name="sla", method="sla", options={"width": 2, "chunk": 4, "depth": 0})
BEST = MethodConfig(name="best", method="best_of_n", options={"n": 2, "chunk": 4}, sampling=Sampling(temperature=0.9))
RULED = MethodConfig(name="ruled", method="best_of_n", sampling=Sampling(temperature=0.9), scorer=ScorerConfig())
WARM = Sampling(temperature=0.9)
WHOLE = [
    BEST,
    MethodConfig(name="beam", method="beam", options={"beams": 2, "chunk": 4}),
    MethodConfig(
        name="rejected", method="speculative_rejection", options={"n": 4, "chunk": 4, "budget": 16}, sampling=WARM
    ),
    MethodConfig(name="steps", method="step_beam", options={"n": 2, "width": 2, "chunk": 4}, sampling=WARM),
    MethodConfig(name="dvts", method="dvts", options={"n": 2, "width": 2, "chunk": 4}, sampling=WARM),
]
HELLO = [{"role": "user", "content": "Hello"}]


# ---- in this process ----


def test_programs_of_a_method_go_with_it(model):
    """A process that keeps them all runs out of memory maps on a long run."""
    local = Local(model, [GREEDY, SLA], {})
    programs = jax.devices()[0].client.live_executables
    seen = []
    for method in (GREEDY, SLA, GREEDY, SLA, GREEDY):
        local.answer(Ask(HELLO, method, 8, 5))
        gc.collect()
        seen.append(len(programs()))
    assert seen[0] == seen[2] == seen[4] and seen[1] == seen[3], "neither is there while the other answers"


def test_methods_that_differ_in_sampling_share_their_programs(model, compiled):
    warm = dataclasses.replace(GREEDY, name="warm", sampling=Sampling(temperature=50.0))
    local = Local(model, [GREEDY, warm], {})
    first = local.answer(Ask(HELLO, GREEDY, 8, 5))
    compiled.clear()
    assert local.answer(Ask(HELLO, warm, 8, 5)).token_ids != first.token_ids and not compiled


def test_every_method_is_tried_here():
    assert {method.method for method in (GREEDY, SLA, *WHOLE)} == set(METHODS)


@pytest.mark.parametrize("method", [GREEDY, SLA, *WHOLE], ids=lambda method: method.name)
def test_a_model_answers_as_it_does_by_itself(model, method):
    reply = Local(model, [method], {}).answer(Ask(HELLO, method, 8, 5))
    sampling = Sampling(temperature=method.sampling.temperature, seed=5)
    chunks = list(model.stream(HELLO, search=method.decoder(), max_tokens=8, sampling=sampling))
    assert reply.text == "".join(chunk.text for chunk in chunks)
    assert reply.token_ids == [token for chunk in chunks for token in chunk.token_ids]
    assert len(reply.rewards) == len(reply.token_ids) == reply.cost["committed_tokens"]
    assert [np.float32(x) for x in reply.rewards] == [np.float32(x) for chunk in chunks for x in chunk.rewards]
    assert reply.finish_reason == chunks[-1].finish_reason
    assert reply.cost["lane_steps"] == chunks[-1].cost.lane_steps and reply.cost["seconds"] > 0
    if method in WHOLE:
        assert reply.candidates is not None and len(reply.candidates) == method.options.get("n", 2)
        whole = [one for one in reply.candidates if one["finish"] != "rejected"]
        assert reply.text == max(whole, key=lambda one: one["score"])["text"]
        assert set(reply.candidates[0]) == {"text", "score", "step_scores", "finish", "n_tokens"}
    else:
        assert reply.candidates is None


def test_a_scorer_ranks(model):
    reply = Local(model, [RULED], {}).answer(Ask(HELLO, RULED, 8, 5))
    assert reply.candidates is not None and len(reply.candidates) == 8
    assert reply.text == max(reply.candidates, key=lambda one: one["score"])["text"]
    assert reply.cost["scorer_tokens"] > 0


def test_what_compiled_is_answered_again(model, compiled):
    local = Local(model, [GREEDY], {})
    calls = []
    stream = model.stream

    class Counting:
        config, tokenizer, prompt_ids = model.config, model.tokenizer, model.prompt_ids

        def stream(self, *words, **options):
            calls.append(words)
            return stream(*words, **options)

    local.model = Counting()
    jax.clear_caches()
    local.answer(Ask(HELLO, GREEDY, 8, 0))
    assert len(calls) == 2 and compiled
    compiled.clear()
    local.answer(Ask(HELLO, GREEDY, 8, 0))
    assert len(calls) == 3 and not compiled


def test_compilations_are_heard_while_listening_and_no_longer():
    with compilations() as seen:
        jax.jit(lambda x: x * 3 + 1)(jnp.float32(2))
    heard = len(seen)
    jax.jit(lambda x: x * 5 + 2)(jnp.float32(2))
    assert heard >= 1 and len(seen) == heard


def test_what_a_model_cannot_do_is_refused_before_it_is_asked(model, bare_model):
    with pytest.raises(UserError, match="the method sla ranks by rewards, and this checkpoint has no reward channel"):
        Local(bare_model, [GREEDY, SLA], {})
    assert Local(bare_model, [GREEDY, RULED], {}).answer(Ask(HELLO, GREEDY, 4, 0)).rewards == []
    product = MethodConfig(name="p", method="dvts", options={"aggregate": "prod"}, sampling=Sampling(temperature=1.0))
    with pytest.raises(UserError, match="the method p: aggregate 'prod'"):
        Local(model, [product], {})
    with pytest.raises(UserError, match="context holds 256"):
        Local(model, [GREEDY], {}).check(Ask(HELLO, GREEDY, 300, 0))


def test_numbers_are_short_and_finite():
    assert short(float(jnp.float32(0.1))) == 0.1
    assert short(float("nan")) is None and short(float("-inf")) is None


def test_a_real_run_interrupted_is_the_same_byte_for_byte(model, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Hello"}, {"turns": ["What is the capital of France?", "And of Japan?"]}, {"prompt": "7 and 49"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks, methods = (BenchmarkConfig(name="own", file=str(file)),), (SLA, BEST)

    def run(name, answerer):
        config = GenerateConfig(
            name=name, checkpoint="tiny", benchmarks=benchmarks, methods=methods, max_tokens=6, out=tmp_path / name
        )
        return generate.generate(config, answerer)

    class Stops(Local):
        left = 3

        def answer(self, ask):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().answer(ask)

    whole = run("whole", Local(model, methods, {}))
    with pytest.raises(KeyboardInterrupt):
        run("cut", Stops(model, methods, {}))
    cut = run("cut", Local(model, methods, {}))
    assert bytes_of(cut, "answers") == bytes_of(whole, "answers") != {}
    answers = read_answers(cut / "answers" / "own" / "best.jsonl")
    assert [len(answer.turns) for answer in answers] == [1, 2, 1]
    assert all(turn.candidates and turn.cost["seconds"] > 0 for answer in answers for turn in answer.turns)


# ---- a server ----


def said(text="Hi.", **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def ask(url, method=GREEDY, pauses=None, **config):
    remote = Remote(ServerConfig(url=url, model="m", **config), (pauses if pauses is not None else []).append)
    return remote.answer(Ask(HELLO, method, 8, 5))


def test_any_server_is_asked_for_what_openai_knows(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    method = MethodConfig(name="a", method="greedy", sampling=Sampling(temperature=0.5, top_p=0.9))
    with server(lambda body: (200, said())) as (url, bodies):
        reply = ask(url, method, key_variable="MY_KEY")
    assert reply[:4] == ("Hi.", [], "stop", []) and reply.candidates is None
    assert reply.cost["committed_tokens"] == 2 and reply.cost["seconds"] > 0
    wanted = {"model": "m", "messages": HELLO, "max_tokens": 8, "temperature": 0.5, "seed": 5, "top_p": 0.9}
    assert bodies == [{**wanted, "path": "/v1/chat/completions", "key": "Bearer secret"}]


def test_variables_of_the_template_are_sent_under_the_name_that_servers_know():
    with server(lambda body: (200, said())) as (url, bodies):
        Remote(ServerConfig(url=url, model="m"), template={"enable_thinking": False}).answer(Ask(HELLO, GREEDY, 8, 5))
    assert bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_our_server_is_asked_for_searches_and_tells_of_them():
    candidate = {"candidate": 0, "text": "Hi.", "score": 0.5, "finish": "stop", "round": 0, "n_tokens": 2}
    rounds = [{"round": 0, "rewards": [0.5, 0.25], "token_ids": [7, 2]}]
    more = {"token_ids": [7, 2], "search": rounds, "candidates": [candidate], "cost": {"steps": 2, "seconds": 0.5}}
    with server(lambda body: (200, said(**more))) as (url, bodies):
        reply = ask(url, BEST, extensions=True)
        ask(url, SLA, extensions=True, rewards=False)
    assert reply.token_ids == [7, 2] and reply.rewards == [0.5, 0.25] and reply.cost == {"steps": 2, "seconds": 0.5}
    assert reply.candidates == [{"text": "Hi.", "score": 0.5, "step_scores": [], "finish": "stop", "n_tokens": 2}]
    best, sla = (body["search"] for body in bodies)
    told = {"return_cost": True, "return_rewards": True, "return_candidates": True}
    assert best == {"method": "best_of_n", "n": 2, "chunk": 4, **told}
    assert sla["depth"] == 0 and not sla["return_rewards"] and not sla["return_candidates"]
    assert all(body["return_token_ids"] for body in bodies)


def test_half_a_character_of_a_server_is_written_as_one_that_is_missing():
    candidate = {"text": "\ude00", "score": 0.5, "finish": "stop", "n_tokens": 2}
    with server(lambda body: (200, said("😀 \ud83d", candidates=[candidate]))) as (url, _):
        reply = ask(url)
    assert reply.text == "😀 \ufffd" and reply.candidates[0]["text"] == "\ufffd"


def test_our_server_says_whose_rewards_it_gives():
    with server(lambda body: (200, said())) as (url, bodies):
        ours, other = (Remote(ServerConfig(url=url, model="m", extensions=extensions)) for extensions in (True, False))
        assert ours.about == {"channel": "theirs"} and other.about == {} and not bodies
        profiled = MethodConfig(name="wide", method="sla", profile="wide")
        assert ours.options(profiled) == {"width": 3} and ours.options(SLA) == SLA.options
    with pytest.raises(UserError, match="gives no answer"):
        _ = Remote(ServerConfig(url=url, model="m", extensions=True, retries=0)).about


def test_what_may_pass_is_tried_again_after_pauses():
    replies = iter([(503, {"error": {"message": "busy"}}), (429, b"slow down"), (500, b""), (200, said("At last."))])
    pauses: list[float] = []
    with server(lambda body: next(replies)) as (url, bodies):
        assert ask(url, pauses=pauses).text == "At last."
    assert len(bodies) == 4 and pauses == [1.0, 3.0, 4.0], "1, then Retry-After's 3, then 4"


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((400, {"error": {"message": "max_tokens is 8; no."}}), "refused a request (400): max_tokens is 8; no."),
        ((404, b"nothing here"), "refused a request (404): nothing here"),
        ((200, b"<html>"), "answers what is no JSON"),
        ((200, {"choices": []}), "answers without choices[0].message.content"),
        ((200, {"choices": [{"message": {"content": "a"}, "finish_reason": None}]}), "the finish_reason None"),
        ((200, said(token_ids=[1], search=[{"rewards": [None]}])), "tells a reward that is no number"),
        ((200, said(token_ids=[1, 2], search=[{"rewards": [0.5]}])), "tells 1 rewards of 2 tokens"),
        ((200, b'{"choices": [1e999]}'), "answers what is no JSON"),
        ((200, b"[" * 100_000), "answers what is no JSON"),
        ((200, said(search=5)), "cannot be read"),
        ((200, said(search=[[]])), "cannot be read"),
        ((200, said(token_ids=["a"])), "'a' is no whole number"),
        ((200, said(token_ids=[10**30])), "is no whole number"),
        ((200, said(token_ids=[0.5])), "0.5 is no whole number"),
        ((200, said(candidates=[{"text": 7}])), "7 is no text"),
        ((200, said(candidates=[{"text": "a", "score": True, "finish": "stop", "n_tokens": 1}])), "True is no number"),
        ((200, said(candidates=["a"])), "cannot be read"),
        ((200, said(cost="seconds")), "cannot be read"),
        ((200, said(cost={"seconds": "long"})), "'long' is no number"),
        ((200, {**said(), "usage": ["x"]}), "cannot be read"),
        ((302, b""), "refused a request (302): it sends on to"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(reply, says):
    with server(lambda body: reply) as (url, bodies):
        with pytest.raises(UserError) as error:
            ask(url)
    assert says in str(error.value) and url in str(error.value) and len(bodies) == 1


def test_options_of_a_profile_that_are_none_are_refused():
    odd = Remote(ServerConfig(url="http://127.0.0.1:9/v1", model="m", extensions=True))
    for entry in ({"search": None}, {"search": []}, {"search": {"options": 3}}, {}):
        odd._asked = lambda url, body, entry=entry: {"channel": "c", **entry}
        with pytest.raises(UserError, match="says nothing of the options of its profile wide"):
            odd.options(MethodConfig(name="wide", method="sla", profile="wide"))


def test_an_unreachable_server_is_a_clear_error():
    with server(lambda body: (200, said())) as (url, _):
        pass
    pauses: list[float] = []
    with pytest.raises(UserError, match="gives no answer, tried 3 times: .*refused.* Is the server running"):
        ask(url, pauses=pauses, retries=2)
    assert pauses == [1.0, 2.0]


def test_a_run_goes_on_when_its_server_is_back(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(4)))
    plain = MethodConfig(name="greedy", method="greedy")

    def run(url, name):
        config = GenerateConfig(
            name=name,
            out=tmp_path / name,
            server=ServerConfig(url=url, model="m", retries=0, parallel=2),
            benchmarks=(BenchmarkConfig(name="own", file=str(file)),),
            methods=(plain,),
        )
        assert config.server is not None
        return generate.generate(config, Remote(config.server))

    down = [True]

    def reply(body):
        question = body["messages"][0]["content"]
        return (503, b"down") if down[0] and question == "p2" else (200, said(f"To {question}."))

    with server(reply) as (url, _):
        with pytest.raises(
            UserError, match=r"own, prompt '2', turn 1, method greedy: .* tried once: it answers 503: down"
        ):
            run(url, "cut")
        assert [one.id for one in read_answers(tmp_path / "cut" / "answers" / "own" / "greedy.jsonl")] == ["0", "1"]
        down[0] = False
        cut, whole = run(url, "cut"), run(url, "whole")
    assert bytes_of(cut, "answers") == bytes_of(whole, "answers")
