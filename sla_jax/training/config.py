"""What a training run is: frozen dataclasses, read from YAML and flags by `sla_jax.config`.

Values live in configs/train/*.yaml. `resolved` settings are saved beside every checkpoint and can be passed back.
"""

import dataclasses
from typing import Literal

from sla_jax.errors import UserError
from sla_jax.training.losses import LossName

Dtype = Literal["float32", "bfloat16", "float16"]
TINY = "tiny"


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name}={value} must be at least {least}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference pairs, from exactly one source: `files`, `dataset` or `generated`."""

    files: tuple[str, ...] = ()  # .jsonl, .jsonl.gz, .json(.gz) with one row a line, or .parquet
    dataset: str | None = None  # a name that `datasets.load_dataset` knows
    subset: str | None = None  # its configuration, if it has several
    generated: int = 0  # make this many toy pairs (the tiny preset)
    split: str | None = "train"  # rows whose own `split` field says so (rows without one belong to every split)
    heldout: int = 10  # hold out every pair whose salted md5(prompt) % heldout == 0; 0 holds out none
    max_length: int = 1024  # tokens of prompt + response
    max_prompt_length: int = 768  # tokens; longer prompts lose their left end
    on_bad_row: Literal["raise", "skip"] = "raise"
    length_pool: int = 0  # steps whose pairs are sorted by length together; 0 = 16 when features are recomputed, else 1

    def __post_init__(self) -> None:
        _at_least("data.length_pool", self.length_pool, 0)
        given = [name for name in ("files", "dataset", "generated") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"data names {' and '.join(given)}; give one source of pairs, not several.")
        if not 0 < self.max_prompt_length < self.max_length:
            raise UserError(
                f"data.max_prompt_length={self.max_prompt_length} must be at least 1 and below "
                f"data.max_length={self.max_length}, so that some response fits behind the prompt."
            )
        _at_least("data.heldout", self.heldout, 0)
        if self.heldout == 1:
            raise UserError("data.heldout=1 would hold out every pair; use 0 (none) or at least 2 (one in that many).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """Size of the reward channel, and where it starts: from noise, or from a trained channel file."""

    width: int = 128  # C
    head_layers: int = 1
    head_outputs: int = 2  # only output 0 is the reward; the public layout has 2
    start: str | None = None  # a channel.safetensors to go on from; None starts from noise

    def __post_init__(self) -> None:
        _at_least("channel.width", self.width, 1)
        _at_least("channel.head_layers", self.head_layers, 1)
        _at_least("channel.head_outputs", self.head_outputs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The pair loss; `scale` (a) and `shift` (b) belong to tokenwise_bt."""

    name: LossName = "seqwise_bt"
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.name == "seqwise_bt" and (self.scale, self.shift) != (1.0, 0.0):
            raise UserError("loss.scale and loss.shift belong to loss.name=tokenwise_bt; seqwise_bt has neither.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up; a step is `accumulation` microbatches of `batch_size` pairs."""

    learning_rate: float = 5e-5
    weight_decay: float = 0.0  # on matrices only, not on norms
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.1  # of all steps
    grad_clip: float = 1.0  # global norm; 0 switches it off
    accumulation: int = 1
    epochs: int = 3
    batch_size: int = 32  # pairs

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate={self.learning_rate} must be above 0.")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"optimizer.warmup_ratio={self.warmup_ratio} is a part of all steps: at least 0, below 1.")
        for name in ("accumulation", "epochs", "batch_size"):
            _at_least(f"optimizer.{name}", getattr(self, name), 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The frozen policy's hidden states: stored once and reused every epoch, or recomputed at every step."""

    mode: Literal["cache", "recompute"] = "cache"
    dtype: Dtype = "bfloat16"  # of the stored states
    dir: str = ".cache/features"  # shared by all runs; one folder for each (data, policy, settings)
    batch_tokens: int = 4096  # tokens a forward pass while the cache is filled

    def __post_init__(self) -> None:
        _at_least("features.batch_tokens", self.batch_tokens, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices. Pairs are split over data × fsdp."""

    data: int = 0  # 0 = all devices that fsdp and tensor leave
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of a reward channel on a frozen policy."""

    model: str = TINY  # a checkpoint directory (convert.py makes one), or the word tiny
    data: DataConfig = DataConfig()
    channel: ChannelOptions = ChannelOptions()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    features: FeaturesConfig = FeaturesConfig()
    mesh: MeshConfig = MeshConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen policy; the channel trains in float32
    seed: int = 42
    eval_every: int = 0  # steps between held-out evaluations; 0 = once an epoch
    save_every: int = 0  # steps between resumable checkpoints; 0 = once an epoch
    keep: int = 2  # resumable checkpoints kept
    log_every: int = 1  # steps between lines of metrics.jsonl
    out: str = "runs/tiny"
    overwrite: bool = False  # delete what is in `out` first

    def __post_init__(self) -> None:
        for name, least in (("eval_every", 0), ("save_every", 0), ("keep", 1), ("log_every", 1), ("seed", 0)):
            _at_least(name, getattr(self, name), least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`eval.py channel CHECKPOINT`: rank pairs with a checkpoint's channel and print the figures."""

    checkpoint: str = ""  # a checkpoint directory
    channel: str | None = None  # a channel.safetensors to use instead of the checkpoint's own
    data: tuple[str, ...] = ()  # files of pairs
    split: str | None = None  # rows whose own `split` field says so; None takes all
    max_length: int | None = None  # tokens of prompt + response; None = the policy's context, but at most 1024
    max_prompt_length: int | None = None  # None = three quarters of max_length
    on_bad_row: Literal["raise", "skip"] = "raise"
    batch_tokens: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    json: str | None = None  # also write the figures to this file
