"""`eval.py report`: read a run, compute every table that its files allow, write them in every form.

OUT/report/report.md, TABLE.csv, PICTURE.svg and .png, index.html (self-contained), latex.txt. The same run gives the
same bytes. What the run has no data for (no candidates, no rewards, no second judge) is left out and named.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from sla_jax import escape
from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.judges.config import PROXY
from sla_jax.evaluation.report import arrays, comparing, measuring, page, pictures
from sla_jax.evaluation.report.config import ReportConfig
from sla_jax.evaluation.report.equivalence import Equivalence
from sla_jax.evaluation.report.gather import Run, gather
from sla_jax.evaluation.report.plots import Picture, draw
from sla_jax.evaluation.report.statistics import Draws
from sla_jax.evaluation.report.tables import Table, as_csv, markdown
from sla_jax.files import read_text, replacing, write_text
from sla_jax.locks import one_writer

Named = TypeVar("Named", Table, Picture)
INDEPENDENT = "independent"
MATHEMATICS = ("math500", "gsm8k")  # layouts whose references are final answers


class Report(NamedTuple):
    """All that is written."""

    title: str
    about: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    latex: str


def report(config: ReportConfig) -> Path:
    """Write OUT/report; the path of its index.html. Raises UserError."""
    made = compute(gather(config.out, config.baseline), config)
    on_page = made._replace(
        tables=chosen("table", made.tables, config.tables) or made.tables,
        pictures=chosen("picture", made.pictures, config.pictures),
    )
    folder = config.out / "report"
    with one_writer(folder):
        files = {one.name: draw(one, folder) for one in made.pictures}
        for table in made.tables:
            write_text(folder / f"{table.name}.csv", as_csv(table))
        write_text(folder / "latex.txt", made.latex)
        write_text(folder / "report.md", as_markdown(made))
        whole = page.html(made.title, made.about, made.tables, made.pictures, files)
        write_text(folder / "index.html", whole)
        if config.page is not None:
            put_on_page(config.page, config.out.resolve().name, on_page, folder)
    return folder / "index.html"


def compute(run: Run, config: ReportConfig) -> Report:
    """Every table and picture of a run. Raises UserError."""
    draws = Draws(config.resamples, config.seed)
    for name in (config.best_of_n, *config.devices):
        if name is not None and name not in run.methods:
            raise UserError(f"this run has no method {name!r}; it has {', '.join(run.methods)}.")
    tables, drawn, latex = [comparing.scores(run, draws)], [], []
    tables.append(comparing.relative_costs(run, config.baseline, draws))
    for judge in run.judges:
        found = arrays.comparisons(run, judge, config.baseline)
        tables.append(comparing.wins(run, judge, found, config.baseline, draws))
        tables.append(comparing.details(run, judge, found, draws))
        tables.append(comparing.lengths(run, judge, found))
        latex.append(comparing.latex(run, judge, found))
        drawn += pictures.score_pictures(run, judge, draws)
    for more_tables, more_pictures in (_votes(run, config, draws), _rewards(run, config, draws)):
        tables, drawn = [*tables, *more_tables], [*drawn, *more_pictures]
    if config.best_of_n is not None:
        devices = {method: float(config.devices.get(method, 1)) for method in run.methods}
        tables.append(measuring.efficiency(run, config.best_of_n, devices, draws))
    shown = tuple(table for table in tables if table.rows)
    title = f"Report: {config.out.resolve().name}"
    return Report(title, about(run, config), shown, tuple(drawn), "\n".join(latex))


def _votes(run: Run, config: ReportConfig, draws: Draws) -> tuple[list[Table], list[Picture]]:
    """Votes over candidates, of the sets whose references are mathematics."""
    sets = [benchmark for benchmark in run.benchmarks if run.layout(benchmark) in MATHEMATICS]
    tables, drawn = [], []
    for benchmark in sets:
        equivalence = Equivalence(config.timeout)
        found = {}
        for method in run.methods:
            pools = measuring.pools(run.answers.get((benchmark, method), ()), equivalence)
            if pools:
                found[method] = pools
        if found:
            tables.append(measuring.voting(benchmark, found, draws))
            drawn.append(pictures.vote_picture(benchmark, found, draws))
    return tables, drawn


def _rewards(run: Run, config: ReportConfig, draws: Draws) -> tuple[list[Table], list[Picture]]:
    """Token rewards against the gold judge, and the proxy's gains against the gold one's."""
    gold = run.judge(config.gold, INDEPENDENT)
    if gold is None:
        return [], []
    proxy = run.judge(config.proxy, PROXY)
    tables, drawn = [measuring.trustworthiness(run, gold, draws)], [pictures.reward_picture(run, gold, draws)]
    if proxy is not None:
        gains = measuring.gains(run, proxy, gold, config.baseline, draws)
        tables.append(measuring.over_optimization(gains, proxy, gold, config.baseline))
        drawn.append(pictures.gain_picture(gains, proxy, gold, config.baseline) if gains else None)
    return tables, [one for one in drawn if one is not None]


def about(run: Run, config: ReportConfig) -> tuple[str, ...]:
    """What stands above the tables: who answered, what, how many, and who judged."""
    sets = [f"{one} ({len(run.answers[next(key for key in run.answers if key[0] == one)])})" for one in run.benchmarks]
    model = run.settings.get("model")
    said = ", ".join(f"{name} {value}" for name, value in model.items()) if isinstance(model, dict) else str(model)
    judges = ", ".join(judge.title for judge in run.judges) or "none yet (eval.py judge)"
    return (
        f"Model: {said}; at most {run.settings.get('max_tokens')} tokens a turn, seed {run.settings.get('seed')}.",
        f"Sets (prompts): {', '.join(sets)}.",
        f"Judges: {judges}. Baseline: {config.baseline}.",
        f"Intervals: {config.resamples} bootstrap resamples, seed {config.seed}.",
        f"Seconds: {'; '.join(map(_where, run.machines)) or 'those of a server'}.",
    )


def _where(machine: Mapping[str, object]) -> str:
    """`AMD EPYC (2 cores), cpu · cpu, jax 0.10.2, from 2026-11-29`."""
    told = {name: machine.get(name, "?") for name in ("cpu", "cores", "device", "jax", "since")}
    return "{cpu} ({cores} cores), {device}, jax {jax}, from {since}".format(**told)


def tables_markdown(made: Report) -> str:
    """What stands above the tables, and the tables."""
    listed = "\n".join(f"- {escape.markdown(line)}" for line in made.about)
    return "\n".join([f"{listed}\n", *(markdown(table) for table in made.tables)])


def as_markdown(made: Report) -> str:
    """The whole page, with its pictures."""
    shown = "\n\n".join(shown_picture(one, "") for one in made.pictures)
    return f"# {escape.markdown(made.title)}\n\n{tables_markdown(made)}\n{shown}\n"


def shown_picture(picture: Picture, before: str) -> str:
    """A picture in Markdown; `before` stands before its file's name."""
    return f"![{escape.markdown(picture.alt)}]({quote(f'{before}{picture.name}.svg')})"


def chosen(kind: str, there: Sequence[Named], names: Sequence[str]) -> tuple[Named, ...]:
    """Those of these names, in their order. Raises UserError for a name that none has."""
    known = {one.name: one for one in there}
    for name in names:
        if name not in known:
            raise UserError(f"there is no {kind} {name!r}; this report has {', '.join(known)}.{nearest(name, known)}")
    return tuple(known[name] for name in names)


def put_on_page(page: Path, name: str, shown: Report, folder: Path) -> None:
    """Tables, and pictures copied to PAGE without its ending / NAME-PICTURE.svg; errors as of `replace`."""
    beside = page.with_suffix("")
    pictures = [shown_picture(one, f"{beside.name}/{name}-") for one in shown.pictures]
    replace(page, name, "\n\n".join([*pictures, tables_markdown(shown)]))
    for one in shown.pictures:
        with replacing(beside / f"{name}-{one.name}.svg") as scratch:
            shutil.copyfile(folder / f"{one.name}.svg", scratch)


def replace(path: Path, name: str, text: str) -> None:
    """Put `text` between a page's comments `begin NAME` and `end NAME`. Raises UserError for a page without them."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if not path.is_file():
        raise UserError(f"there is no page {path}; --page takes a Markdown file that has {begin} and {end}.")
    head, found, rest = read_text(path).partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{path} has no place for this report: it needs the lines {begin} and {end}.")
    write_text(path, f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}")
