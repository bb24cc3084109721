"""What a training run is: frozen dataclasses, read from YAML and flags by `sla_jax.config`.

Values live in configs/train/*.yaml; what describes the data is in data_config.py, the losses in loss_config.py. The
resolved settings are saved beside every checkpoint and can be passed back.
"""

import dataclasses
from typing import Literal

from sla_jax.config import Variables
from sla_jax.errors import UserError
from sla_jax.model.lora import LoraConfig
from sla_jax.training.data_config import DataConfig, Task
from sla_jax.training.loss_config import PolicyLoss, RewardLoss

Dtype = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "dots", "full"]
Attention = Literal["auto", "xla", "blocked", "cudnn", "flash"]
Reader = Literal["channel", "head"]
TINY = "tiny"


def _at_least(name: str, value: int | float, least: int | float) -> None:
    if value < least:
        raise UserError(f"{name}={value} must be at least {least}.")


def _read_only_if(read: bool, name: str, given: bool, needed: str) -> None:
    if given and not read:
        raise UserError(f"{name} is given and would not be read: it needs {needed}; set that, or drop it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """The reward channel: its weight in the loss, its size, and where it starts: from noise, or from a channel file."""

    weight: float = 1.0  # of the reward loss; 0 = no channel
    width: int = 128  # C
    head_layers: int = 1
    head_outputs: int = 2  # only output 0 is the reward; the public layout has 2
    start: str | None = None  # a channel.safetensors to go on from; None starts from noise
    detach: bool = False  # with a policy that is trained too: the reward's gradient stops at the policy

    def __post_init__(self) -> None:
        _at_least("channel.weight", self.weight, 0)
        _at_least("channel.width", self.width, 1)
        _at_least("channel.head_layers", self.head_layers, 1)
        _at_least("channel.head_outputs", self.head_outputs, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """A linear head on the last hidden state instead of the channel: one output (a reward model), or two for steps."""

    weight: float = 0.0  # of the reward loss; 0 = no head

    def __post_init__(self) -> None:
        _at_least("head.weight", self.weight, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """What of the policy is trained, and on which loss; by default nothing, and none."""

    train: Literal["frozen", "lora", "full"] = "frozen"
    weight: float = 0.0  # of `loss`; 0 = the policy's own loss is not computed, nor any logits
    loss: PolicyLoss = PolicyLoss()
    lora: LoraConfig = LoraConfig()
    save: Literal["merged", "separate"] = "merged"  # LoRA: into the weights, or beside them in PEFT's layout
    reference: Literal["cached", "each_step"] = "cached"  # DPO's reference: computed once before training, or always
    learning_rate: float | None = None  # of policy or LoRA; None = optimizer.learning_rate

    def __post_init__(self) -> None:
        _at_least("policy.weight", self.weight, 0)
        if self.train == "frozen" and self.weight:
            raise UserError(
                f"policy.weight={self.weight} with policy.train=frozen: a frozen policy has nothing to learn; set "
                "policy.train to lora or full, or policy.weight to 0."
            )
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise UserError(f"policy.learning_rate={self.learning_rate} must be above 0.")
        lora, frozen = self.train == "lora", self.train == "frozen"
        _read_only_if(lora, "policy.save=separate", self.save == "separate", "policy.train=lora")
        _read_only_if(lora, "policy.lora.*", self.lora != LoraConfig(), "policy.train=lora")
        _read_only_if(not frozen, "policy.learning_rate", self.learning_rate is not None, "policy.train=lora or full")
        _read_only_if(self.weight > 0, "policy.loss.*", self.loss != PolicyLoss(), "policy.weight above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with warm-up; a step is `accumulation` microbatches of `batch_size` examples."""

    learning_rate: float = 5e-5
    weight_decay: float = 0.0  # on matrices only, not on norms and biases
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_ratio: float = 0.1  # of all steps
    grad_clip: float = 1.0  # global norm; 0 switches it off
    accumulation: int = 1
    epochs: int = 3
    max_steps: int = 0  # stop after this many steps (the schedule ends there too); 0 = all epochs
    batch_size: int = 32  # examples
    ema: float = 0.0  # decay of a moving average of what is trained, which is then evaluated and saved; 0 = none

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate={self.learning_rate} must be above 0.")
        if not 0 <= self.warmup_ratio < 1:
            raise UserError(f"optimizer.warmup_ratio={self.warmup_ratio} is a part of all steps: at least 0, below 1.")
        if not 0 <= self.ema < 1:
            raise UserError(f"optimizer.ema={self.ema} is a decay: at least 0 (none), below 1.")
        for name in ("accumulation", "epochs", "batch_size"):
            _at_least(f"optimizer.{name}", getattr(self, name), 1)
        for name in ("weight_decay", "grad_clip", "max_steps"):
            _at_least(f"optimizer.{name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """A frozen policy's hidden states: stored once and reused every epoch, or recomputed at every step."""

    mode: Literal["auto", "cache", "recompute"] = "auto"  # auto: cache for a frozen policy on one host
    dtype: Dtype = "bfloat16"  # of the stored states
    dir: str = ".cache/features"  # shared by all runs; one folder for each (data, policy, settings)
    batch_tokens: int = 4096  # tokens a forward pass while the cache is filled, and in evaluations

    def __post_init__(self) -> None:
        _at_least("features.batch_tokens", self.batch_tokens, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; their product is the number of devices. Examples are split over data × fsdp."""

    data: int = 0  # 0 = all devices that fsdp and tensor leave
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name, least in (("data", 0), ("fsdp", 1), ("tensor", 1)):
            _at_least(f"mesh.{name}", getattr(self, name), least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostsConfig:
    """Several processes as one run. TPU pods say by themselves who they are; elsewhere give all three."""

    coordinator: str | None = None  # HOST:PORT of process 0, the same on every host
    processes: int = 0
    process: int = -1  # this one's number, from 0
    timeout: int = 60  # seconds without a sign of life after which a process counts as lost

    def __post_init__(self) -> None:
        given = (self.coordinator is not None, self.processes > 0, self.process >= 0)
        if any(given) and not all(given):
            raise UserError(
                f"hosts.coordinator={self.coordinator}, hosts.processes={self.processes} and hosts.process="
                f"{self.process}: give all three (HOST:PORT of process 0, how many, which one), or none of them."
            )
        if all(given) and self.process >= self.processes:
            raise UserError(f"hosts.process={self.process} counts from 0 and must be below hosts.processes.")
        _at_least("hosts.timeout", self.timeout, 5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestConfig:
    """Keep the best evaluation's state and make it the result; stop when it does not get better."""

    metric: str | None = None  # a held-out figure, such as accuracy_balanced; None = the last state is the result
    patience: int = 0  # stop after this many evaluations without a better one; 0 = never

    def __post_init__(self) -> None:
        _at_least("best.patience", self.patience, 0)
        if self.patience and self.metric is None:
            raise UserError(f"best.patience={self.patience} needs best.metric, the figure that must get better.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A jax.profiler trace of some steps, in OUT/profile (TensorBoard and Perfetto read it)."""

    start: int = 0  # first step of the trace; 0 = no trace
    steps: int = 3

    def __post_init__(self) -> None:
        _at_least("profile.start", self.start, 0)
        _at_least("profile.steps", self.steps, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: of a reward channel or a head, of the policy, or of both at once."""

    model: str = TINY  # a checkpoint directory (convert.py makes one), or the word tiny
    shape: str | None = None  # a config.json that stands for `model` in a dry run where it is not there
    task: Task = "pairs"
    data: DataConfig = DataConfig()
    channel: ChannelOptions = ChannelOptions()
    head: HeadOptions = HeadOptions()
    policy: PolicyOptions = PolicyOptions()
    loss: RewardLoss = RewardLoss()  # of the channel or the head on pairs
    balance_lengths: bool = False  # weigh pairs so that longer-wins and shorter-wins pairs count alike
    optimizer: OptimizerConfig = OptimizerConfig()
    features: FeaturesConfig = FeaturesConfig()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # in which the policy computes; what is trained is float32
    remat: Remat = "none"  # what the backward pass computes again: nothing, all but matrix products, or everything
    attention: Attention = "auto"
    logits_chunk: int = 512  # tokens whose logits exist at one time, a shard
    seed: int = 42
    eval_every: int = 0  # steps between held-out evaluations; 0 = once an epoch
    save_every: int = 0  # steps between resumable checkpoints; 0 = once an epoch
    keep: int = 2  # resumable checkpoints kept
    best: BestConfig = BestConfig()
    log_every: int = 1  # steps between lines of metrics.jsonl
    wandb: str | None = None  # also log to this Weights & Biases project
    profile: ProfileConfig = ProfileConfig()
    out: str = "runs/tiny"
    overwrite: bool = False  # delete what is in `out` first
    dry_run: bool = False  # say what the run would be and what it needs; train nothing
    target: str | None = None  # with dry_run: compile the step for this TPU slice, such as v5e:4x4

    def __post_init__(self) -> None:
        least = {"eval_every": 0, "save_every": 0, "keep": 1, "log_every": 1, "seed": 0, "logits_chunk": 1}
        for name, value in least.items():
            _at_least(name, getattr(self, name), value)
        if self.target is not None and not self.dry_run:
            raise UserError(f"--target {self.target} compiles for a slice that is not there; add --dry_run.")
        self._check_parts()

    def _check_parts(self) -> None:
        """What is trained, and whether the task's data can train it."""
        if self.channel.weight and self.head.weight:
            raise UserError(
                f"channel.weight={self.channel.weight} and head.weight={self.head.weight}: a run trains the channel or "
                "a head; set one of them to 0."
            )
        if self.reader is None and not self.policy.weight:
            raise UserError("channel.weight, head.weight and policy.weight are all 0: there is nothing to train.")
        detached = self.channel.weight > 0 and self.channel.detach
        trained = self.policy.train != "frozen"
        _read_only_if(trained, "channel.detach", self.channel.detach, "policy.train=lora or full")
        if trained and not self.policy.weight and (detached or self.reader is None):
            raise UserError(
                f"policy.train={self.policy.train} with policy.weight=0 and channel.detach: no loss reaches the "
                "policy; set policy.train to frozen, policy.weight above 0, or channel.detach to false."
            )
        if self.policy.save == "separate" and self.reader is not None:
            raise UserError(
                "policy.save=separate leaves a checkpoint with the policy as it was, and the channel or head of this "
                "run reads the adapted one; set policy.save to merged."
            )
        _read_only_if(self.reader is not None, "loss.*", self.loss != RewardLoss(), "a channel.weight or head.weight")
        if self.task != "pairs" and self.loss != RewardLoss():
            raise UserError(f"loss.* is for pairs of answers; task={self.task} does not read it.")
        if self.task != "pairs" and self.balance_lengths:
            raise UserError(f"balance_lengths weighs pairs of answers; task={self.task} has none.")
        if self.task == "sft" and self.reader is not None:
            raise UserError("task=sft has no rewards to learn from; set channel.weight and head.weight to 0.")
        if self.policy.weight and self.task != "pairs" and (self.task, self.policy.loss.name) != ("sft", "sft"):
            raise UserError(
                f"policy.loss.name={self.policy.loss.name} with task={self.task}: simpo and dpo need task=pairs, sft "
                "reads task=sft or the chosen answers of task=pairs."
            )
        if self.features.mode == "cache" and self.policy.train != "frozen":
            raise UserError(
                f"features.mode=cache stores a frozen policy's states and policy.train={self.policy.train} changes "
                "them; set features.mode to recompute (or auto)."
            )

    @property
    def reader(self) -> Reader | None:
        """What gives rewards: the channel, a head, or nothing."""
        return "channel" if self.channel.weight else "head" if self.head.weight else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """`eval.py channel CHECKPOINT`: rank pairs with a checkpoint's channel or head and print the figures."""

    checkpoint: str = ""  # a checkpoint directory
    channel: str | None = None  # a channel.safetensors to use instead of the checkpoint's own
    data: tuple[str, ...] = ()  # files of pairs, or of steps
    split: str | None = None  # rows whose own `split` field says so; None takes all
    limit: int = 0  # this many rows, those with the smallest salted md5; 0 = all
    max_length: int | None = None  # tokens of prompt + response; None = the policy's context, but at most 1024
    max_prompt_length: int | None = None  # None = three quarters of max_length
    on_bad_row: Literal["raise", "skip"] = "raise"
    max_bad: float = 0.1  # part of all rows that may be bad or empty before that is an error
    batch_tokens: int = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: Variables | None = None  # variables of the chat template; None = those of the checkpoint's training
    date: str | None = None  # what a chat template takes for today, YYYY-MM-DD; None = as in its training
    json: str | None = None  # also write the figures to this file


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepsConfig(EvalConfig):
    """`eval.py steps CHECKPOINT`: judge answers in steps with a checkpoint's channel or two-class head."""

    threshold: float | None = None  # of P(good), below which a step is called bad; None = 0.5, or by `choose`
    choose: tuple[str, ...] = ()  # files of steps on which the threshold with the best F1 is chosen
    choose_split: str | None = None  # their rows whose own `split` field says so; None takes all
    separator: str | None = None  # between steps; None = the one that the checkpoint was trained with, or a line break

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"threshold={self.threshold} is a probability: at least 0, at most 1.")
        if self.threshold is not None and self.choose:
            raise UserError(f"threshold={self.threshold} and choose={self.choose[0]} both set it; give one of them.")
        if self.choose_split is not None and not self.choose:
            raise UserError(f"choose_split={self.choose_split!r} is given without choose, the files that it parts.")
        if set(self.choose) & set(self.data) and self.choose_split == self.split:
            raise UserError(
                "the threshold would be chosen on the rows that it is measured on, which flatters; give --choose other "
                "files, or --split and --choose-split different names."
            )
