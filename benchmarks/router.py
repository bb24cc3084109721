"""Tell whether a router changes the answers of the servers behind it: each request goes to it and straight to a server.

    python serve.py CONFIG --port 8001 & python serve.py CONFIG --port 8002 &
    vllm-router --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 --port 8000 --policy round_robin &
    python -m benchmarks.router http://127.0.0.1:8000 http://127.0.0.1:8001 http://127.0.0.1:8002

Prints both status codes of each request, and whether the answers are the same but for what differs between any two
calls (ids, times, what the prefix cache had); then how many requests each server took meanwhile.
"""

import argparse
import json
from typing import Any

import httpx

from benchmarks.load import read_metrics
from benchmarks.report import Rows, show
from sla_jax.errors import UserError, front_door

TAKEN = "sla_jax_requests_total"  # of our server's /metrics
TIMEOUT = 600.0  # seconds for one request
VOLATILE = {"id", "created", "cached_tokens"}
TURNS = [
    {"role": "user", "content": "Suggest a simple dinner for tonight."},
    {"role": "assistant", "content": "Rice with eggs.", "refusal": None},
    {"role": "user", "content": "And for tomorrow?"},
]
Requests = dict[str, tuple[str, Any]]  # name → path and body; None is a GET


def requests(models: list[dict[str, Any]]) -> Requests:
    """List what is tried: routes of OpenAI, ours, the original server; a chat for every profile, by the model name."""
    model, *profiles = models
    chat = {"model": model["id"], "messages": TURNS, "max_tokens": 16}
    text = {"model": model["id"], "prompt": "Once upon a time", "max_tokens": 16}
    search = {"profile": profiles[-1]["search"]["profile"]}
    original = {"prompt": text["prompt"], "max_tokens": 8, "temperature": 0}
    return {
        "models": ("/v1/models", None),
        "chat": ("/v1/chat/completions", chat),
        "chat, streamed, with usage": (
            "/v1/chat/completions",
            {**chat, "stream": True, "stream_options": {"include_usage": True}},
        ),
        "chat, two choices, logprobs": (
            "/v1/chat/completions",
            {**chat, "n": 2, "temperature": 0.8, "seed": 1, "logprobs": True, "top_logprobs": 2},
        ),
        **{
            f"chat, {entry['id']}": ("/v1/chat/completions", {**chat, "model": entry["id"]})
            for entry in profiles
            if entry["search"]["method"] in ("greedy", "sla")
        },
        "chat, search": ("/v1/chat/completions", {**chat, "search": {**search, "return_rewards": True}}),
        "chat, search, streamed": (
            "/v1/chat/completions",
            {**chat, "stream": True, "search": {**search, "return_rewards": True}},
        ),
        "completion": ("/v1/completions", {**text, "return_token_ids": True, "repetition_penalty": 1.1}),
        "completion, streamed": ("/v1/completions", {**text, "stream": True, "search": search}),
        "echo and logprobs": ("/v1/completions", {**text, "max_tokens": 1, "echo": True, "logprobs": 1}),
        "a mistake in search": ("/v1/chat/completions", {**chat, "search": {"profil": "greedy"}}),
        "rewards": ("/v1/rewards", {"model": model["id"], "messages": TURNS[:1], "response": "Rice with eggs."}),
        "tokenize": ("/tokenize", {"prompt": text["prompt"]}),
        "ck_generate": ("/ck_generate", original),
        "generate": ("/generate", original),
    }


def answer(response: httpx.Response) -> Any:
    """Give what was answered: events, JSON or text, without what no two answers have in common."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else _lasting(json.loads(line)) for line in lines]
    try:
        return _lasting(response.json())
    except ValueError:
        return response.text


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(part) for name, part in value.items() if name not in VOLATILE}
    return [_lasting(part) for part in value] if isinstance(value, list) else value


def compare(client: httpx.Client, router: str, server: str) -> Rows:
    """Make a row for every request. Raises UserError where the server itself does not say what it serves."""
    found = client.get(f"{server}/v1/models")
    if found.status_code != 200:
        raise UserError(
            f"{server}/v1/models answered {found.status_code}: {found.text[:200]} Is it ready, is the key right?"
        )
    rows = []
    for name, (path, body) in requests(found.json()["data"]).items():
        replies = [client.request("GET" if body is None else "POST", url + path, json=body) for url in (server, router)]
        direct, routed = (reply.status_code for reply in replies)
        same = direct == routed and answer(replies[0]) == answer(replies[1])
        rows.append(
            {
                "request": name,
                "route": path,
                "server": f"{direct}",
                "router": f"{routed}",
                "same": "yes" if same else "NO",
            }
        )
    return rows


def taken(client: httpx.Client, server: str) -> float:
    """Count the answers that a server has ended."""
    return read_metrics(client.get(f"{server}/metrics").text).get(TAKEN, 0.0)


def main(argv: list[str]) -> None:
    """Ask both, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=__doc__)
    parser.add_argument("router", help="http://HOST:PORT of the router")
    parser.add_argument("server", nargs="+", help="of the servers behind it; the first is asked directly too")
    parser.add_argument("--api-key", help="sent as Authorization: Bearer")
    options = parser.parse_args(argv)
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    with httpx.Client(headers=headers, timeout=TIMEOUT, trust_env=False) as client:
        try:
            before = [taken(client, server) for server in options.server]
            show("Through the router", compare(client, options.router, options.server[0]))
            for server, count in zip(options.server, before, strict=True):
                print(f"{server} took {taken(client, server) - count:.0f} requests")
        except httpx.TransportError as error:
            raise UserError(f"{error.request.url} cannot be reached: {error}") from None


if __name__ == "__main__":
    front_door(main)
