"""Measure a model.

python eval.py channel CHECKPOINT --data FILE … [--split test] [--channel FILE] [--json FILE]
    how well a reward channel, or a reward model, ranks preference pairs: accuracies with standard errors
python eval.py steps CHECKPOINT --data FILE … [--threshold 0.5 | --choose FILE …] [--json FILE]
    how well a reward channel, or a two-class head, finds the first bad step of an answer: ProcessBench's figures
python eval.py replay TRACE [--checkpoint CHECKPOINT] [--tolerance X] [--teacher-forced]
    whether a recorded search (generate.py --trace) agrees with itself, and with the model; see docs/traces.md
"""

import sys
from collections.abc import Callable

from sla_jax.config import parse
from sla_jax.errors import UserError, front_door, nearest


def channel(argv: list[str]) -> None:
    """Print the table of a channel's or a reward model's figures on pairs."""
    from sla_jax.training import metrics
    from sla_jax.training.config import EvalConfig
    from sla_jax.training.evaluate import evaluate_channel

    described = "Rank preference pairs with a reward channel or a reward model."
    config = parse(EvalConfig, named(argv), prog="eval.py channel", description=described)
    figures = evaluate_channel(config)
    print(f"{config.checkpoint}: {', '.join(config.data)}, split {config.split or 'all'}")
    print(metrics.table(figures))


def steps(argv: list[str]) -> None:
    """Print the table of a channel's or a two-class head's figures on answers in steps."""
    from sla_jax.training import metrics
    from sla_jax.training.config import StepsConfig
    from sla_jax.training.evaluate import evaluate_steps

    described = "Find the first bad step of answers with a reward channel or a two-class head."
    config = parse(StepsConfig, named(argv), prog="eval.py steps", description=described)
    figures, threshold = evaluate_steps(config)
    chosen = f", chosen on {', '.join(config.choose)}" if config.choose else ""
    print(f"{config.checkpoint}: {', '.join(config.data)}, split {config.split or 'all'}")
    print(f"a step is called bad below P(good) = {threshold:.4f}{chosen}")
    print(metrics.table(figures))


def replay(argv: list[str]) -> None:
    """Check a trace; say what was compared, or the first thing that differs and exit 1."""
    from sla_jax.trace.config import ReplayConfig

    config = parse(ReplayConfig, argv, prog="eval.py replay", description="Check a recorded search.")
    from sla_jax.trace.report import replayed

    said, good = replayed(config)
    print(said)
    if not good:
        sys.exit(1)


def named(argv: list[str]) -> list[str]:
    """The first word, if it is neither a flag nor a config, is the checkpoint."""
    bare = argv and not argv[0].startswith("--") and not argv[0].endswith((".yaml", ".yml"))
    return ["--checkpoint", *argv] if bare else argv


COMMANDS: dict[str, Callable[[list[str]], None]] = {"channel": channel, "steps": steps, "replay": replay}


def main(argv: list[str]) -> None:
    """Run one of COMMANDS."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"eval.py has no {argv[0]!r}; it has {', '.join(COMMANDS)}.{nearest(argv[0], COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    front_door(main)
