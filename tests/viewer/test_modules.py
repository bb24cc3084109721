"""The viewer's modules that draw nothing, run by Node.js where there is one: texts, events, trees, rows, cells."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sla_jax.evaluation.viewer.pages import STATIC
from tests.serving.fake import ANSWER
from tests.viewer.recorded import CHUNK, TEXTS, entropies, tree_trace

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="no Node.js on this machine; the browser tests run the same modules"
)


def node(tmp_path: Path, module: str, names: str, code: str, given: Any = None) -> Any:
    """What `code` returns, with `names` of a module and `given` at hand. Node takes the copies for modules."""
    for path in STATIC.glob("*.js"):
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    (tmp_path / "given.json").write_text(json.dumps(given), encoding="utf-8")
    program = (
        'import { readFileSync } from "node:fs";\n'
        "const nothing = () => ({ dataset: {}, setAttribute() {}, append() {}, addEventListener() {} });\n"
        "globalThis.document = { createElement: nothing, addEventListener() {} };\n"
        f'const {{ {names} }} = await import("./{module}");\n'
        'const given = JSON.parse(readFileSync("given.json", "utf8"));\n'
        f"const found = await (async () => {{ {code} }})();\n"
        "process.stdout.write(JSON.stringify(found));\n"
    )
    (tmp_path / "program.js").write_text(program, encoding="utf-8")
    assert NODE is not None
    done = subprocess.run([NODE, "program.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("text", "pieces", "expected"),
    [
        ("Hi you", ["Hi", " you"], [["Hi", 0, 1], [" you", 1, 1]]),
        ("Hi", ["Hi", "<|im_end|>"], [["Hi", 0, 1], ["", 1, 1]]),
        ("a東b", ["a", "\ufffd", "\ufffd", "\ufffd", "b"], [["a", 0, 1], ["東", 1, 3], ["b", 4, 1]]),
        ("a東", ["a", "\ufffd", "\ufffd"], [["a", 0, 1], ["東", 1, 2]]),
        ("a", ["a", "\ufffd", "\ufffd"], [["a", 0, 1], ["", 1, 2]]),
        ("Once upon", ["Once", "upon"], [["Once", 0, 1], [" upon", 1, 1]]),
        ("", [], []),
        ("all", [], [["all", 0, 0]]),
    ],
)
def test_tokens_are_found_in_their_text(tmp_path, text, pieces, expected):
    code = "return spans(...given).map((one) => [one.text, one.first, one.count]);"
    assert node(tmp_path, "spans.js", "spans", code, [text, pieces]) == expected


def test_a_text_can_be_cut_at_any_token(tmp_path):
    code = "return given[1].concat([0]).map((_, count) => textUpTo(given[0], given[1], count));"
    found = node(tmp_path, "spans.js", "textUpTo", code, ["a東b", ["a", "\ufffd", "\ufffd", "b"]])
    assert found == ["", "a", "a", "a東", "a東b"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_whole_however_they_are_cut(tmp_path, size):
    stream = ': keep-alive\n\ndata: {"a": "é👍"}\n\n: keep-alive\n\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\n'
    code = f"""
        const bytes = new TextEncoder().encode(given);
        const body = new ReadableStream({{ start(out) {{
          for (let at = 0; at < bytes.length; at += {size}) out.enqueue(bytes.slice(at, at + {size}));
          out.close(); }} }});
        const found = [];
        for await (const event of events(body)) found.push(event);
        return found;"""
    assert node(tmp_path, "stream.js", "events", code, stream) == [{"a": "é👍"}, {"b": 2}]


def test_a_stream_that_breaks_off_is_an_error(tmp_path):
    code = """
        const body = new ReadableStream({ start(out) { out.enqueue(new TextEncoder().encode(given)); out.close(); } });
        try { for await (const event of events(body)); } catch (error) { return error.message; }"""
    assert "broke off" in node(tmp_path, "stream.js", "events", code, 'data: {"a": 1}\n\n')


def test_levels(tmp_path):
    code = "return [[-9, -0.5, 0, 0.5, 9, NaN, null].map(rewardLevel), [-1, 0, 0.6, 3, 6, 20, null].map(entropyLevel)];"
    found = node(tmp_path, "colour.js", "rewardLevel, entropyLevel", code)
    assert found == [[0, 4, 5, 6, 10, None, None], [0, 0, 1, 5, 10, 10, None]]


ROUNDS = """
const branch = (parent, rank, tokens, score, kept = true) =>
  ({ parent, rank, tokens, score, kept, finish: null, rewards: tokens.map(() => score) });
const tree = new Tree();
const grow = (tokens, chosen, ...branches) => tree.add({ round: tree.rounds, tokens, chosen, branches });
grow([1, 2], 0, branch(0, 0, [1, 2], 0));
grow([], null, branch(0, 0, [3, 4], 1), branch(0, 1, [5, 6], 2));
"""


def test_what_becomes_of_branches(tmp_path):
    """Two first-level nodes of which the second wins; of its two children one was given up before."""
    code = f"""{ROUNDS}
        grow([], null, branch(0, 0, [7], 1), branch(1, 0, [8], 2), branch(1, 1, [9], 1));
        grow([5, 6], 1, branch(0, 0, [1], 0, false), branch(1, 0, [1], 3));
        return [tree.nodes.map((one) => one.state), tree.winner.id, tree.committed, tree.counts()];"""
    states, winner, committed, counts = node(tmp_path, "tree.js", "Tree", code)
    expected = ["committed", "committed", "dropped", "committed", "dropped", "alive", "given up", "dropped", "alive"]
    assert states == expected and winner == 8 and committed == 4
    assert counts == {"committed": 2, "dropped": 3, "alive": 2, "given up": 1}


def test_a_leaf_that_has_ended_goes_on_as_itself(tmp_path):
    code = f"""{ROUNDS}
        grow([], null, branch(0, 0, [], 5), branch(1, 0, [8], 2));
        return [tree.nodes.length, tree.leaves[0].id, tree.leaves[0].score];"""
    assert node(tmp_path, "tree.js", "Tree", code) == [5, 2, 5]


def test_no_two_branches_stand_on_one_place(tmp_path):
    lines = tree_trace(ANSWER)[1:-1]
    code = """
        const { Tree } = await import("./tree.js");
        const tree = new Tree();
        for (const round of given) tree.add(round);
        const { rows, height, width } = layout(tree);
        return [tree.nodes.slice(1).map((one) => [rows.get(one), one.start, one.end, one.state]), height, width];"""
    nodes, height, width = node(tmp_path, "layout.js", "layout", code, lines)
    assert width == len(ANSWER) and height == 2
    assert {row for row, _, _, state in nodes if state == "committed"} == {0}
    places = [(row, at) for row, start, end, _ in nodes for at in range(start, end)]
    assert len(set(places)) == len(places)
    assert len(nodes) == 2 * len(lines) - 1 and len(lines) == -(-len(ANSWER) // CHUNK)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_cells_join_to_the_text(tmp_path, size):
    rows = entropies(size)
    code = "return given.map((row) => cellsOf(row));"
    found = node(tmp_path, "heat.js", "cellsOf", code, rows)
    for row, cells, text in zip(rows, found, TEXTS, strict=True):
        assert "".join(cell["text"] for cell in cells) == text
        assert [cell["entropy"] for cell in cells] == row["entropy"][1:]
        assert [cell["wrong"] for cell in cells] == [not right for right in row["correct"][1:]]


def test_tokens_that_share_a_character_share_a_cell(tmp_path):
    row = {"text": "é!", "tokens": ["a", "b", "c"], "offsets": [[0, 1], [0, 1], [1, 2]], "entropy": [None, 2.0, 1.0]}
    row |= {"pred_tokens": [None, "b", "x"]}
    cells = node(tmp_path, "heat.js", "cellsOf", "return cellsOf(given);", row)
    assert [(cell["text"], cell["tokens"], cell["entropy"], cell["wrong"]) for cell in cells] == [
        ("é", [0, 1], 2.0, False),
        ("!", [2], 1.0, True),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "f line 1 is cut off"),
        ('{"a": 1}', "f line 1 has no text"),
        ('{"text": "a", "tokens": ["a"], "offsets": [], "entropy": [1], "pred_tokens": ["a"]}', "f line 1: offsets"),
    ],
)
def test_what_is_no_file_of_entropies_is_said(tmp_path, text, said):
    code = 'try { readRows("f", given); } catch (error) { return error.message; }'
    assert said in node(tmp_path, "heat.js", "readRows", code, text)


def test_two_files_are_aligned_by_characters(tmp_path):
    code = """
        const { cellsOf } = await import("./heat.js");
        const [first, second] = given.map((rows) => cellsOf(rows[0]));
        return [first.map((cell) => overlapping(cell, second)), second.map((cell) => overlapping(cell, first))];"""
    forth, back = node(tmp_path, "beside.js", "overlapping", code, [entropies(3), entropies(2)])
    assert forth[:3] == [[0, 1], [1, 2], [3, 4]]
    assert all(place in back[there] for place, found in enumerate(forth) for there in found)


def test_texts_are_paired_in_the_first_files_order(tmp_path):
    rows = [[{"text": name, "n": n} for n, name in enumerate(names)] for names in ("abca", "acxa")]
    code = "return pairsOf(...given).map(([one, other]) => [one.text, one.n, other.n]);"
    assert node(tmp_path, "beside.js", "pairsOf", code, rows) == [["a", 0, 0], ["c", 2, 1], ["a", 3, 3]]


@pytest.mark.parametrize(
    ("cut", "said"),
    [(slice(1, None), "no trace"), (slice(0, -1), "cut off"), (slice(0, 0), "no trace")],
)
def test_what_is_no_whole_trace_is_said(tmp_path, cut, said):
    text = "".join(json.dumps(line) + "\n" for line in tree_trace("a text")[cut])
    code = 'try { readTrace("f", given); } catch (error) { return error.message; }'
    assert said in node(tmp_path, "trace.js", "readTrace", code, text)


def test_numbers_that_are_none_are_read(tmp_path):
    lines = tree_trace("a text")
    lines[1]["score"], lines[1]["branches"][0]["rewards"][0] = "-Infinity", "NaN"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    code = """
        const [{ score, branches }] = readTrace("f", given).rounds;
        return [score, branches[0].rewards[0]].map(String);"""
    assert node(tmp_path, "trace.js", "readTrace", code, text) == ["-Infinity", "NaN"]
