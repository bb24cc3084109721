"""From scored answers to pairs, and the figures that are told about them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sla_jax.scoring.loops import falls_into_loop
from sla_jax.training.onpolicy_config import PairsConfig

Row = Mapping[str, Any]


def best_and_worst(config: PairsConfig, rows: Sequence[Row], scorer: str) -> tuple[list[dict[str, Any]], Counter[str]]:
    """One pair a prompt at most, and how many prompts gave none and why. Of equal scores the first candidate counts."""
    pairs: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        answers = row["candidates"]
        able = [i for i, one in enumerate(answers) if one["text"].strip()]
        dropped["empty_answers"] += len(answers) - len(able)
        best = max(able, key=lambda i: answers[i]["score"], default=0)
        worst = min(able, key=lambda i: answers[i]["score"], default=0)
        margin = answers[best]["score"] - answers[worst]["score"]
        if margin == 0 or answers[best]["text"] == answers[worst]["text"]:
            dropped["ties"] += 1
        elif margin < config.min_margin:
            dropped["small_margins"] += 1
        else:
            pairs.append(_pair(config, row, best, worst, scorer))
    return pairs, dropped


def _pair(config: PairsConfig, row: Row, best: int, worst: int, scorer: str) -> dict[str, Any]:
    chosen, rejected = (row["candidates"][i] for i in (best, worst))
    sampling = {
        "temperatures": [config.candidate_temperatures[i] for i in (best, worst)],
        **{name: getattr(config, name) for name in ("top_p", "top_k", "min_p", "max_tokens")},
    }
    return {
        "messages": row["messages"],
        "chosen": chosen["text"],
        "rejected": rejected["text"],
        "chosen_score": chosen["score"],
        "rejected_score": rejected["score"],
        "provenance": {
            "model": config.model,
            "scorer": scorer,
            "seed": config.seed,
            "prompt": row["id"],
            "origin": row["origin"],
            "candidates": [best, worst],
            "finished": [chosen["finished"], rejected["finished"]],
            "sampling": sampling,
        },
    }


def summary(
    config: PairsConfig, rows: Sequence[Row], pairs: Sequence[Row], counts: Mapping[str, int], scorer: str
) -> dict[str, Any]:
    """Counts, and means over answers; by temperature too, because loops are a matter of it."""
    answers = [one for row in rows for one in row["candidates"]]
    by_temperature: dict[float, list[Row]] = {t: [] for t in sorted(set(config.candidate_temperatures))}
    for row in rows:
        for temperature, one in zip(config.candidate_temperatures, row["candidates"], strict=True):
            by_temperature[temperature].append(one)
    return {
        "scorer": scorer,
        "prompts": dict(counts),
        "pairs": len(pairs),
        "chosen_score": _mean(pair["chosen_score"] for pair in pairs),
        "rejected_score": _mean(pair["rejected_score"] for pair in pairs),
        "longer_chosen": _mean(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs),
        "answers": _means(answers),
        "by_temperature": {f"{t:g}": _means(found) for t, found in by_temperature.items()},
    }


def _means(answers: Sequence[Row]) -> dict[str, Any]:
    parts = answers[0]["parts"]
    return {
        "number": len(answers),
        "tokens": _mean(one["n_tokens"] for one in answers),
        "finished": _mean(one["finished"] for one in answers),
        "loops": _mean(falls_into_loop(one["text"]) for one in answers),
        "score": _mean(one["score"] for one in answers),
        "parts": {name: _mean(one["parts"][name] for one in answers) for name in parts},
    }


def _mean(values: Iterable[float]) -> float | None:
    """Rounded to what is worth reading; None of nothing."""
    numbers = [float(value) for value in values]
    return round(sum(numbers) / len(numbers), 4) if numbers else None
