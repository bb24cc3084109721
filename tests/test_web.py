"""What both web servers have: names that no stranger can own, a socket that listens, headers on every answer."""

import asyncio
import functools
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax import web
from sla_jax.errors import UserError
from sla_jax.evaluation.viewer import pages, standalone
from sla_jax.serving.http import Pages, create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.settings import HttpRules, ServeConfig
from tests.serving.asgi import call
from tests.serving.fake import MODEL, TOKENIZER, FakeService

LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
STRANGE = [
    "attacker.example",
    "attacker.example:8000",
    "ATTACKER.example.",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example:8000",
    "attacker.example#localhost",
    "localhost@attacker.example",
    "attacker.example/localhost",
    "[::1].attacker.example",
    "127.0.0.1, attacker.example",
    "1.2.3.4.5",
    "0x7f.1",
    "",
    ":8000",
    "münchen.example",
]
OURS = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "[::1]:8000",
    "10.1.2.3:80",
    "localhost:1",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "sla-jax",
]


def server(folder=None, key=None, hosts=(), **settings):
    """serve.py's app with the viewer of a folder."""
    config = ServeConfig(
        checkpoint="tiny", profiles=MODEL.profiles, api_key=key, http=HttpRules(hosts=hosts), **settings
    )
    shown = Pages(functools.partial(pages.mount, folder=folder), pages.PUBLIC)
    return create_app(FakeService(), MODEL, TOKENIZER, config, Metrics({"greedy": 1}), shown)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("web")
    (found / "a.jsonl").write_text("PRIVATE\n")
    return found


@pytest.fixture(scope="module", params=["serve.py", "eval.py view"])
def door(request, folder):
    return server(folder) if request.param == "serve.py" else standalone.create_app(folder)


@pytest.mark.parametrize("host", STRANGE)
def test_a_strange_name_gets_nothing_at_either_door(door, host):
    for path in ("/ui/file?path=a.jsonl", "/ui/files", "/ui/", "/v1/models", "/metrics", "/health", "/docs"):
        reply = call(door, path, headers={"host": host.encode("utf-8"), "origin": f"http://{host}".encode()})
        assert reply.status_code == 400 and "PRIVATE" not in reply.text, path
        assert reply.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("host", OURS)
def test_a_name_that_nobody_else_can_own_is_answered_at_both(door, host):
    assert call(door, "/ui/file?path=a.jsonl", headers={"host": host}).text == "PRIVATE\n"


@given(st.lists(LABEL, min_size=2, max_size=4).map(".".join))
def test_a_name_with_a_dot_is_known_only_as_an_address_or_if_it_is_given(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        assert web.is_known(name, ()) == name.endswith(".localhost")
    parent = name.partition(".")[2]
    assert (
        web.is_known(f"{name}:80", [name]) and web.is_known(name.upper(), [f"*.{parent}"]) and web.is_known(name, ["*"])
    )
    assert web.is_known(f"x{name}", [name]) == web.is_known(f"x{name}", ())


@given(st.ip_addresses())
def test_an_address_is_no_name(address):
    written = f"[{address}]" if address.version == 6 else str(address)
    assert web.is_known(written, ()) and web.is_known(f"{written}:8000", ())


@given(st.text(max_size=40))
def test_nothing_in_a_header_breaks_the_guard(text):
    assert web.is_known(text, ()) in (True, False)


def test_names_can_be_given_and_with_a_key_every_one_will_do():
    mine, strange = {"host": "sla.example.com"}, {"host": "attacker.example"}
    for hosts in (("sla.example.com",), ("*.example.com",)):
        app = server(hosts=hosts)
        assert call(app, "/v1/models", headers=mine).status_code == 200
        assert call(app, "/v1/models", headers=strange).status_code == 400
    assert call(server(hosts=("*",)), "/v1/models", headers=strange).status_code == 200
    assert call(server(host="sla.example.com"), "/v1/models", headers=mine).status_code == 200
    app = server(key="secret")
    assert call(app, "/health", headers=strange).status_code == 200, "a probe by any name"
    assert call(app, "/v1/models", headers=strange).status_code == 401
    assert call(app, "/v1/models", headers={**strange, "authorization": "Bearer secret"}).status_code == 200
    both = server(key="secret", hosts=("sla.example.com",))
    assert call(both, "/v1/models", headers={**strange, "authorization": "Bearer secret"}).status_code == 400


def raw(app, kind, *hosts):
    """What an app says to a request with these `Host` headers."""
    said = []

    async def send(message):
        said.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": kind, "method": "GET", "path": "/", "headers": [(b"host", host.encode()) for host in hosts]}
    asyncio.run(app(scope, receive, send))
    return said


def test_two_names_none_and_other_protocols():
    async def within(scope, receive, send):
        await send({"type": "within"})

    app, inside = web.KnownHosts(within), [{"type": "within"}]
    assert raw(app, "http") == inside, "HTTP/1.0 has no Host, and browsers do not speak it"
    assert raw(app, "http", "localhost", "localhost")[0]["status"] == 400
    assert raw(app, "websocket", "attacker.example") == [{"type": "websocket.close", "code": 1008}]
    assert raw(app, "websocket", "localhost") == raw(app, "lifespan") == inside


@pytest.mark.parametrize("name", ["http://a.b", "a.b:80", "a/b", "", "*.", "a.*", "ü.de"])
def test_what_is_no_name_is_refused_when_it_is_given(name):
    with pytest.raises(UserError, match=r"http\.hosts"):
        HttpRules(hosts=(name,))


def test_every_answer_has_the_headers():
    app = server(key="secret")
    key = {"authorization": "Bearer secret"}
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    replies = [
        call(app, path, headers=key) for path in ("/health", "/nothing", "/ui/", "/ui/app.js", "/docs", "/openapi.json")
    ]
    replies += [call(app, "/v1/models"), call(app, "/v1/chat/completions", {**chat, "stream": True}, headers=key)]
    replies += [
        call(app, "/v1/chat/completions", content=b"{", headers=key),
        call(app, "/health", method="DELETE", headers=key),
    ]
    replies.append(call(server(), "/health", headers={"host": "attacker.example"}))
    for reply in replies:
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert {name: reply.headers[name] for name in web.SAFE if name != "content-security-policy"} == {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
        }


def test_who_connects_once_it_listens_is_not_turned_away():
    with web.listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, 10) as early:
            early.sendall(b"hello")
            served, _ = listener.accept()
            with served:
                assert served.recv(5) == b"hello"
        with pytest.raises(UserError, match="in use"):
            web.listen(*address)


def test_the_viewer_says_that_it_is_ready_when_it_listens(folder, monkeypatch):
    served = []

    class Server:
        def __init__(self, settings):
            """Nothing is served: who connects waits."""

        def run(self, sockets):
            served.append(sockets[0].getsockname()[1])

    def say(text, flush):
        port = int(text.split("127.0.0.1:")[1].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), 10).close()
        served.append(port)

    monkeypatch.setattr("uvicorn.Server", Server)
    monkeypatch.setattr("uvicorn.Config", lambda app, **options: app)
    monkeypatch.setattr("builtins.print", say)
    standalone.view(standalone.ViewConfig(folder=folder, port=0))
    assert len(served) == 2 and len(set(served)) == 1
