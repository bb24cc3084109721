"""Record what a client sends: `python -m tests.serving.clients.record FILE.json --python VENV/bin/python`, by hand.

A file of this folder whose `how` is "recorded" has in `program` the Python lines that made it. They are run by the
given Python, in which the client is installed, against a server of this module that answers in OpenAI's shapes and
writes down what it is asked; `exchanges` and `version` of the file are then replaced. The program finds in its
environment `OPENAI_BASE_URL` (…/v1), `SERVER_URL` (without it), `OPENAI_API_KEY`, and `TOKENIZER`, the folder of a
tokenizer. The other files are written by hand from the `source` that they name.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.tiny import byte_level_tokenizer

KEY = "none"
MODEL = "tiny"
TELLING = ("accept", "authorization", "content-type", "user-agent", "x-request-id")  # the headers that are kept
SECRET = {"authorization": "Bearer KEY", "x-request-id": "ID"}  # and what stands for some of their values
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
WORDS = ("Hello", " there", ".")
WELL = json.dumps({"status": "ok", "version": "0.0.0"})
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "record"}]}


# what servers of this API answer: POST by `answer`, GET with (content type, text); anything else is a 404 and not kept
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/rewards", "/tokenize")
GETS = {
    "/v1/models": ("application/json", json.dumps(MODELS)),
    "/metrics": ("text/plain", ""),
    **dict.fromkeys(("/health", "/ready", "/ping", "/version", "/tokenizer_info"), ("application/json", WELL)),
}


def answer(path: str, body: Any) -> tuple[str, str]:
    """Give (content type, text) of a plausible reply to a POST."""
    if path == "/tokenize":
        return "application/json", json.dumps({"tokens": [1, 2, 3], "count": 3, "max_model_len": 1024})
    chat = path.endswith("/chat/completions")
    head = {"id": "reply-1", "created": 0, "model": body.get("model", MODEL)}
    if not body.get("stream"):
        kind = "chat.completion" if chat else "text_completion"
        choices = [_chat_choice()] if chat else list(_text_choices(body))
        return "application/json", json.dumps({**head, "object": kind, "choices": choices, "usage": USAGE})
    kind = "chat.completion.chunk" if chat else "text_completion"
    parts = [{"delta": {"content": word}} if chat else {"text": word} for word in WORDS]
    if chat:
        parts.insert(0, {"delta": {"role": "assistant", "content": ""}})
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, **part, "logprobs": None, "finish_reason": None}]} for part in parts
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({"choices": [], "usage": USAGE})
    lines = [json.dumps({**head, "object": kind, **chunk}) for chunk in chunks]
    return "text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


def _chat_choice() -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}


def _text_choices(body: Any) -> Iterator[dict[str, Any]]:
    """One for every prompt; echoed tokens have log-probabilities, all of them alike."""
    prompt = body.get("prompt", "")
    prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    for index, one in enumerate(prompts):
        tokens = [*(list(map(str, one)) if body.get("echo") else []), *WORDS]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [None, *[-1.0] * (len(tokens) - 1)],
            "top_logprobs": [None, *({token: -1.0} for token in tokens[1:])],
            "text_offset": list(range(len(tokens))),
        }
        finish = {"logprobs": logprobs if body.get("logprobs") is not None else None, "finish_reason": "stop"}
        yield {"index": index, "text": "".join(WORDS), **finish}


class Recorder(ThreadingHTTPServer):
    """Answers on a free port and keeps every exchange in the order of its arrival."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.exchanges: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server: Recorder

    def do_GET(self) -> None:
        if self.path in GETS:
            self._keep()
            self._reply(*GETS[self.path])
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        if self.headers.get("transfer-encoding") == "chunked":
            text = b"".join(self._chunks())
        else:
            text = self.rfile.read(int(self.headers["content-length"]))
        if self.path not in POSTS:
            self.send_error(404)
            return
        body = json.loads(text)
        self._keep(body=body)
        self._reply(*answer(self.path, body))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _keep(self, **body: Any) -> None:
        headers = {name: self.headers[name] for name in TELLING if name in self.headers}
        for name in headers.keys() & SECRET.keys():
            headers[name] = SECRET[name]
        exchange = {"method": self.command, "path": self.path, "headers": headers, **body}
        if body or exchange not in self.server.exchanges:  # what is polled is kept once
            self.server.exchanges.append(exchange)

    def _reply(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the exchanges are the log."""


def record(program: list[str], python: str) -> list[dict[str, Any]]:
    """Run a program with a server beside it; its exchanges. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder, Recorder() as server:
        byte_level_tokenizer().save_pretrained(folder)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {
            "SERVER_URL": server.url,
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "OPENAI_API_KEY": KEY,
            "TOKENIZER": folder,
        }
        offline = {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(python).absolute().parent}:{os.environ['PATH']}"}
        try:
            subprocess.run(
                [python, "-c", "\n".join(program)], env={**os.environ, **env, **offline}, cwd=folder, check=True
            )
        finally:
            server.shutdown()
        scrubbed = json.dumps(server.exchanges).replace(folder, "TOKENIZER").replace(server.url, "SERVER_URL")
        return json.loads(scrubbed)


def table(entries: Iterable[dict[str, Any]]) -> str:
    """Write the table of docs/serving.md: a row for every client, with all its files."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        rows.setdefault(entry["client"], []).append(entry)
    lines = ["| client | version | requests | how | from |", "|---|---|---:|---|---|"]
    for client, found in sorted(rows.items(), key=lambda row: row[0].lower()):
        count = sum(len(entry["exchanges"]) for entry in found)
        lines.append(f"| {client} | {found[0]['version']} | {count} | {found[0]['how']} | {found[0]['source']} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Record one file anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--python", required=True, help="the Python in which the client is installed")
    options = parser.parse_args(argv)
    entry = json.loads(options.file.read_text(encoding="utf-8"))
    ask = f"import importlib.metadata as m; print(m.version({entry['client']!r}))"
    entry["version"] = subprocess.run(
        [options.python, "-c", ask], capture_output=True, text=True, check=True
    ).stdout.strip()
    entry["exchanges"] = record(entry["program"], options.python)
    options.file.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for exchange in entry["exchanges"]:
        print(exchange["method"], exchange["path"], *exchange.get("body", {}))


if __name__ == "__main__":
    main(sys.argv[1:])
