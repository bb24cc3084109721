"""eval.py report on a small run: its figures, its files, and what it says of a run that is not whole."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.report.config import ReportConfig
from sla_jax.evaluation.report.gather import gather
from sla_jax.evaluation.report.page import html
from sla_jax.evaluation.report.program import Report, about, compute, replace, report, tables_markdown
from sla_jax.evaluation.report.statistics import Estimate
from sla_jax.evaluation.report.tables import Column, Table, as_csv, markdown
from tests.damage import unsummed
from tests.evaluation.report_run import write_run

pytest.importorskip("matplotlib")
pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and its report. Read only."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "small")
    report(config(folder))
    return folder


@pytest.fixture(scope="module")
def made(run_folder: Path) -> Report:
    return compute(gather(run_folder, "greedy"), config(run_folder))


def config(folder: Path, **changes) -> ReportConfig:
    return ReportConfig(**{"out": folder, "best_of_n": "best", "resamples": 200, "devices": {"sla": 2}, **changes})


def rows(made: Report, name: str) -> list[dict]:
    (table,) = [table for table in made.tables if table.name == name]
    return [dict(zip([column.name for column in table.columns], row, strict=True)) for row in table.rows]


def line(made: Report, name: str, **wanted) -> dict:
    (found,) = [row for row in rows(made, name) if wanted.items() <= row.items()]
    return found


def test_the_papers_table(made: Report):
    row = line(made, "wins-channel", method="sla")
    assert row["mt_bench"] == "25.0 / 50.0 / 25.0" and row["gsm8k"] == "66.7 / 33.3 / 0.0"
    assert row["overall"].value == pytest.approx((50 + 500 / 6) / 2)
    assert [one["method"] for one in rows(made, "wins-channel")] == ["best", "sla"]
    assert made.latex.splitlines()[2] == f"{'sla':<70}25.0 & 50.0 & 25.0 & 66.7 & 33.3 & 0.0 & 66.7"


def test_a_judge_of_pairs(made: Report):
    row = line(made, "comparisons-llm", method="sla", set="mt_bench")
    assert (row["n"], row["win %"], row["tie %"], row["loss %"]) == (2, 50.0, 50.0, 0.0)
    assert row["win + tie/2 %"].value == 75.0 and row["gain"] is None
    assert line(made, "comparisons-llm", method="best", set="mt_bench")["loss %"] == 100.0


def test_scores_and_costs(made: Report):
    row = line(made, "scores", set="gsm8k", method="sla")
    assert row["channel (teacher's proxy)"].value == pytest.approx(5 / 3)
    assert (row["lane-steps"], row["passes"], row["seconds"], row["stopped %"]) == (80.0, 10.0, 4.0, 100.0)
    assert line(made, "scores", set="mt_bench", method="sla")["seconds"] == 8.0
    relative = line(made, "costs", set="gsm8k", method="best")
    assert relative["lane-steps ×"] == Estimate(4.0, 4.0, 4.0, 3)


def test_votes_by_level(made: Report):
    # candidates 4 4 5 6 of 4, 7 8 8 8 of 7, 1 2 3 9 of 0
    whole = line(made, "voting-gsm8k", level="all", k=4)
    names = ("naive @k", "weighted @k", "majority @k", "pass@k")
    assert [whole[name].value for name in names] == pytest.approx([200 / 3, 100 / 3, 100 / 3, 200 / 3])
    first = line(made, "voting-gsm8k", level="1", k=1)
    assert [first[name].value for name in names] == pytest.approx([100.0, 100.0, 100.0, 37.5])
    assert line(made, "voting-gsm8k", level="2", k=4)["pass@k"].value == 0.0


def test_efficiency(made: Report):
    row = line(made, "efficiency", method="best")
    assert row["improvement"].value == 100.0 and row["compute ×"] == 1.0 and row["left out"] == 0


def test_candidates_ranked_by_other_scores_are_not_compared(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    for kind in ("answers", "seconds"):
        shutil.copy(folder / kind / "gsm8k" / "best.jsonl", folder / kind / "gsm8k" / "steps.jsonl")
    settings = json.loads((folder / "settings.json").read_text())
    for steps, methods in (({}, ["best"]), (settings["methods"]["best"], ["best", "steps"])):
        settings["methods"]["steps"] = steps
        (folder / "settings.json").write_text(json.dumps(settings))
        made = compute(gather(folder, "greedy"), config(folder))
        assert [row["method"] for row in rows(made, "efficiency")] == methods


def test_proxy_and_gold(made: Report):
    found = {row["method"]: row for row in rows(made, "over-optimization")}
    assert list(found) == ["best", "sla"]  # by lane-steps
    assert found["best"]["lane-steps ×"] == 4.0 and found["sla"]["lane-steps ×"] == 8.0
    assert found["best"]["proxy gain"].value > 0
    assert line(made, "comparisons-other", method="best", set="mt_bench")["gain"].value == -1.0
    assert len(rows(made, "rewards-other")) == 2 * 5


def test_the_files(run_folder: Path, made: Report):
    names = {path.name for path in (run_folder / "report").iterdir()}
    drawn = {f"{one.name}.{kind}" for one in made.pictures for kind in ("svg", "png")}
    assert names == {"report.md", "index.html", "latex.txt", *drawn, *(f"{one.name}.csv" for one in made.tables)}
    text = (run_folder / "report" / "wins-channel.csv").read_text(encoding="utf-8")
    (best, sla) = csv.DictReader(io.StringIO(text))
    assert (best["method"], sla["method"]) == ("best", "sla") and float(sla["overall"]) == pytest.approx(200 / 3)
    assert float(sla["overall low"]) <= float(sla["overall"]) <= float(sla["overall high"])


def test_where_the_seconds_were_measured(run_folder: Path, tmp_path: Path):
    line = "Seconds: abacus (2 cores), cpu, jax 0.10, from 2026-11-29."
    assert line in (run_folder / "report" / "report.md").read_text(encoding="utf-8")
    served = tmp_path / "served"
    shutil.copytree(run_folder, served, ignore=shutil.ignore_patterns("report", "machines.jsonl"))
    assert "Seconds: those of a server." in about(gather(served, "greedy"), config(served))


def test_the_same_run_gives_the_same_bytes(run_folder: Path, tmp_path: Path):
    again = tmp_path / "small"
    shutil.copytree(run_folder, again, ignore=shutil.ignore_patterns("report"))
    report(config(again))
    for path in (run_folder / "report").iterdir():
        assert path.read_bytes() == (again / "report" / path.name).read_bytes(), path.name


class Page(HTMLParser):
    """What a page asks for, and its ids and their links."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def of(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def test_the_page_needs_nothing_else(run_folder: Path, made: Report):
    text = (run_folder / "report" / "index.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and not page.of("style", "onclick", "onload")
    assert all(link.startswith("data:image/png;base64,") for link in page.of("src"))
    assert {link.removeprefix("#") for link in page.of("href")} == set(page.of("id"))
    assert page.tags.count("img") == len(made.pictures) == len([alt for alt in page.of("alt") if alt])
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [content for content in page.of("content") if "default-src" in content]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


def test_names_are_escaped(made: Report):
    text = html("Report: <b>run", ['"seed" <i>'], made.tables, [], {})
    assert "<h1>Report: &lt;b&gt;run</h1>" in text and "&lt;i&gt;" in text and "<b>run" not in text


def test_a_page_of_the_docs(made: Report, tmp_path: Path):
    page = tmp_path / "results.md"
    page.write_text("# Results\n<!-- begin small -->\nwhat stood here\n<!-- end small -->\nThe end.\n")
    replace(page, "small", tables_markdown(made))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n<!-- begin small -->\n\n- Model: name toy") and "what stood here" not in text
    assert text.endswith("\n\n<!-- end small -->\nThe end.\n") and "| sla | 25.0 / 50.0 / 25.0 |" in text
    page.write_text("# Results\n")
    with pytest.raises(UserError, match="it needs the lines <!-- begin small -->"):
        replace(page, "small", "new")
    with pytest.raises(UserError, match="there is no page"):
        replace(tmp_path / "none.md", "small", "new")


def test_pictures_of_a_page(run_folder: Path, tmp_path: Path):
    page, name = tmp_path / "results.md", "over-optimization"
    page.write_text("<!-- begin small -->\n<!-- end small -->\n")
    report(config(run_folder, page=page, pictures=(name,)))
    copy = tmp_path / "results" / f"small-{name}.svg"
    assert copy.read_bytes() == (run_folder / "report" / f"{name}.svg").read_bytes()
    assert f"](results/small-{name}.svg)\n\n- Model: name toy" in page.read_text(encoding="utf-8")
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    with pytest.raises(UserError, match=f"no picture 'over-optimisation'.*Did you mean '{name}'"):
        report(config(run_folder, page=page, pictures=("over-optimisation",)))
    with pytest.raises(UserError, match="--pictures are those of a page"):
        config(run_folder, pictures=(name,))


def test_tables_of_a_page(run_folder: Path, tmp_path: Path):
    page = tmp_path / "results.md"
    page.write_text("<!-- begin small -->\n<!-- end small -->\n")
    report(config(run_folder, page=page, tables=("wins-channel", "scores")))
    headings = re.findall("^### (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["Against greedy, judged by channel (teacher's proxy)", "Scores and costs"]
    assert (run_folder / "report" / "costs.csv").is_file()
    with pytest.raises(UserError, match="no table 'wins-chanel'.*Did you mean 'wins-channel'"):
        report(config(run_folder, page=page, tables=("wins-chanel",)))


def test_without_judges_there_are_costs(tmp_path: Path):
    folder = write_run(tmp_path / "bare")
    shutil.rmtree(folder / "judgements")
    made = compute(gather(folder, "greedy"), config(folder))
    assert [table.name for table in made.tables] == ["scores", "costs", "voting-gsm8k", "efficiency"]


def change(path: Path, number: int, **fields) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(unsummed(lines[number])) | fields)
    path.write_text("".join(f"{one}\n" for one in lines))


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("answers/gsm8k/sla.jsonl", cut, r"sla.jsonl ends before 'q2', line 3 of .*; finish it first"),
        ("answers/gsm8k/sla.jsonl", lambda path: path.write_text(""), r"gsm8k/sla.jsonl is empty"),
        ("answers/gsm8k/sla.jsonl", lambda path: change(path, 1, id="x"), r"sla.jsonl, line 2: 'id' is 'x'"),
        ("answers/mt_bench/sla.jsonl", lambda path: path.unlink(), r"judges answers that are not there"),
        ("judgements/other/gsm8k/sla.jsonl", cut, r"other/gsm8k/sla.jsonl ends before 'q2'"),
        (
            "judgements/other/gsm8k/sla.jsonl",
            lambda path: change(path, 0, scores=[1.0, 2.0]),
            "line 1: 'scores' has 2",
        ),
        (
            "judgements/other/gsm8k/sla.jsonl",
            lambda path: change(path, 0, scores=[float("nan")]),
            r"line 1: 'scores\[0\]' is NaN",
        ),
        (
            "judgements/llm/mt_bench/sla.vs.greedy.jsonl",
            lambda path: change(path, 1, winner="me"),
            "line 2: 'winner' is",
        ),
        ("judgements/llm/judge.json", lambda path: path.write_text("{}"), r"judge.json: 'label' is None"),
        ("settings.json", lambda path: path.write_text("{"), r"settings.json, line 1: not JSON"),
        ("settings.json", lambda path: path.unlink(), r"there is no .*settings.json"),
    ],
)
def test_a_run_that_is_not_whole(name: str, damage, said: str, tmp_path: Path):
    folder = write_run(tmp_path / "run")
    damage(folder / name)
    with pytest.raises(UserError, match=said):
        gather(folder, "greedy")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": "greddy"}, "Did you mean 'greedy'"),
        ({"best_of_n": "worst"}, "no method 'worst'"),
        ({"best_of_n": "sla"}, "sla has no scored candidates"),
        ({"gold": "oter"}, "no judge 'oter'.*Did you mean 'other'"),
    ],
)
def test_names_that_are_not_there(changes: dict, said: str, run_folder: Path):
    chosen = config(run_folder, **changes)
    with pytest.raises(UserError, match=said):
        compute(gather(run_folder, chosen.baseline), chosen)


@pytest.mark.parametrize("changes", [{"resamples": 1}, {"timeout": 0}, {"devices": {"sla": 0}}])
def test_numbers_out_of_range(changes: dict, tmp_path: Path):
    with pytest.raises(UserError, match="at least"):
        config(tmp_path, **changes)


NAME = "=1+1|<b>[x](y)$\\input{z}_%\n\x1b"


def test_what_a_run_is_called_does_nothing_in_its_report(tmp_path: Path):
    """A run of a stranger: files, labels and levels are named as they like."""
    folder = write_run(tmp_path / "run")
    (folder / "judgements" / "channel" / "judge.json").write_text(json.dumps({"label": NAME.rstrip("\x1b")}))
    for file in folder.rglob("gsm8k/sla.jsonl"):
        file.rename(file.with_name("=sla|<b>$x_$%.jsonl"))
    for file in (folder / "answers" / "gsm8k").glob("*.jsonl"):
        lines = [json.loads(line) | {"level": NAME} for line in unsummed(file.read_text()).splitlines()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(config(folder, devices={}))
    written = {path.name: path for path in (folder / "report").iterdir()}
    for name, path in written.items():
        if name.endswith(".csv"):
            cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
            assert not [cell for cell in cells if cell.startswith("=")]
        elif name.endswith(".svg"):
            assert xml.etree.ElementTree.parse(path).getroot().tag.endswith("svg")
    page = written["report.md"].read_text()
    assert "<b>" not in page.replace("\\<b\\>", "") and "[x](y)" not in page and "\x1b" not in page
    assert all(line.count("|") == line.count("\\|") for line in page.splitlines() if not line.startswith("|"))
    assert "<b>" not in written["index.html"].read_text()
    rows = [line for line in written["latex.txt"].read_text().splitlines() if not line.startswith("%")]
    assert rows and not [row for row in rows if re.search(r"(?<!\\)[$_%<]", row.replace("<b>", ""))]


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(UserError, match="there are no answers"):
        gather(tmp_path, "greedy")


def test_a_table_as_text():
    columns = (Column("a | b"), Column("x", ".2f"), Column("y"))
    table = Table("t", "Title", "Note.", columns, (("m", Estimate(1.0, 0.5, 1.5, 3), None), ("n", float("nan"), 2)))
    assert markdown(table).splitlines()[2:6] == [
        "| a \\| b | x | y |",
        "| --- | ---: | ---: |",
        "| m | 1.00 [0.50, 1.50] | – |",
        "| n | – | 2 |",
    ]
    assert as_csv(table) == "a | b,x,x low,x high,y\nm,1.0,0.5,1.5,\nn,,,,2\n"
