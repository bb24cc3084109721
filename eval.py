"""Measure a model.

python eval.py channel CHECKPOINT --data FILE … [--split test] [--channel FILE] [--json FILE]
    how well the reward channel ranks preference pairs: accuracies with standard errors
"""

from collections.abc import Callable

from sla_jax.config import parse
from sla_jax.errors import UserError, front_door, nearest


def channel(argv: list[str]) -> None:
    """Print the table of a channel's held-out figures."""
    from sla_jax.training import metrics
    from sla_jax.training.config import EvalConfig
    from sla_jax.training.evaluate import evaluate_channel

    if argv and not argv[0].startswith("--") and not argv[0].endswith((".yaml", ".yml")):
        argv = ["--checkpoint", *argv]
    config = parse(EvalConfig, argv, prog="eval.py channel", description="Rank preference pairs with a reward channel.")
    figures = evaluate_channel(config)
    print(f"{config.checkpoint}: {', '.join(config.data)}, split {config.split or 'all'}")
    print(metrics.table(figures))


COMMANDS: dict[str, Callable[[list[str]], None]] = {"channel": channel}


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
