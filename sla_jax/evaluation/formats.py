"""Answers in the layouts that the benchmarks' own programs read.

| layout | file | read by |
|---|---|---|
| mt_bench | OUT/formats/fastchat/BENCHMARK/model_answer/METHOD.jsonl | FastChat's gen_judgment.py, show_result.py |
| arena_hard | OUT/formats/arena_hard/BENCHMARK/model_answer/METHOD.jsonl | arena-hard-auto's programs of these names |
| alpaca_eval | OUT/formats/alpaca_eval/BENCHMARK/METHOD.json | alpaca_eval --model_outputs |
| ifeval | OUT/formats/ifeval/BENCHMARK/METHOD.jsonl | evaluation_main.py --input_response_data |

Where a layout wants an identity or a time, these are made from the answer (and 0), so that a file is a function of the
answers in it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sla_jax.evaluation.rows import Answer
from sla_jax.files import json_line, write_text

FORMATS = "formats"
CODE = re.compile("```([^`]*)```")


def write_format(out: Path, layout: str, answers: Sequence[Answer]) -> None:
    """The file of one method's answers to one benchmark; nothing for a layout of which no program has its own."""
    if layout in WRITERS and answers:
        folder, name, render = WRITERS[layout]
        first = answers[0]
        path = out / FORMATS / folder / first.benchmark / name.format(method=first.method)
        write_text(path, render(answers))


def fastchat_row(answer: Answer) -> dict[str, Any]:
    """A line of FastChat's model_answer. Its question ids are numbers where they look like some."""
    return {
        "question_id": int(answer.id) if answer.id.isdecimal() else answer.id,
        "answer_id": identity(answer),
        "model_id": answer.method,
        "choices": [{"index": 0, "turns": [turn.text for turn in answer.turns]}],
        "tstamp": 0.0,
    }


def arena_hard_row(answer: Answer) -> dict[str, Any]:
    """A line of arena-hard-auto's model_answer (v0.1 and v2.0 by `uid`). `token_len` counts the model's own tokens, or
    words where these are not known; the original counts GPT-4o's."""
    last = answer.turns[-1]
    asked = answer.messages(len(answer.turns) - 1)
    length = len(last.token_ids) or len(last.text.split())
    return {
        "uid": answer.id,
        "ans_id": identity(answer),
        "model": answer.method,
        "messages": [*asked, {"role": "assistant", "content": {"answer": last.text}}],
        "tstamp": 0.0,
        "metadata": {"token_len": length, **markdown_counts(last.text)},
    }


def alpaca_eval_row(answer: Answer) -> dict[str, Any]:
    """An object of alpaca_eval's model_outputs."""
    turn = answer.turns[-1]
    row = {"instruction": turn.prompt, "output": turn.text, "generator": answer.method}
    return row if answer.category is None else {**row, "dataset": answer.category}


def ifeval_row(answer: Answer) -> dict[str, Any]:
    """A line of IFEval's input_response_data."""
    return {"prompt": answer.turns[-1].prompt, "response": answer.turns[-1].text}


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold words outside of code, as arena-hard-auto counts them for its control of style."""
    for block in CODE.findall(text):
        text = text.replace(block, "")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def identity(answer: Answer) -> str:
    """22 characters, as many as the shortuuids of the originals, made from what was answered."""
    said = json.dumps([answer.benchmark, answer.method, answer.id, [turn.text for turn in answer.turns]])
    return hashlib.sha256(said.encode()).hexdigest()[:22]


def _lines(row: Callable[[Answer], dict[str, Any]]) -> Callable[[Sequence[Answer]], str]:
    return lambda answers: "".join(json_line(row(answer)) for answer in answers)


def _array(answers: Sequence[Answer]) -> str:
    return json.dumps([alpaca_eval_row(answer) for answer in answers], indent=1, ensure_ascii=False) + "\n"


WRITERS: dict[str, tuple[str, str, Callable[[Sequence[Answer]], str]]] = {
    "mt_bench": ("fastchat", "model_answer/{method}.jsonl", _lines(fastchat_row)),
    "arena_hard": ("arena_hard", "model_answer/{method}.jsonl", _lines(arena_hard_row)),
    "alpaca_eval": ("alpaca_eval", "{method}.json", _array),
    "ifeval": ("ifeval", "{method}.jsonl", _lines(ifeval_row)),
}
