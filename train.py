"""Train a reward channel, a reward model or a policy; or make preference pairs out of a policy's own answers.

python train.py                                              the tiny preset: generated pairs, under two minutes
python train.py configs/train/NAME.yaml [--field value …]    any run; the same command again goes on where it stopped
python train.py configs/train/NAME.yaml --dry-run            what it would be and need; --target v5e:4x4 compiles it
python train.py pairs configs/train/NAME.yaml [--field …]    sample answers, score them, write the best and the worst
"""

from pathlib import Path

from sla_jax.config import parse
from sla_jax.errors import front_door
from sla_jax.training.config import TrainConfig

TINY = Path(__file__).parent / "configs" / "train" / "tiny.yaml"


def main(argv: list[str]) -> None:
    """Train, then say where the result is."""
    if argv and argv[0] == "pairs":
        from sla_jax.training import onpolicy

        return onpolicy.main(argv[1:])
    if not argv or argv[0].startswith("--") and "--help" not in argv:
        argv = [str(TINY), *argv]
    config = parse(TrainConfig, argv, prog="train.py", description="Train a channel, a reward model or a policy.")
    if config.dry_run:
        from sla_jax.training.dry_run import report

        return report(config)
    from sla_jax.loading import use_compilation_cache
    from sla_jax.training.loop import train

    use_compilation_cache()
    out = train(config)
    for name in ("checkpoint", "channel.safetensors", "adapter", "metrics.jsonl"):
        if (out / name).exists():
            print(out / name)


if __name__ == "__main__":
    front_door(main)
