"""The page at /docs: every route and field of /openapi.json, as plain HTML that runs nothing and loads nothing.

FastAPI's own pages take their scripts from a content delivery network, and would run them where the API, the viewer and
the key in its tab are. This one is written from the same schema; its policy allows its one style sheet, by hash.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from sla_jax.web import SAFE

REF = "#/components/schemas/"
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "like {}",
}
STYLE = """
:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif }
nav ul { padding: 0; list-style: none; columns: 20rem }
table { border-collapse: collapse }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8888 }
.wide { overflow-x: auto }
"""
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ info.title }} {{ info.version }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{%- macro fields(rows, caption) %}
<div class="wide" tabindex="0" role="region" aria-label="{{ caption }}">
<table>
<thead><tr><th scope="col">field</th><th scope="col">type</th><th scope="col">says</th></tr></thead>
<tbody>
{%- for row in rows %}
<tr><td><code>{{ row.name }}</code>{% if row.required %}, required{% endif %}</td>
<td>{{ types(row.kinds) }}</td><td>{{ row.says }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- endmacro %}
{%- macro types(kinds) -%}
{%- for kind in kinds -%}
{%- if kind.schema %}<a href="#{{ kind.schema }}">{{ kind.text }}</a>{% else %}{{ kind.text }}{% endif -%}
{%- endfor -%}
{%- endmacro %}
<header>
<h1>{{ info.title }} {{ info.version }}</h1>
<p>{{ info.description }} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
<nav aria-label="Routes"><ul>
{%- for route in routes %}
<li><a href="#{{ route.anchor }}">{{ route.method }} <code>{{ route.path }}</code></a></li>
{%- endfor %}
</ul></nav>
</header>
<main>
{%- for route in routes %}
<section id="{{ route.anchor }}">
<h2>{{ route.method }} <code>{{ route.path }}</code></h2>
<p>{{ route.says }}</p>
{%- if route.parameters %}{{ fields(route.parameters, "Parameters of " + route.path) }}{% endif %}
{%- if route.body %}
<p>Body: {{ types(route.body) }}</p>
{%- endif %}
<ul>
{%- for answer in route.answers %}
<li>{{ answer.name }}: {{ answer.says }} {{ types(answer.kinds) }}</li>
{%- endfor %}
</ul>
</section>
{%- endfor %}
{%- for schema in schemas %}
<section id="{{ schema.name }}">
<h2>{{ schema.name }}</h2>
<p>{{ schema.says }}</p>
{{- fields(schema.fields, schema.name) if schema.fields else types(schema.kinds) }}
</section>
{%- endfor %}
</main>
</body>
</html>
"""
DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {"content-security-policy": f"{SAFE['content-security-policy']}; style-src 'sha256-{DIGEST}'"}


class Kind(NamedTuple):
    """A piece of a type's wording; `schema` is the one that it names."""

    text: str
    schema: str = ""


class Row(NamedTuple):
    """A field, a parameter or an answer."""

    name: str
    kinds: list[Kind]
    says: str
    required: bool = False


class Route(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    says: str
    parameters: list[Row]
    body: list[Kind]
    answers: list[Row]

    @property
    def anchor(self) -> str:
        """Where it stands on the page."""
        return f"{self.method}-{self.path.strip('/').replace('/', '-')}"


class Schema(NamedTuple):
    """An object of the API with its fields, or another type of its own name."""

    name: str
    says: str
    fields: list[Row]
    kinds: list[Kind]


def page(openapi: Mapping[str, Any]) -> str:
    """Write the page of an OpenAPI document."""
    schemas = openapi.get("components", {}).get("schemas", {})
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE).render(
        info={"description": "", **openapi["info"]},
        routes=list(_routes(openapi)),
        schemas=[Schema(name, one.get("description", ""), _fields(one), _kinds(one)) for name, one in schemas.items()],
        style=STYLE,
    )


def _routes(openapi: Mapping[str, Any]) -> Iterator[Route]:
    for path, methods in openapi["paths"].items():
        for method, one in methods.items():
            parameters = [
                Row(given["name"], _kinds(given["schema"]), _says(given), given.get("required", False))
                for given in one.get("parameters", ())
            ]
            answers = [
                Row(status, _contents(answer), answer.get("description", ""))
                for status, answer in one["responses"].items()
            ]
            says = one.get("description") or one.get("summary", "")
            yield Route(method.upper(), path, says, parameters, _contents(one.get("requestBody", {})), answers)


def _contents(message: Mapping[str, Any]) -> list[Kind]:
    """What a body or an answer holds, whatever its media type."""
    found = [_kinds(one["schema"]) for one in message.get("content", {}).values() if one.get("schema")]
    return _joined(found, " or ")


def _fields(schema: Mapping[str, Any]) -> list[Row]:
    required = schema.get("required", ())
    return [Row(name, _kinds(one), _says(one), name in required) for name, one in schema.get("properties", {}).items()]


def _says(schema: Mapping[str, Any]) -> str:
    """Description, bounds and default of a field."""
    parts = [schema["description"]] if schema.get("description") else []
    every = [schema, *schema.get("anyOf", ()), schema.get("schema", {})]
    parts += [words.format(one[name]) for one in every for name, words in BOUNDS.items() if name in one]
    if schema.get("default") is not None:
        parts.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(parts)


def _kinds(schema: Mapping[str, Any]) -> list[Kind]:
    """A type in words."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REF)
        return [Kind(name, name)]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return _joined([_kinds(one) for one in schema[several]], " and " if several == "allOf" else " or ")
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return [Kind(", ".join(json.dumps(value) for value in values))]
    if schema.get("type") == "array":
        return [Kind("list of "), *_kinds(schema.get("items", {}))]
    return [Kind(schema.get("type", "anything"))]


def _joined(every: list[list[Kind]], word: str) -> list[Kind]:
    return [kind for number, one in enumerate(every) for kind in ([Kind(word), *one] if number else one)]
