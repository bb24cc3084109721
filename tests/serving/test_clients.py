"""What real clients send, recorded in `clients/*.json`, is answered by the real engine; the page names the clients."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.router import compare
from sla_jax.serving import replies
from sla_jax.serving.settings import Profile
from tests.programs import ROOT, tiny_checkpoint
from tests.serving.asgi import call, events
from tests.serving.clients import record
from tests.serving.fake import FakeService, fake_app
from tests.serving.toy_worker import PATIENCE
from tests.serving.whole import serving

ENTRIES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(Path(record.__file__).parent.glob("*.json"))
}
WANTED = {
    *("openai", "langchain-openai", "litellm", "llama-index-llms-openai", "llama-index-llms-openai-like", "lm-eval"),
    *("guidellm", "aiperf", "vllm bench serve", "vllm-router", "Open WebUI", "Continue"),
}
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
KINDS: dict[str, type[replies.Reply]] = {
    TEXT: replies.CompletionReply,
    CHAT: replies.ChatReply,
    "/v1/rewards": replies.RewardsReply,
    "/tokenize": replies.TokenizeReply,
    "/v1/models": replies.ModelsReply,
    "/health": replies.StatusReply,
    "/ready": replies.StatusReply,
    "/version": replies.VersionReply,
}
CHOICES: dict[str, type[replies.Reply]] = {TEXT: replies.TextChoice, CHAT: replies.ChatChoice}
SHORT = 8  # tokens: what recorded limits are lowered to


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a real server with one profile, one length of cache; the longest prompt has 900 tokens."""
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("clients") / record.MODEL, max_position_embeddings=1024)
    profiles = (Profile(name="greedy", method="greedy", chunk=4, slots=2),)
    engine = {"context": 1024, "buckets": (1024,), "prefill_chunk": 64}
    with serving(checkpoint, profiles, engine=engine) as server:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            yield client


def ours(body: Any, said: dict[str, Any]) -> Any:
    """A recorded body with our model, few tokens, and what we said in place of what the recording server said.

    A client that sends `refusal` back sends every field of the message back.
    """
    model, colon, profile = body.get("model", record.MODEL).partition(":")
    limits = {name: min(body[name], SHORT) for name in ("max_tokens", "max_completion_tokens") if name in body}
    changed = {**body, "model": f"{record.MODEL}{colon}{profile}", **(limits or {"max_tokens": SHORT})}
    if "messages" in body:
        changed["messages"] = [
            {**turn, **(said if "refusal" in turn else {"content": said["content"]})}
            if (turn["role"], turn.get("content")) == ("assistant", "".join(record.WORDS))
            else turn
            for turn in body["messages"]
        ]
    return changed


def joined(chunks: list[Any], path: str) -> dict[str, Any]:
    """The first choice of a stream as it would be without streaming."""
    heads = [{name: chunk[name] for name in ("id", "object", "created", "model")} for chunk in chunks]
    assert all(head == heads[0] for head in heads)
    parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
    if path == TEXT:
        return {**parts[-1], "text": "".join(part["text"] for part in parts)}
    message: dict[str, Any] = {"refusal": None}
    for part in parts:
        message |= {name: message.get(name, "") + (value or "") for name, value in part["delta"].items()}
    return {**{name: value for name, value in parts[-1].items() if name != "delta"}, "message": message}


def answer(response: httpx.Response, path: str, body: Any) -> dict[str, Any]:
    """What the first choice says, after a look at the whole reply: its type, its fields, its end."""
    if path == "/metrics":
        assert "sla_jax_slots" in response.text
        return {}
    if not (body and body.get("stream")):
        found = response.json()
        KINDS[path].model_validate(found, strict=True)
        return found["choices"][0] if path in CHOICES else {}
    chunks = events(response)
    choice = joined(chunks, path)
    CHOICES[path].model_validate(choice, strict=True)
    asked = body.get("stream_options") or {}
    for chunk in [*(chunks if asked.get("continuous_usage_stats") else []), *(chunks[-1:] if asked else [])]:
        replies.Usage.model_validate(chunk["usage"], strict=True)
    return choice


@pytest.mark.parametrize("name", ENTRIES)
def test_every_recorded_exchange_is_answered(client, name):
    said: dict[str, Any] = {}
    for exchange in ENTRIES[name]["exchanges"]:
        path, body = exchange["path"], exchange.get("body")
        if path in CHOICES:
            body = ours(body, said)
        content = None if body is None else json.dumps(body)
        response = client.request(exchange["method"], path, content=content, headers=exchange["headers"])
        assert response.status_code == 200, (path, body, response.text)
        said = answer(response, path, body).get("message", said)


@pytest.mark.parametrize("number", [0, 1])
def test_lm_eval_reads_log_probabilities_from_what_it_sends(client, number):
    """Its rule: the echoed tokens from the end of the context to the last but one; greedy ones are their maxima."""
    body = ENTRIES["lm-eval-loglikelihood"]["exchanges"][number]["body"]
    prompts = [*body["prompt"], *(greedy(client, prompt, 3) for prompt in body["prompt"])]
    reply = client.post(TEXT, json={**body, "prompt": prompts}).json()
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(prompts)))
    verdicts = []
    for prompt, choice in zip(prompts, reply["choices"], strict=True):
        found = choice["logprobs"]
        assert {len(found[name]) for name in found} == {len(prompt) + 1}
        context = len(prompt) - 3
        own, tops = found["token_logprobs"][context:-1], found["top_logprobs"][context:-1]
        assert all(math.isfinite(value) and value <= 0 for value in own)
        verdicts.append(all(value == max(top.values()) for value, top in zip(own, tops, strict=True)))
    assert verdicts == [greedy(client, prompt[:-3], 3) == prompt for prompt in prompts]
    assert set(verdicts) == {False, True}


def greedy(client: httpx.Client, prompt: list[int], count: int) -> list[int]:
    """A prompt and its greedy continuation."""
    asked = {"prompt": prompt, "max_tokens": count, "ignore_eos": True, "return_token_ids": True}
    return [*prompt, *client.post(TEXT, json=asked).json()["choices"][0]["token_ids"]]


def test_an_answer_that_ends_at_once_still_has_its_place_among_the_log_probabilities(client):
    """lm-eval drops the last entry, which is the answer's; it would drop one of the prompt's."""
    body = ENTRIES["lm-eval-loglikelihood"]["exchanges"][1]["body"]
    choice = client.post(TEXT, json={**body, "logit_bias": {"2": 100}}).json()["choices"][0]
    assert (choice["finish_reason"], len(choice["logprobs"]["tokens"])) == ("stop", len(body["prompt"][0]) + 1)


# ---- the files ----


def test_every_client_that_is_asked_for_has_a_file_that_says_where_it_comes_from():
    assert {entry["client"] for entry in ENTRIES.values()} == WANTED
    for entry in ENTRIES.values():
        assert entry["exchanges"] and entry["version"] and entry["source"]
        assert (entry["how"] == "recorded") == ("program" in entry)


def test_the_page_names_every_client_its_version_and_how_its_requests_were_had():
    assert record.table(ENTRIES.values()) in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_the_recording_server_writes_down_what_it_is_sent():
    body = {"model": "m", "prompt": "a"}
    program = f"""
import json, os, urllib.request
url = os.environ["OPENAI_BASE_URL"]
kind = {{"content-type": "application/json", "x-request-id": "mine"}}
urllib.request.urlopen(url + "/models").read()
request = urllib.request.Request(url + "/completions", json.dumps({body}).encode(), kind)
print(json.load(urllib.request.urlopen(request))["choices"][0]["text"])
"""
    first, second = record.record(program.splitlines(), sys.executable)
    assert (first["method"], first["path"], "body" in first) == ("GET", "/v1/models", False)
    assert (second["method"], second["path"], second["body"]) == ("POST", "/v1/completions", body)
    assert second["headers"]["x-request-id"] == "ID"


# ---- the tool that looks for what a router changes ----


def behind(router: Callable[[Any], Any]) -> dict[str, str]:
    """Which requests the tool finds unchanged by a router that does this to bodies, in front of a scripted server."""
    app = fake_app(FakeService(sync=True))

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        if body is not None and request.url.host == "router":
            body = router(body)
        reply = call(app, request.url.path, body)
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    with httpx.Client(transport=httpx.MockTransport(handle)) as client:
        return {row["request"]: row["same"] for row in compare(client, "http://router", "http://server")}


def test_a_router_that_passes_everything_changes_nothing():
    assert set(behind(lambda body: body).values()) == {"yes"}


def test_a_router_that_drops_a_field_is_found_out_where_the_field_was_sent():
    found = behind(lambda body: {name: value for name, value in body.items() if name != "search"})
    dropped = {"chat, search", "chat, search, streamed", "completion, streamed", "a mistake in search"}
    assert {name for name, same in found.items() if same == "NO"} == dropped
