"""The viewer's routes: its own files and those of one folder, nothing else, under its policy and the server's key."""

import json
import os
import re

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.viewer import pages
from sla_jax.evaluation.viewer.standalone import ViewConfig, create_app
from tests.serving.asgi import call
from tests.viewer.recorded import TEXTS
from tests.viewer.scene import folder_with_files, viewer_app

KEY = {"authorization": "Bearer secret"}
LINKS = {  # to what may not be seen under its own name
    "to-hidden.jsonl": ".hidden.jsonl",
    "to-other.jsonl": "notes.txt",
    "to-git.jsonl": ".git/config",
    "to-git-in.jsonl": ".git/in.jsonl",
    "git": ".git",
    "twice.jsonl": "to-hidden.jsonl",
    "to-pipe.jsonl": "pipe.jsonl",
    "to-null.jsonl": "/dev/null",
    "to-folder.jsonl": "eval",
    "gone.jsonl": "nowhere.jsonl",
}
LISTED = ["eval/first.jsonl", "eval/second.jsonl", "trace.jsonl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to look at, inside one with something to steal."""
    outside = tmp_path_factory.mktemp("viewer")
    (outside / "secret.jsonl").write_text('{"secret": 1}\n', encoding="utf-8")
    (outside / "runs-old").mkdir()
    (outside / "runs-old" / "secret.jsonl").write_text('{"secret": 1}\n', encoding="utf-8")
    found = folder_with_files(outside / "runs")
    (found / "link.jsonl").symlink_to(outside / "secret.jsonl")
    (found / "up").symlink_to(outside)
    (found / "loop.jsonl").symlink_to(found / "loop.jsonl")
    (found / "folder.jsonl").mkdir()
    (found / ".git").mkdir()
    (found / ".git" / "in.jsonl").write_text("{}\n", encoding="utf-8")
    (found / ".git" / "config").write_text('{"secret": 1}\n', encoding="utf-8")
    for name, to in LINKS.items():
        (found / name).symlink_to(to)
    os.mkfifo(found / "pipe.jsonl")
    (found / "shown").symlink_to("eval")
    return found


@pytest.fixture(scope="module")
def app(folder):
    return viewer_app(folder)


def test_every_page_comes_with_the_policy_and_its_type(app):
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    assert {"index.html", "app.js", "style.css", "colours.css", "icon.svg"} <= set(pages.NAMES)
    for path in pages.PUBLIC - {"/ui"}:
        reply = call(app, path)
        assert reply.status_code == 200
        suffix = os.path.splitext(path)[1] or ".html"
        assert reply.headers["content-type"].split(";")[0] == kinds[suffix]
        assert reply.headers["content-security-policy"] == pages.POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_nothing_but_our_own_files():
    rules = dict(rule.split(" ", 1) for rule in pages.POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in pages.POLICY and "http" not in pages.POLICY


@pytest.mark.parametrize("name", pages.NAMES)
def test_no_file_has_inline_code_or_reaches_elsewhere(name):
    text = (pages.STATIC / name).read_text(encoding="utf-8")
    found = {
        address for address in re.findall(r"https?://[^\s\"'<>)]+", text) if address != "http://www.w3.org/2000/svg"
    }
    assert not found
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|@import", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=\"", text)
    assert len(text.splitlines()) <= 400


@pytest.mark.parametrize("name", [name for name in pages.NAMES if name.endswith((".js", ".html"))])
def test_what_a_file_asks_for_is_there(name):
    text = (pages.STATIC / name).read_text(encoding="utf-8")
    asked = set(re.findall(r"from \"\./([^\"]+)\"", text)) | set(re.findall(r"(?:src|href)=\"([^\"#][^\"]*)\"", text))
    assert asked <= set(pages.NAMES)


def test_without_a_slash_it_is_sent_to_where_its_files_are(app):
    reply = call(app, "/ui")
    assert reply.status_code == 307 and reply.headers["location"] == "ui/"


def test_the_listing_has_what_can_be_read(app, folder):
    reply = call(app, "/ui/files").json()
    assert [one["path"] for one in reply["files"]] == LISTED
    assert reply["folder"] == "runs" and reply["playground"] and not reply["more"]
    assert reply["files"][0]["bytes"] == (folder / LISTED[0]).stat().st_size


@pytest.mark.parametrize("path", LISTED)
def test_what_is_listed_can_be_read(app, folder, path):
    reply = call(app, "/ui/file", params={"path": path})
    assert reply.status_code == 200 and reply.content == (folder / path).read_bytes()
    assert reply.headers["content-security-policy"] == pages.POLICY
    assert reply.headers["content-type"].startswith("application/x-ndjson")


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../secret.jsonl",
        "../runs-old/secret.jsonl",
        "eval/../../secret.jsonl",
        "eval/../trace.jsonl",
        "./trace.jsonl",
        "eval//first.jsonl",
        "..\\secret.jsonl",
        "%2e%2e/secret.jsonl",
        "link.jsonl",
        "up/secret.jsonl",
        "loop.jsonl",
        "folder.jsonl",
        "eval",
        "notes.txt",
        ".hidden.jsonl",
        ".git/in.jsonl",
        "trace.jsonl\0",
        "trace.jsonl\0.jsonl",
        "trace.jsonl/",
        "TRACE.JSONL",
        "no.jsonl",
        "a" * 5000 + ".jsonl",
        "\ud800.jsonl".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        "pipe.jsonl",
        "git/in.jsonl",
        *LINKS,
    ],
)
def test_nothing_else_can_be_read(app, path):
    reply = call(app, "/ui/file", params={"path": path})
    assert reply.status_code == 404 and reply.json()["error"]["param"] == "path"
    assert 'secret": 1' not in reply.text
    assert reply.headers["content-security-policy"] == pages.POLICY


def test_a_link_to_what_may_be_seen_is_followed(app, folder):
    assert call(app, "/ui/file", params={"path": "shown/first.jsonl"}).content == (folder / LISTED[0]).read_bytes()


def test_what_a_client_asks_for_is_cut_where_it_is_repeated(app):
    reply = call(app, "/ui/file", params={"path": "a" * 50_000})
    assert reply.status_code == 404 and len(reply.content) < 1000


@pytest.mark.parametrize(("change", "sent"), [(b"", b""), (b"x" * 10, b"x" * 10), (b"x" * 2**20, b"x" * 600_000)])
def test_a_file_that_changes_while_it_is_sent_ends_where_it_did_or_earlier(tmp_path, change, sent):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"1" * 600_000)
    opened = pages.open_inside(tmp_path.resolve(), "a.jsonl")
    assert opened is not None
    file.write_bytes(change)
    assert b"".join(pages.pieces(opened, 600_000)) == sent and opened.closed


def test_a_reply_says_no_length_that_it_might_not_keep(app):
    assert "content-length" not in call(app, "/ui/file", params={"path": LISTED[0]}).headers


@pytest.mark.parametrize("kind", ["link", "pipe", "nothing", "forbidden"])
def test_what_takes_a_files_place_is_not_opened(tmp_path, monkeypatch, kind):
    """Between the look at a file and its opening, or without the right to read it."""
    folder = tmp_path.resolve()
    file = folder / "a.jsonl"
    if kind == "link":
        (folder / "secret").write_text("secret")
        file.symlink_to("secret")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "forbidden":
        file.write_text("secret")
        monkeypatch.setattr(pages.os, "open", forbidden)
    monkeypatch.setattr(pages, "inside", lambda folder, asked: file)
    assert pages.open_inside(folder, "a.jsonl") is None


def forbidden(*words):
    raise PermissionError(13, "no")


def test_a_file_that_goes_while_they_are_listed_is_left_out(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    look = pages.inside

    def found(folder, asked):
        path = look(folder, asked)
        if asked == "a.jsonl":
            path.unlink()
        return path

    monkeypatch.setattr(pages, "inside", found)
    assert [one["path"] for one in pages.listing(tmp_path.resolve(), 10)] == ["b.jsonl"]


def test_no_more_files_are_looked_at_than_are_listed(tmp_path, monkeypatch):
    for number in range(20):
        (tmp_path / f"{number:02}.jsonl").write_text("{}")
    looked, look = [], pages.inside
    monkeypatch.setattr(pages, "inside", lambda folder, asked: looked.append(asked) or look(folder, asked))
    assert len(pages.listing(tmp_path.resolve(), 5)) == 5 == len(looked)


def test_an_absolute_path_is_none_of_the_folder(app, folder):
    for path in (folder / "trace.jsonl", folder.parent / "secret.jsonl"):
        assert call(app, "/ui/file", params={"path": str(path)}).status_code == 404


@pytest.mark.parametrize(
    "path", ["/ui/../serve.py", "/ui/..%2fpages.py", "/ui/%2e%2e/pages.py", "/ui/pages.py", "/ui/x.js"]
)
def test_there_are_no_other_pages(app, path):
    assert call(app, path).status_code == 404


def test_a_file_too_large_for_a_page_is_refused(app, monkeypatch):
    monkeypatch.setattr(pages, "LARGEST", 10)
    reply = call(app, "/ui/file", params={"path": "trace.jsonl"})
    assert reply.status_code == 413 and "10 bytes" in reply.json()["error"]["message"]


def test_a_long_listing_says_that_there_is_more(app, monkeypatch):
    monkeypatch.setattr(pages, "LISTED", 2)
    reply = call(app, "/ui/files").json()
    assert len(reply["files"]) == 2 and reply["more"]


def test_without_a_folder_nothing_can_be_read():
    app = viewer_app(None)
    assert call(app, "/ui/files").json() == {"folder": None, "playground": True, "files": [], "more": False}
    assert call(app, "/ui/file", params={"path": "trace.jsonl"}).status_code == 404


def test_pages_are_open_and_everything_behind_them_asks_for_the_key(folder):
    app = viewer_app(folder, key="secret")
    assert {call(app, path).status_code for path in pages.PUBLIC} == {200, 307}
    for path in ("/ui/files", "/ui/file?path=trace.jsonl", "/v1/models", "/ui/nothing", "/ui/%66iles"):
        assert call(app, path).status_code == 401, path
    assert call(app, "/ui/files", headers=KEY).status_code == 200
    assert call(app, "/ui/file?path=trace.jsonl", headers=KEY).status_code == 200
    assert call(app, "/ui/files", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_models_say_what_their_searches_are(app):
    entries = {one["id"]: one["search"] for one in call(app, "/v1/models").json()["data"]}
    assert entries["tiny"] is None
    sla, best = entries["tiny:sla"], entries["tiny:best"]
    assert (sla["profile"], sla["method"], sla["traces"], sla["streams"]) == ("sla", "sla", True, True)
    assert {name: sla["options"][name] for name in ("width", "chunk", "depth")} == {"width": 2, "chunk": 4, "depth": 1}
    assert best["options"]["n"] == 3 and not best["streams"] and not best["traces"] and best["rewards"]


def test_alone_it_answers_to_its_own_name_only(folder):
    app = create_app(folder)
    assert call(app, "/ui/files", headers={"host": "evil.example"}).status_code == 400
    reply = call(app, "/ui/files", headers={"host": "127.0.0.1:8001"}).json()
    assert not reply["playground"] and [one["path"] for one in reply["files"]] == LISTED
    text = call(app, "/ui/file?path=eval/first.jsonl", headers={"host": "localhost"}).text
    assert [json.loads(line)["text"] for line in text.splitlines()] == list(TEXTS)


def test_a_folder_or_a_port_that_is_none_is_the_users_fault(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        ViewConfig(folder=tmp_path / "none")
    with pytest.raises(UserError, match="70000"):
        ViewConfig(folder=tmp_path, port=70000)
