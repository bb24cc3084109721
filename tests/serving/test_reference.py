"""The page at /docs: all of the schema, nothing that runs, nothing from elsewhere."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from sla_jax.serving import reference
from tests.serving.asgi import call
from tests.serving.fake import fake_app


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def app():
    return fake_app()


@pytest.fixture(scope="module", params=["/docs", "/redoc"])
def reply(request, app):
    return call(app, request.param)


def test_the_page_runs_and_loads_nothing(reply):
    seen = Seen(reply.text)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not [
        name for _, attributes in seen.tags for name in attributes if name.startswith("on") or name in ("src", "style")
    ]
    assert {attributes["href"][0] for tag, attributes in seen.tags if tag == "a"} <= {"#", "o"}, "openapi.json alone"
    (style,) = re.findall(r"<style>(.*?)</style>", reply.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and policy.endswith(f"style-src 'sha256-{digest}'")


def test_the_page_has_every_route_schema_and_field(app, reply):
    seen, schema = Seen(reply.text), app.openapi()
    places = {attributes["id"] for _, attributes in seen.tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in seen.tags if tag == "a"} - {"penapi.json"} <= places
    for path, methods in schema["paths"].items():
        assert path in seen.text and all(method.upper() in seen.text for method in methods)
    for name, one in schema["components"]["schemas"].items():
        assert name in places and all(f"<code>{field}</code>" in reply.text for field in one.get("properties", ()))


def test_what_the_schema_says_is_text():
    hostile = "<script>alert(1)</script>"
    field = {
        "anyOf": [{"type": "array", "items": {"$ref": f"{reference.REF}X"}}, {"type": "null"}],
        "description": hostile,
    }
    answer = {"description": hostile, "content": {"application/json": {"schema": {"const": 1}}}}
    document = {
        "info": {"title": hostile, "version": "1"},
        "paths": {"/a": {"get": {"summary": hostile, "responses": {"200": answer}}}},
        "components": {"schemas": {"X": {"properties": {"f": field}, "required": ["f"]}, "E": {"enum": [1, "a"]}}},
    }
    page = reference.page(document)
    assert "<script" not in page and page.count("&lt;script&gt;") == 5
    assert "list of X or null" in Seen(page).text and '1, "a"' in Seen(page).text
