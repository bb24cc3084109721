"""The report as one HTML page that needs nothing else: no script, styles by their hash, pictures inside the file.

The content security policy allows what is in the page and nothing from anywhere: `default-src 'none'`, the one style
sheet by its SHA-256, images from `data:` URLs.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sla_jax.evaluation.report.plots import Picture
from sla_jax.evaluation.report.tables import Table

STYLE = """
:root { color-scheme: light dark }
:root { --text: #1b1b1b; --ground: #fdfdfc; --quiet: #595959; --line: #c9c9c6; --link: #0b57a4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e6; --ground: #161617; --quiet: #a8a8a5; --line: #45454a; --link: #8ab8f0 }
}
body { margin: 0 auto; max-width: 75rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif }
body { color: var(--text); background: var(--ground) }
a { color: var(--link) }
a:focus-visible, .wide:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
nav ul { padding: 0; list-style: none; columns: 20rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th.text, td.text { text-align: left }
.note, figcaption { color: var(--quiet); max-width: 65ch }
figure { margin: 1rem 0 }
img { max-width: 100%; height: auto; background: #fff }
"""
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<ul>
{%- for line in about %}
<li>{{ line }}</li>
{%- endfor %}
</ul>
<nav aria-label="Contents"><ul>
{%- for table in tables %}
<li><a href="#table-{{ table.name }}">{{ table.title }}</a></li>
{%- endfor %}
{%- for picture in pictures %}
<li><a href="#picture-{{ picture.name }}">{{ picture.title }} (plot)</a></li>
{%- endfor %}
</ul></nav>
</header>
<main>
{%- for table in tables %}
<section id="table-{{ table.name }}">
<h2>{{ table.title }}</h2>
<div class="wide" tabindex="0" role="region" aria-label="{{ table.title }}">
<table>
<thead><tr>
{%- for column in table.columns %}<th scope="col"{% if texts[table.name][loop.index0] %} class="text"{% endif %}>
{{- column.name }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in table.texts %}
<tr>
{%- for cell in row %}<td{% if texts[table.name][loop.index0] %} class="text"{% endif %}>{{ cell }}</td>{% endfor -%}
</tr>
{%- endfor %}
</tbody>
</table>
</div>
<p class="note">{{ table.note }}</p>
</section>
{%- endfor %}
{%- for picture in pictures %}
<section id="picture-{{ picture.name }}">
<h2>{{ picture.title }}</h2>
<figure>
<img src="data:image/png;base64,{{ images[picture.name] }}" alt="{{ picture.alt }}">
<figcaption>{{ picture.alt }}</figcaption>
</figure>
</section>
{%- endfor %}
</main>
</body>
</html>
"""


def policy(style: str) -> str:
    """The page's content security policy."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def html(
    title: str,
    about: Sequence[str],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    files: Mapping[str, Path],
) -> str:
    """The page; `files` are the pictures' PNGs by name."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    images = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
    return environment.from_string(TEMPLATE).render(
        title=title,
        about=about,
        tables=tables,
        pictures=pictures,
        images=images,
        texts={table.name: _text_columns(table) for table in tables},
        style=STYLE,
        policy=policy(STYLE),
    )


def _text_columns(table: Table) -> list[bool]:
    """Which columns hold words."""
    return [all(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
