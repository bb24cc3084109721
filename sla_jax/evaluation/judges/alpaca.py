"""Files for `alpaca_eval`, and back: its CLI takes what is written here as it is, and what it annotates is read.

    OUT/judgements/JUDGE/BENCHMARK/METHOD.vs.BASELINE/model_outputs.json       {instruction, output, generator, dataset}
    OUT/judgements/JUDGE/BENCHMARK/METHOD.vs.BASELINE/reference_outputs.json   the same of the baseline, row by row
    alpaca_eval --model_outputs … --reference_outputs … --output_path … --annotators_config …

It writes annotations.json into the output path or a folder in it: rows of {instruction, output_1, generator_1,
output_2, generator_2, preference, …} in which 1 is the reference and 2 the model; a preference of 1 is the reference's,
of 2 the model's, 1.5 (in old versions 0) a tie, and what lies between is a probability. Rows without one (null: the
annotator failed) are an error by number.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError
from sla_jax.evaluation.judges.protocol import Comparison, Winner
from sla_jax.evaluation.rows import Answer, check_ids
from sla_jax.files import read_json, write_text

MODEL, REFERENCE, ANNOTATIONS = "model_outputs.json", "reference_outputs.json", "annotations.json"


def write_pair(folder: Path, method: Sequence[Answer], baseline: Sequence[Answer]) -> list[str]:
    """Write both files; returns the words of the command. Raises UserError unless both answer the same prompts."""
    paths = [folder / name for name in (MODEL, REFERENCE)]
    check_ids(paths[0], [one.id for one in method], paths[1], [one.id for one in baseline])
    for path, answers in zip(paths, (method, baseline), strict=True):
        write_text(path, json.dumps([row_of(one) for one in answers], indent=1, ensure_ascii=False) + "\n")
    files = ["--model_outputs", str(paths[0]), "--reference_outputs", str(paths[1])]
    return ["alpaca_eval", *files, "--output_path", str(folder)]


def annotations_in(folder: Path) -> Path | None:
    """The file that it has left; None as long as there is none. Raises UserError if there are several."""
    found = sorted(folder.rglob(ANNOTATIONS))
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} files {ANNOTATIONS}; keep one annotator's only.")
    return found[0] if found else None


def row_of(answer: Answer) -> dict[str, str]:
    """One row of its files: the first turn, which is all that it judges."""
    turn = answer.turns[0]
    return {
        "instruction": turn.prompt,
        "output": turn.text,
        "generator": answer.method,
        "dataset": answer.category or answer.benchmark,
    }


def read_annotations(path: Path, method: Sequence[Answer], baseline: Sequence[Answer]) -> list[Comparison]:
    """What it said of the method's answers, in their order. Raises UserError naming file, row and field."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path} should hold a list of annotations, not a {type(rows).__name__}.")
    found: dict[tuple[str, str, str], Comparison] = {}
    known = {
        (one.turns[0].prompt, other.turns[0].text, one.turns[0].text): (one, other)
        for one, other in zip(method, baseline, strict=True)
    }
    for number, row in enumerate(rows, 1):
        key, preference = _checked(row, f"{path}, row {number}")
        if key not in known:
            raise UserError(f"{path}, row {number}: 'output_2' answers no prompt of this run with these words.")
        one, other = known[key]
        found[key] = Comparison(one.id, other.method, _winner(preference), {"preference": preference})
    if missing := [one.id for key, (one, _) in known.items() if key not in found]:
        raise UserError(f"{path} lacks the annotation of {missing[0]!r} ({len(missing)} in all); annotate the rest.")
    return [found[key] for key in known]


def _checked(row: Any, where: str) -> tuple[tuple[str, str, str], float]:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is no object.")
    for name in ("instruction", "output_1", "output_2"):
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: {name!r} is {row.get(name)!r}; it has to be a text.")
    given = row.get("preference")
    if not isinstance(given, int | float) or isinstance(given, bool) or not (given == 0 or 1 <= given <= 2):
        raise UserError(f"{where}: 'preference' is {given!r}; it has to be a number from 1 to 2.")
    return (row["instruction"], row["output_1"], row["output_2"]), float(given)


def _winner(preference: float) -> Winner:
    if preference in (0, 1.5):
        return "tie"
    return "method" if preference > 1.5 else "baseline"
