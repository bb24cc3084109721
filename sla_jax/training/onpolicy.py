"""Preference pairs from a model's own answers: sample, score, keep the best and the worst of each prompt.

OUT/.lock              held by the program that writes here, while it does
OUT/pairs.yaml         resolved config, written before the first answer
OUT/data.json          fingerprints of the prompts and of the checkpoint
OUT/candidates.jsonl   one line a prompt, appended batch by batch; scores are added when all answers are there
OUT/pairs.jsonl        what train.py reads
OUT/summary.json       counts and means

Batches are a function of the config and the prompts, and the seed of a candidate of the run's seed, the prompt and the
candidate's number; so a run that was killed and started again ends as if it had not been. Scoring comes last and may be
repeated with another scorer on the same answers.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.checkpoint import store
from sla_jax.config import parse
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Program, check_prompt
from sla_jax.decode.result import Round
from sla_jax.errors import UserError
from sla_jax.files import append_lines, drop_cut_line, own_line, read_rows, read_text, write_text
from sla_jax.loading import Loaded, engine, load_model, use_compilation_cache
from sla_jax.locks import clear, contents, one_writer
from sla_jax.model.policy import without_channel
from sla_jax.progress import bar, say
from sla_jax.scoring.candidate import Candidate, Score, detailed
from sla_jax.scoring.registry import make_scorer
from sla_jax.text import chat_ids, check_vocabulary, decode
from sla_jax.training.hosts import stopping
from sla_jax.training.onpolicy_config import PairsConfig
from sla_jax.training.onpolicy_pairs import best_and_worst, summary
from sla_jax.training.onpolicy_prompts import Prompt, choose_prompts, cut, md5
from sla_jax.training.resume import check_inputs, differences, read_config, write_config

CONFIG_FILE, CANDIDATES, PAIRS, SUMMARY = "pairs.yaml", "candidates.jsonl", "pairs.jsonl", "summary.json"
DECODER = Greedy(chunk=16)  # plain decoding; what it draws is the sampling's business


class Ready(NamedTuple):
    """A prompt and its token ids."""

    prompt: Prompt
    ids: list[int]


def main(argv: list[str]) -> None:
    """`python train.py pairs CONFIG.yaml [--flag …]`: make the pairs, then say where they are."""
    described = "Sample answers, score them, write the best and the worst of each prompt as a pair."
    config = parse(PairsConfig, argv, prog="train.py pairs", description=described)
    use_compilation_cache()
    out = make_pairs(config)
    for name in (PAIRS, CANDIDATES, SUMMARY):
        print(out / name)


def make_pairs(config: PairsConfig) -> Path:
    """Make the pairs, or go on where an earlier run stopped; returns OUT. Raises UserError."""
    with opened(config) as out:
        scorer = make_scorer(config.scorers)  # first, because a bad one should not cost an hour
        model = language_model(config)
        chosen, counts = choose_prompts(config)
        prompts, left_out = tokenized(config, model, chosen)
        counts.update(left_out)
        check_inputs(out, {"prompts": _fingerprint(prompts), "model": _marker(Path(config.model))})
        sample(config, out, model, prompts)
        rows = _in_order(out, prompts)
        scores = detailed(scorer, [candidate for row in rows for candidate in candidates(row)])
        _write_results(config, out, rows, scores, scorer.name, counts)
    return out


# ---- the run's folder ----


@contextlib.contextmanager
def opened(config: PairsConfig) -> Iterator[Path]:
    """OUT, made or checked, and held; what the user can mend leaves nothing behind of a run that has no answer yet."""
    with one_writer(Path(config.out)):
        out = _open(config)
        try:
            yield out
        except (UserError, OSError):
            if not (out / CANDIDATES).exists():
                shutil.rmtree(out)
            raise


def _open(config: PairsConfig) -> Path:
    out, file = Path(config.out), Path(config.out) / CONFIG_FILE
    if config.overwrite and file.exists():
        clear(out)
    if file.exists():
        saved = read_config(PairsConfig, file)
        free = dataclasses.replace(saved, scorers=config.scorers, min_margin=config.min_margin)
        changes = list(differences(free, config))
        if changes:
            raise UserError(
                f"{out} holds answers of another config ({'; '.join(changes)}). Give --out another folder, pass "
                f"{file} to go on with that run, or pass --overwrite to delete it. Only the scorers and min_margin "
                "may change: the same answers are then scored anew."
            )
    elif out.exists() and (not out.is_dir() or contents(out)):
        raise UserError(f"{out} exists and is no run of this program (no {CONFIG_FILE}); give --out another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_config(dataclasses.replace(config, overwrite=False), file)
    return out


def read_candidates(out: Path) -> dict[str, dict[str, Any]]:
    """Prompt id → its line; a line that a kill cut short is dropped from the file."""
    path = out / CANDIDATES
    if not path.exists():
        return {}
    drop_cut_line(path)
    return {row["id"]: row for _, row in read_rows(path)}


def _in_order(out: Path, prompts: Sequence[Ready]) -> list[dict[str, Any]]:
    rows = read_candidates(out)
    return [rows[ready.prompt.id] for ready in prompts]


# ---- the model and the prompts ----


def language_model(config: PairsConfig) -> Loaded:
    """A checkpoint ready to sample from: its channel costs time at every token and is left out."""
    loaded = load_model(Path(config.model), template=config.template, date=config.date)
    loaded.policy.channel = None
    return loaded._replace(config=without_channel(loaded.config))


def tokenized(config: PairsConfig, model: Loaded, prompts: Sequence[Prompt]) -> tuple[list[Ready], Counter[str]]:
    """The prompts that are answered, with their ids, and how many were left out and why."""
    sizes = {"context": model.config.max_positions, "vocabulary": model.config.vocab_size}
    ready = [Ready(prompt, _ids(model, prompt)) for prompt in prompts]
    fitting = {one.prompt.id: one for one in ready if len(one.ids) <= config.max_prompt_tokens}
    taken = [fitting[prompt.id] for prompt in cut([one.prompt for one in fitting.values()], config.limit)]
    if not taken:
        raise UserError(f"no prompt is left of {len(prompts)} (max_prompt_tokens={config.max_prompt_tokens}).")
    for one in taken:
        check_vocabulary(model.tokenizer, one.ids, model.config.vocab_size, one.prompt.origin)
        check_prompt(one.ids, config.max_tokens, **sizes)
    counts = {"too_long": len(ready) - len(fitting), "over_limit": len(fitting) - len(taken), "used": len(taken)}
    return taken, Counter(counts)


def _ids(model: Loaded, prompt: Prompt) -> list[int]:
    try:
        return chat_ids(model.tokenizer, prompt.messages)
    except UserError as error:
        raise UserError(f"{prompt.origin}: {error}") from None


def _fingerprint(prompts: Sequence[Ready]) -> str:
    return md5(json.dumps([ready.ids for ready in prompts]))


def _marker(directory: Path) -> str:
    return md5(read_text(directory / store.MARKER))


# ---- sampling ----


def sample(config: PairsConfig, out: Path, model: Loaded, prompts: Sequence[Ready]) -> None:
    """Answer every prompt that has no line yet. Ctrl-C and SIGTERM stop after the batch under way."""
    program = Program(engine(model.config), DECODER)
    there = set(read_candidates(out))
    began, tokens = time.perf_counter(), 0
    with stopping() as stop, bar("sampling") as tell:
        tell(len(there), len(prompts), "prompts")
        for batch in batches(config, prompts):
            missing = [ready for ready in batch if ready.prompt.id not in there]
            if not missing:
                continue
            rows = {row["id"]: row for row in answer(config, model, program, batch)}
            append_lines(out / CANDIDATES, (own_line(rows[ready.prompt.id]) for ready in missing))
            there |= rows.keys()
            tokens += sum(one["n_tokens"] for row in rows.values() for one in row["candidates"])
            tell(len(there), len(prompts), f"prompts  {tokens / (time.perf_counter() - began):.0f} tokens/s")
            if stop.signal is not None and len(there) < len(prompts):
                say(f"{len(there)} of {len(prompts)} prompts are answered in {out}; run the same command to go on")
                raise SystemExit(0) if stop.signal == signal.SIGTERM else KeyboardInterrupt


def batches(config: PairsConfig, prompts: Sequence[Ready]) -> list[list[Ready]]:
    """Prompts that are answered together: of like length, so that few shapes are compiled."""
    size = config.rows // config.samples
    ordered = sorted(prompts, key=lambda ready: (len(ready.ids), ready.prompt.id))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def answer(config: PairsConfig, model: Loaded, program: Program, batch: Sequence[Ready]) -> list[dict[str, Any]]:
    """The lines of a batch; rows that the last batch leaves empty are filled with requests for nothing."""
    asked = [(ready, c) for ready in batch for c in range(config.samples)]
    spare = config.rows - len(asked)
    seeds = [candidate_seed(config.seed, ready.prompt, c) for ready, c in asked]
    samplings = [config.sampling(c, seed) for (_, c), seed in zip(asked, seeds, strict=True)]
    state = program.start(
        model.policy,
        [ready.ids for ready, _ in asked] + [batch[0].ids] * spare,
        [config.max_tokens] * len(asked) + [0] * spare,
        model.end_tokens,
        samplings + [config.sampling(0, 0)] * spare,
    )
    log = list(program.stream(model.policy, state))
    found = [_candidate(model, [rounds[i] for rounds in log], seed) for i, seed in enumerate(seeds)]
    return [
        {
            "id": ready.prompt.id,
            "origin": ready.prompt.origin,
            "messages": ready.prompt.messages,
            "candidates": found[i * config.samples : (i + 1) * config.samples],
        }
        for i, ready in enumerate(batch)
    ]


def candidate_seed(seed: int, prompt: Prompt, candidate: int) -> int:
    """64 bits of the run's seed, the prompt's text and the candidate's number."""
    return int(md5(f"{seed}:{candidate}:{prompt.text}")[:16], 16)


def _candidate(model: Loaded, rounds: Sequence[Round], seed: int) -> dict[str, Any]:
    tokens = [token for one in rounds for token in one.tokens]
    text = decode(model.tokenizer, tokens)
    finished = any(one.stopped for one in rounds)
    return {"text": text, "tokens": tokens, "n_tokens": len(tokens), "finished": finished, "seed": seed}


def candidates(row: dict[str, Any]) -> list[Candidate]:
    """A line's answers as scorers see them."""
    return [Candidate(row["messages"], one["text"], one["tokens"], one["finished"]) for one in row["candidates"]]


# ---- results ----


def _write_results(
    config: PairsConfig,
    out: Path,
    rows: Sequence[dict[str, Any]],
    scores: Sequence[Score],
    scorer: str,
    counts: Counter[str],
) -> None:
    """The scores into candidates.jsonl, and the other two files; each is written whole or not at all."""
    every = iter(scores)
    for row in rows:
        for one in row["candidates"]:
            score = next(every)
            one |= {"score": score.total, "parts": score.parts}
    pairs, dropped = best_and_worst(config, rows, scorer)
    write_text(out / CANDIDATES, _lines(rows))
    write_text(out / PAIRS, _lines(pairs))
    counts.update(dropped)
    figures = summary(config, rows, pairs, counts, scorer)
    write_text(out / SUMMARY, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if not pairs:
        raise UserError(f"none of {len(rows)} prompts gave a pair ({dict(dropped)}); see {out / CANDIDATES}.")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(map(own_line, rows))
