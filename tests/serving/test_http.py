"""The HTTP app before a scripted service: what is said, counted, cut and asked of the service."""

import dataclasses
import itertools
import json
import logging

import pytest

from sla_jax.serving.request import Event
from sla_jax.serving.settings import Limits
from tests.serving.asgi import call, events
from tests.serving.fake import ANSWER, MODEL, TOKENIZER, FakeService, decode, encode, fake_app, logprob, tops

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello?"}]}
TOKENS = [*encode(ANSWER), 2]


def ask(service: FakeService, path: str, body: dict, **settings):
    response = call(fake_app(service, **settings), path, body)
    assert response.status_code == 200, response.text
    assert service.reserved == 0
    return response


# ---- answers, whole and streamed ----


def test_a_completion(tiny_tokenizer):
    service = FakeService()
    reply = ask(service, TEXT, {"model": "tiny", "prompt": "Hello?", "max_tokens": 200}).json()
    assert reply["object"] == "text_completion"
    assert reply["model"] == "tiny"
    [choice] = reply["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (ANSWER, "stop", None)
    assert reply["usage"]["prompt_tokens"] == len(encode("Hello?"))
    assert reply["usage"]["completion_tokens"] == len(TOKENS)
    assert reply["usage"]["total_tokens"] == len(encode("Hello?")) + len(TOKENS)
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert reply["usage"]["completion_tokens_details"] == {"explored_tokens": 2 * len(TOKENS)}
    [request] = service.requests
    assert (request.profile, request.prompt, request.ends) == ("greedy", tuple(encode("Hello?")), (2,))


def test_a_streamed_completion_says_the_same():
    service = FakeService()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = ask(service, TEXT, {"prompt": "Hello?", "max_tokens": 200, **options})
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, last = events(response)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(TOKENS)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


def test_a_chat_goes_through_the_template_and_gets_the_rest_of_the_context():
    service = FakeService()
    reply = ask(service, CHAT, HELLO).json()
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    [request] = service.requests
    written = TOKENIZER.decode(list(request.prompt))
    assert written == "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    assert request.max_tokens == MODEL.context - len(request.prompt)


def test_a_streamed_chat_begins_with_a_role():
    chunks = events(ask(FakeService(), CHAT, {**HELLO, "stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert "".join(delta["content"] for delta in deltas) == ANSWER
    assert all("usage" not in chunk for chunk in chunks)
    assert "\ufffd" not in "".join(delta["content"] for delta in deltas)


def test_a_developer_is_the_system_and_text_parts_are_joined():
    service = FakeService()
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    ask(service, CHAT, {"messages": [{"role": "developer", "content": parts}, *HELLO["messages"]]})
    written = TOKENIZER.decode(list(service.requests[0].prompt))
    assert written.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?")


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("ab", [encode("ab")]),
        (["ab", "c"], [encode("ab"), encode("c")]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_every_kind_of_prompt(prompt, wanted):
    service = FakeService()
    reply = ask(service, TEXT, {"prompt": prompt, "n": 2, "max_tokens": 3}).json()
    assert [list(request.prompt) for request in service.requests] == [ids for ids in wanted for _ in range(2)]
    assert [choice["index"] for choice in reply["choices"]] == list(range(2 * len(wanted)))
    assert reply["usage"]["prompt_tokens"] == sum(map(len, wanted))
    assert reply["usage"]["completion_tokens"] == 3 * 2 * len(wanted)


def test_max_tokens_is_sixteen_or_what_is_left():
    service = FakeService()
    ask(service, TEXT, {"prompt": "a"})
    ask(service, TEXT, {"prompt": [5] * (MODEL.context - 3)})
    ask(service, CHAT, {**HELLO, "max_completion_tokens": 5})
    assert [request.max_tokens for request in service.requests] == [16, 3, 5]


def test_sampling_arrives_as_it_was_asked_for():
    service = FakeService()
    wishes = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.25,
        "min_tokens": 2,
    }
    body = {"prompt": "a", **wishes, "seed": 42, "n": 3, "ignore_eos": True, "logit_bias": {"7": -100, "319": 5}}
    ask(service, TEXT, body)
    first, *others = [request.sampling for request in service.requests]
    assert {name: getattr(first, name) for name in wishes} == wishes
    assert (first.seed, first.logit_bias) == (42, ((7, -100.0), (319, 5.0)))
    assert len({42, *(sampling.seed for sampling in others)}) == 3
    assert [dataclasses.replace(sampling, seed=42) for sampling in others] == [first, first]
    assert service.requests[0].ends == ()
    ask(service, TEXT, body)
    assert [request.sampling for request in service.requests[3:]] == [first, *others]


def test_without_a_seed_every_request_has_its_own():
    service = FakeService()
    for _ in range(2):
        ask(service, TEXT, {"prompt": "a", "temperature": 1, "top_p": None, "seed": None})
    ask(service, TEXT, {"prompt": "a"})
    seeds = [request.sampling.seed for request in service.requests]
    assert len(set(seeds)) == 3
    assert seeds[2] == 0
    assert service.requests[0].sampling.top_p == 1.0


# ---- stop strings ----


@pytest.mark.parametrize("stop", ["Paris", "is Paris. 東", "本", "👍🏽", "T", "!", "capital of"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("profile", ["greedy", "sla", "wide"])
def test_text_is_cut_before_a_stop_string_wherever_chunks_end(stop, stream, profile):
    service = FakeService()
    body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stop": [stop, "never"], "stream": stream}
    body["search"] = {"profile": profile}
    response = ask(service, TEXT, body)
    choices = [chunk["choices"][0] for chunk in events(response)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == ANSWER.split(stop)[0]
    assert choices[-1]["finish_reason"] == "stop"
    assert service.cancelled == [f"{response.headers['x-request-id']}-0"]


def test_a_stop_string_that_never_comes_is_given_back_whole():
    service = FakeService()
    chunks = events(ask(service, TEXT, {"prompt": "a", "max_tokens": 200, "stop": "👍🏽!?", "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == ANSWER
    assert service.cancelled == []


def test_tokens_after_the_stop_string_are_not_counted():
    reply = ask(
        FakeService(), TEXT, {"prompt": "a", "max_tokens": 99, "stop": "capital", "return_token_ids": True}
    ).json()
    [choice] = reply["choices"]
    length = next(n for n in itertools.count() if "capital" in decode(TOKENS[:n]))
    assert choice["token_ids"] == TOKENS[:length]
    assert choice["prompt_token_ids"] == encode("a")
    assert reply["usage"]["completion_tokens"] == length


# ---- log-probabilities and echo ----


def test_logprobs_of_a_completion():
    reply = ask(FakeService(), TEXT, {"prompt": "a", "max_tokens": 4, "logprobs": 2}).json()
    logprobs = reply["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == reply["choices"][0]["text"]
    assert logprobs["token_logprobs"] == [logprob(token) for token in TOKENS[:4]]
    assert logprobs["text_offset"] == [len(decode(TOKENS[:n])) for n in range(4)]
    assert logprobs["top_logprobs"][0] == {decode([token]): value for token, value in tops(TOKENS[0], 2)}


def test_streamed_logprobs_are_those_of_the_whole_answer():
    body = {"prompt": "a", "max_tokens": 200, "logprobs": 1, "echo": True, "stop": "42"}
    whole = ask(FakeService(), TEXT, body).json()["choices"][0]["logprobs"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in events(ask(FakeService(), TEXT, {**body, "stream": True}))]
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole
    assert whole["text_offset"][:3] == [0, len("a"), len("a") + len(decode(TOKENS[:1]))]


def test_logprobs_of_a_chat():
    reply = ask(FakeService(), CHAT, {**HELLO, "max_tokens": 200, "logprobs": True, "top_logprobs": 2}).json()
    content = reply["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [logprob(token) for token in TOKENS]
    assert content[0]["token"] == decode(TOKENS[:1])
    assert content[0]["bytes"] == list(decode(TOKENS[:1]).encode())
    assert [entry["token"] for entry in content][-1] == "<|im_end|>"
    assert [len(entry["top_logprobs"]) for entry in content] == [2] * len(TOKENS)
    assert None in [entry["bytes"] for entry in content]
    assert all("\ufffd" in entry["token"] for entry in content if entry["bytes"] is None)


def test_echo_says_the_prompt_first():
    reply = ask(FakeService(), TEXT, {"prompt": ["Grüße ", "x"], "max_tokens": 3, "echo": True}).json()
    assert [choice["text"] for choice in reply["choices"]] == [start + decode(TOKENS[:3]) for start in ("Grüße ", "x")]


@pytest.mark.parametrize("prompt", ["Grüße aus Köln", encode("Grüße aus Köln")])
def test_the_prompts_own_logprobs(prompt):
    service = FakeService()
    reply = ask(service, TEXT, {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}).json()
    [choice] = reply["choices"]
    ids = encode("Grüße aus Köln")
    assert service.requests == []
    assert [inspection.tokens for inspection in service.inspections] == [tuple(ids)]
    assert (choice["text"], choice["finish_reason"]) == ("Grüße aus Köln", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, *map(logprob, ids[1:])]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert len(choice["logprobs"]["text_offset"]) == len(ids)
    assert choice["logprobs"]["text_offset"][-1] < len("Grüße aus Köln")
    assert reply["usage"]["completion_tokens"] == 0


# ---- search ----


@pytest.mark.parametrize(
    ("body", "profile"),
    [
        ({}, "greedy"),
        ({"model": "tiny:sla"}, "sla"),
        ({"search": {"profile": "wide"}}, "wide"),
        ({"search": {"method": "sla"}}, "sla"),
        ({"search": {"width": 4, "depth": 1}}, "wide"),
        ({"model": "tiny:wide", "search": {"method": "sla", "profile": "wide"}}, "wide"),
        ({"search": {"return_tree": False}}, "greedy"),
    ],
)
def test_a_search_is_chosen_by_name_or_by_settings(body, profile):
    service = FakeService()
    reply = ask(service, CHAT, {**HELLO, **body}).json()
    assert service.requests[0].profile == profile
    assert reply["model"] == body.get("model", "tiny")


@pytest.mark.parametrize("stream", [False, True])
def test_rounds_are_told_on_request(stream):
    body = {"prompt": "a", "max_tokens": 8, "stream": stream, "search": {"profile": "sla", "return_rewards": True}}
    response = ask(FakeService(), TEXT, body)
    if stream:
        rounds = [chunk["search"] for chunk in events(response) if "search" in chunk]
    else:
        rounds = response.json()["choices"][0]["search"]
    assert [item["round"] for item in rounds] == [0, 1, 2]
    assert [token for item in rounds for token in item["token_ids"]] == TOKENS[:8]
    assert [reward for item in rounds for reward in item["rewards"]] == [token / 100 for token in TOKENS[:8]]
    assert {(item["score"], item["margin"]) for item in rounds} == {(0.5, 0.25)}


# ---- rewards ----


def test_rewards_of_a_chat_close_the_turn():
    reply = ask(FakeService(), "/v1/rewards", {**HELLO, "response": "Yes."}).json()
    assert reply["token_ids"] == [*encode("Yes."), 2]
    assert reply["rewards"] == [token / 100 for token in reply["token_ids"]]
    assert reply["last"] == 0.02
    assert reply["mean"] == pytest.approx(sum(reply["rewards"]) / len(reply["rewards"]))
    assert reply["object"] == "rewards"


@pytest.mark.parametrize("rest", [{"response": " b c"}, {"token_ids": encode(" b c")}])
def test_rewards_of_a_prompt(rest):
    service = FakeService()
    reply = ask(service, "/v1/rewards", {"prompt": "a", **rest}).json()
    assert reply["token_ids"] == encode(" b c")
    assert service.inspections[0].tokens == (*encode("a"), *encode(" b c"))
    assert reply["usage"]["prompt_tokens"] == len(service.inspections[0].tokens)


# ---- the rest ----


def test_models_are_listed_with_their_profiles():
    listed = call(fake_app(), "/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == ["tiny", "tiny:greedy", "tiny:sla", "tiny:wide"]
    assert call(fake_app(), "/v1/models/tiny:sla").json() == listed[2]
    assert call(fake_app(), "/v1/models/large").status_code == 404


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [("starting", 200, 503), ("ready", 200, 200), ("draining", 200, 503), ("failed", 503, 503), ("stopped", 503, 503)],
)
def test_health_and_readiness(state, health, ready):
    service = FakeService()
    service.state = state
    app = fake_app(service)
    assert call(app, "/health").status_code == health
    assert call(app, "/ready").status_code == ready
    assert call(app, "/ready").json() == {"status": state}


def test_tokens_and_text():
    app = fake_app()
    reply = call(app, "/tokenize", {"prompt": "Grüße"}).json()
    assert reply == {"tokens": encode("Grüße"), "count": len(encode("Grüße")), "max_model_len": 256}
    assert call(app, "/detokenize", {"tokens": reply["tokens"]}).json() == {"prompt": "Grüße"}
    chat = call(app, "/tokenize", HELLO).json()["tokens"]
    assert call(app, "/detokenize", {"tokens": chat}).json()["prompt"].startswith("<|im_start|>user\nHello?<|im_end|>")


def test_version_metrics_and_docs():
    app = fake_app()
    assert call(app, "/version").json()["version"]
    assert call(app, "/metrics").headers["content-type"].startswith("text/plain")
    assert call(app, "/docs").status_code == 200
    operation = call(app, "/openapi.json").json()["paths"][CHAT]["post"]
    assert {"200", "400", "401", "404", "408", "413", "415", "500", "503"} == set(operation["responses"])


def test_the_access_log_has_no_prompts_unless_asked(caplog):
    caplog.set_level(logging.INFO, "sla_jax.access")
    body = {"prompt": "secret words", "max_tokens": 3, "user": "me\nmyself"}
    ask(FakeService(), TEXT, body)
    [line] = [record.getMessage() for record in caplog.records if record.name == "sla_jax.access"]
    assert line.startswith("POST '/v1/completions' 200 ")
    assert f"tokens=({len(encode('secret words'))}, 3)" in line
    assert "secret" not in line
    assert "\n" not in line
    caplog.clear()
    ask(FakeService(), TEXT, body, log_prompts=True)
    [line] = [record.getMessage() for record in caplog.records if record.name == "sla_jax.access"]
    assert "secret words" in line
    assert decode(TOKENS[:3]) in line


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish", "status", "kind"),
    [("timeout", 408, "timeout_error"), ("error", 500, "server_error"), ("refused", 503, "service_unavailable")],
)
def test_what_goes_wrong_on_the_way(stream, finish, status, kind):
    service = FakeService(ending=Event(finish=finish, error="it broke" if finish == "error" else None, retry_after=7))
    response = call(fake_app(service), CHAT, {**HELLO, "n": 2, "max_tokens": 5, "stream": stream})
    error = events(response)[-1]["error"] if stream else response.json()["error"]
    assert response.status_code == (200 if stream else status)
    assert error["type"] == kind
    assert finish != "error" or error["message"] == "it broke"
    assert finish != "refused" or "again in about 7 s" in error["message"]
    assert response.headers.get("retry-after") == ("7" if finish == "refused" and not stream else None)
    assert service.reserved == 0


def test_an_answer_that_was_aborted_is_said_to_be():
    service = FakeService(ending=Event(finish="abort"))
    choice = ask(service, TEXT, {"prompt": "a", "max_tokens": 5}).json()["choices"][0]
    assert (choice["finish_reason"], choice["text"]) == ("abort", decode(TOKENS[:4]))


def test_deadlines_come_from_the_limits():
    service = FakeService()
    ask(service, TEXT, {"prompt": "a"}, limits=Limits(timeout=1e6))
    ask(service, TEXT, {"prompt": "a"}, limits=Limits(timeout=1.0))
    late, early = [request.deadline for request in service.requests]
    assert late - early > 9e5


def test_other_origins_only_by_leave():
    headers = {"origin": "https://page.example"}
    assert "access-control-allow-origin" not in call(fake_app(), "/health", headers=headers).headers
    opened = call(fake_app(cors=("https://page.example",), api_key="k"), "/v1/models", headers=headers)
    assert opened.headers["access-control-allow-origin"] == "https://page.example"
    assert opened.status_code == 401


def test_errors_of_ours_are_500_and_told_to_the_log(caplog):
    class Broken(FakeService):
        def reserve(self, profile: str, count: int = 1, tokens: int | None = None):
            raise RuntimeError("our mistake")

    response = call(fake_app(Broken()), CHAT, HELLO)
    assert response.status_code == 500
    assert json.loads(response.text)["error"]["type"] == "server_error"
    assert "our mistake" not in response.text
    assert "our mistake" in caplog.text
