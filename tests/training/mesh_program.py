"""`python -m tests.training.mesh_program FOLDER`: every family on one device and on data 2 × fsdp 2 × tensor 2.

Prints one JSON object: family → {"one": losses, "eight": losses, "split": names of parameters that are really split}.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax

from sla_jax.model.lora import LoraConfig
from sla_jax.model.policy import param_paths
from sla_jax.sharding import make_mesh
from sla_jax.training import loop
from sla_jax.training.config import (
    ChannelOptions,
    FeaturesConfig,
    HeadOptions,
    OptimizerConfig,
    PolicyOptions,
    TrainConfig,
)
from sla_jax.training.data_config import DataConfig
from sla_jax.training.loss_config import PolicyLoss, RewardLoss
from tests.training import rows

STEPS = 8
NO_CHANNEL = ChannelOptions(weight=0.0)
LORA = LoraConfig(rank=4, alpha=8.0)
FAMILIES: dict[str, dict[str, Any]] = {
    "channel": {"loss": RewardLoss(name="last_bt", coherence_mc=0.1, coherence_td=0.1)},
    "reward model": {
        "channel": NO_CHANNEL,
        "head": HeadOptions(weight=1.0),
        "policy": PolicyOptions(train="full"),
        "loss": RewardLoss(name="last_bt"),
        "remat": "full",
    },
    "channel and simpo": {
        "policy": PolicyOptions(train="lora", weight=0.5, loss=PolicyLoss(name="simpo"), lora=LORA),
        "balance_lengths": True,
        "remat": "dots",
    },
    "dpo": {
        "channel": NO_CHANNEL,
        "policy": PolicyOptions(train="full", weight=1.0, loss=PolicyLoss(name="dpo"), reference="each_step"),
    },
    "sft": {
        "task": "sft",
        "channel": NO_CHANNEL,
        "policy": PolicyOptions(train="full", weight=1.0),
        "attention": "blocked",
    },
    "steps": {
        "task": "steps",
        "channel": NO_CHANNEL,
        "head": HeadOptions(weight=1.0),
        "policy": PolicyOptions(train="lora", lora=LORA),
    },
}


def config(family: str, folder: Path, out: str) -> TrainConfig:
    options = FAMILIES[family]
    task = options.get("task", "pairs")
    made = {"pairs": rows.pairs, "sft": rows.conversations, "steps": rows.solutions}[task](72)
    file = rows.write(folder / f"{task}.jsonl", made)
    return TrainConfig(
        **{"channel": ChannelOptions(width=8), **options},
        data=DataConfig(
            files=(str(file),),
            heldout=9,
            max_length=128,
            max_prompt_length=64,
            cache=str(folder / "c"),
            length_pool=1,  # random samples have much the same longest row: few shapes to compile
        ),
        features=FeaturesConfig(mode="recompute", batch_tokens=512),
        optimizer=OptimizerConfig(learning_rate=3e-3, batch_size=8, accumulation=2, epochs=9, max_steps=STEPS, ema=0.9),
        eval_every=STEPS,
        out=str(folder / out),
    )


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def run(family: str, folder: Path) -> dict[str, Any]:
    """One family on both meshes."""
    found: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    step = loop.jit_train_step

    def watched(plan: Any, optimizer: Any, shardings: Any) -> Any:
        seen["shardings"] = shardings
        return step(plan, optimizer, shardings)

    loop.jit_train_step = watched
    for name, mesh in (
        ("one", make_mesh(devices=jax.devices()[:1])),
        ("eight", make_mesh(data=2, fsdp=2, tensor=2)),
    ):
        options = dataclasses.replace(config(family, folder, f"{family} {name}"))
        found[name] = losses(loop.train_on(options, mesh))
    loop.jit_train_step = step
    parts = seen["shardings"].parts
    names = [(f, n, s) for f in parts._fields if getattr(parts, f) for n, s in param_paths(getattr(parts, f)).items()]
    found["split"] = [f"{field}.{name}" for field, name, sharding in names if not sharding.is_fully_replicated]
    return found


def main() -> None:
    folder, families = Path(sys.argv[1]), sys.argv[2:] or list(FAMILIES)
    print(json.dumps({family: run(family, folder) for family in families}))


if __name__ == "__main__":
    main()
