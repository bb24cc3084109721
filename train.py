"""Train a reward channel on a frozen policy.

python train.py                                              the tiny preset: generated pairs, under two minutes
python train.py configs/train/NAME.yaml [--field value …]    any run; the same command again goes on where it stopped
"""

from pathlib import Path

from sla_jax.config import parse
from sla_jax.errors import front_door
from sla_jax.training.config import TrainConfig
from sla_jax.training.loop import train

TINY = Path(__file__).parent / "configs" / "train" / "tiny.yaml"


def main(argv: list[str]) -> None:
    """Train, then say where the result is."""
    if not argv or argv[0].startswith("--") and "--help" not in argv:
        argv = [str(TINY), *argv]
    config = parse(TrainConfig, argv, prog="train.py", description="Train a reward channel on a frozen policy.")
    out = train(config)
    for name in ("checkpoint", "channel.safetensors", "metrics.jsonl"):
        print(out / name)


if __name__ == "__main__":
    front_door(main)
