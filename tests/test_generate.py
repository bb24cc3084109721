"""generate.py as a program: its JSON lines, its text, its errors."""

import io
import json
import shutil
import sys
import xml.etree.ElementTree

import pytest
from rich.console import Console

import convert
import generate
import sla_jax
from sla_jax import loading, terminal
from sla_jax.api import Chunk, Usage
from sla_jax.decode.cost import Cost
from sla_jax.errors import UserError, front_door
from tests import tiny
from tests.damage import edit
from tests.programs import run_program
from tests.tiny import CHATML

SMALL = ["--max-tokens", "20", "--search.chunk", "3", "--search.depth", "1"]


@pytest.fixture(scope="module")
def checkpoint(checkpoint):
    return str(checkpoint)


def test_json_lines(checkpoint, capsys):
    generate.main([checkpoint, "What is the capital of France?", "--json", *SMALL])
    *chunks, end = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert all(set(c) == {"round", "token_ids", "text", "rewards", "score", "margin"} for c in chunks)
    assert set(end) == {"done", "finish_reason", "token_ids", "text", "usage", "cost"}
    assert end["done"] is True and end["finish_reason"] in ("stop", "length")
    assert [t for c in chunks for t in c["token_ids"]] == end["token_ids"]
    assert "".join(c["text"] for c in chunks) == end["text"]
    assert all(len(c["rewards"]) == len(c["token_ids"]) > 0 for c in chunks)
    assert set(end["usage"]) == {"prompt_tokens", "completion_tokens", "explored_tokens"}
    assert end["usage"]["completion_tokens"] == len(end["token_ids"])
    assert chunks[0]["margin"] is None, "the first chunk has no rival"


def test_text_and_tally(checkpoint, capsys):
    generate.main([checkpoint, "What is the capital of France?", *SMALL])
    text = capsys.readouterr()
    generate.main([checkpoint, "What is the capital of France?", "--json", *SMALL])
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert text.out == end["text"] + "\n"
    assert f"{end['usage']['completion_tokens']} tokens ({end['finish_reason']})" in text.err
    assert "tokens explored per token committed" in text.err and "up to 4 lanes" in text.err


def test_compare_prints_both_answers_and_draws_them(checkpoint, capsys, tmp_path):
    generate.main([checkpoint, "Hello", "--compare", "greedy", "--picture", str(tmp_path / "both.svg"), *SMALL])
    picture = (tmp_path / "both.svg").read_text()
    assert picture.startswith("<svg") and "url(http" not in picture
    out = capsys.readouterr().out
    assert "── greedy ──" in out and "── look-ahead 2/3/1 ──" in out


def test_side_by_side_columns_hold_the_whole_answers_in_colour(checkpoint):
    model = sla_jax.load(checkpoint)
    column = terminal.Column("greedy", model.tokenizer)
    chunks = list(model.stream("Hello", search=sla_jax.Greedy(chunk=5), max_tokens=20))
    for chunk in chunks:
        column.add(chunk, 0.5)
    drawn = io.StringIO()
    Console(file=drawn, width=200, force_terminal=True, color_system="truecolor").print(column.render(-1.0, 1.0))
    assert "".join(piece for piece, _ in column.pieces) == "".join(chunk.text for chunk in chunks)
    rest = sum(len(chunk.token_ids) for chunk in chunks[1:])
    assert f"then {rest / (0.5 * (len(chunks) - 1)):.1f} tokens/s" in column.tally.line()
    assert column.done and "\x1b[38;2;" in drawn.getvalue()


def hostile_chunk():
    text = "a\x1b]0;owned\x07\x1b[2J\r\nb"
    usage = Usage(prompt_tokens=1, completion_tokens=1, explored_tokens=1)
    cost = Cost(steps=1, lane_steps=1, explored_tokens=1, committed_tokens=1, kv_bytes=1)
    known = {"score": None, "margin": None, "alive": 1, "usage": usage, "cost": cost, "finish_reason": "stop"}
    return Chunk(round=0, token_ids=[1], text=text, rewards=[0.5], **known)


@pytest.mark.parametrize("shown", [True, False])
def test_what_a_model_writes_moves_no_cursor(monkeypatch, capsys, shown):
    """On a terminal; a file gets it as it is."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: shown)
    terminal.print_stream([hostile_chunk()])
    out = capsys.readouterr().out
    assert out == ("a␛]0;owned␇␛[2J␍\nb\n" if shown else f"{hostile_chunk().text}\n")


def test_nor_in_columns_and_pictures(tmp_path):
    column = terminal.Column("[red]name", tiny.byte_level_tokenizer())
    column.pieces.append((hostile_chunk().text, 0.5))
    drawn = io.StringIO()
    Console(file=drawn, width=60).print(column.render(-1.0, 1.0))
    assert "\x1b" not in drawn.getvalue() and "[red]name" in drawn.getvalue()
    terminal.save_picture({"[red]name": column}, tmp_path / "a.svg", title="<b>\x1b")
    assert xml.etree.ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_a_column_goes_on_from_the_prompt_as_its_answer_does(checkpoint, monkeypatch, capsys):
    """A SentencePiece tokenizer drops the space in front of a whole text, and an answer to a raw prompt is none."""
    tokenizer, seen = tiny.sentencepiece_tokenizer(), []
    monkeypatch.setattr(loading, "load_tokenizer", lambda directory: tokenizer)
    monkeypatch.setattr(terminal, "save_picture", lambda columns, *_, **__: seen.extend(columns.values()))
    space = tokenizer.convert_tokens_to_ids("▁")
    flags = ["--raw", "--compare", "greedy", "--picture", "x.svg", "--sampling.logit-bias", str(space), "100"]
    generate.main([checkpoint, "Hello", *flags, *SMALL, "--max-tokens", "3"])
    assert [_text(column) for column in seen] == ["   ", "   "]
    assert capsys.readouterr().out.count("   \n") == 2


def _text(column):
    return "".join(piece for piece, _ in column.pieces)


def test_raw_and_system_change_what_the_model_reads(checkpoint, capsys):
    def prompt_tokens(*flags: str) -> int:
        generate.main([checkpoint, "Hello", "--json", *SMALL, *flags])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["usage"]["prompt_tokens"]

    assert prompt_tokens("--raw") < prompt_tokens() < prompt_tokens("--system", "Be brief.")


def test_variables_and_the_day_reach_the_template(checkpoint, tmp_path, capsys):
    copied = tmp_path / "qwen3"
    shutil.copytree(checkpoint, copied)
    thinks = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    edit(copied, "chat_template.jinja", CHATML + thinks + "{{ '+' * strftime_now('%d') | int }}")

    def prompt_tokens(*flags: str) -> int:
        generate.main([str(copied), "Hello", "--json", "--max-tokens", "1", "--search.method", "greedy", *flags])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["usage"]["prompt_tokens"]

    plain = prompt_tokens("--date", "2024-07-26")
    assert prompt_tokens("--date", "2024-07-26", "--template.enable_thinking", "false") > plain
    assert prompt_tokens("--date", "2024-07-26", "--template", '{"enable_thinking": true}') == plain
    assert prompt_tokens("--date", "2024-07-01") < plain


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--search.method", "greedy", "--search.width", "3"], "--search.width means nothing"),
        (["--search.alpha", "0.5"], "--search.alpha means nothing to --search.method sla; that takes"),
        (["--search.method", "best_of_n"], "at temperature 0"),
        (["--search.width", "0"], "width=0 is out of range"),
        (["--serach.width", "2"], "Did you mean '--search.width'"),
        (["--max-tokens", "0"], "max_tokens=0"),
        (["--max-tokens", "5000"], "context holds 256"),
        (["--raw", "--system", "x"], "--system needs the chat template"),
        (["--raw", "--template.a", "1"], "--template is for the chat template"),
        (["--raw", "--date", "2024-07-26"], "--date is for the chat template"),
        (["--date", "26 Jul 2024"], "date='26 Jul 2024' is no day"),
        (["--template.enable_thinking", "false"], "does not read the variable 'enable_thinking'"),
        (["--template.messages", "[]"], "the template variable 'messages' is not free"),
        (["--json", "--compare", "greedy"], "--json prints one answer"),
        (["--picture", "x.svg"], "give --compare greedy"),
    ],
)
def test_bad_flags_are_named(checkpoint, flags, says):
    with pytest.raises(UserError) as error:
        generate.main([checkpoint, "Hello", *flags])
    assert says in str(error.value)


def test_a_directory_that_is_no_checkpoint_exits_2_without_a_traceback(tmp_path):
    done = run_program("generate.py", str(tmp_path), "Hello", ok=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (generate, ["{checkpoint}", "Hi", "--trace", "{file}/a.jsonl"]),
        (convert, ["export", "{checkpoint}", "{file}/out"]),
    ],
)
def test_a_file_where_a_folder_is_needed_is_said(door, words, checkpoint, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(SystemExit) as stop:
        front_door(door.main, [word.format(checkpoint=checkpoint, file=file) for word in words])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and f"{file}" in told and "error: " in told and "Traceback" not in told
