"""The shape of every setting: dataclasses whose fields carry type, range and choices, and a strict walk over a config.

The values stand in YAML only; nothing here has a default. Fields that a `name` (or `status`) decides about are a `By`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nexus.config.kinds import (
    By,
    Count,
    Files,
    Limits,
    Modality,
    Node,
    NotNegative,
    PartialShare,
    Positive,
    Seed,
    Share,
    Whole,
)
from nexus.config.method_schema import METHOD


@dataclass(frozen=True)
class LearningRates:
    """Peak rates that a base model recommends; `rollouts` is a share of them, for methods that sample their answers."""

    full: Positive
    adapter: Positive
    quantized: Positive
    cpt: Positive
    rollouts: Positive


@dataclass(frozen=True)
class Rope:
    """`base_model.rope`: positions beyond those that the model was made for."""

    type: Literal["linear", "dynamic", "yarn"] | None
    factor: Annotated[float, Limits(low=1)]
    original_max_position_embeddings: Count | None


@dataclass(frozen=True)
class BaseModel:
    """`base_model`: which weights."""

    name: str
    path: str | None
    revision: str | None
    modalities: list[Modality]
    trust_remote_code: bool
    chat_template: str | None
    tokenizer: str | None
    architecture: dict[str, Any] | None
    rope: Rope
    lr: LearningRates


@dataclass(frozen=True)
class NoAdapter:
    """`adapter=none`."""

    name: str


@dataclass(frozen=True)
class Lora:
    """`adapter=lora`."""

    name: str
    r: Count
    alpha: Positive
    dropout: PartialShare
    target_modules: Literal["all-linear"] | list[str]
    use_rslora: bool
    init: Literal["default", "pissa", "pissa_niter_16"]
    loraplus_ratio: Annotated[float, Limits(low=1)] | None


@dataclass(frozen=True)
class Qlora:
    """`adapter=qlora`."""

    name: str
    r: Count
    alpha: Positive
    dropout: PartialShare
    target_modules: Literal["all-linear"] | list[str]
    use_rslora: bool
    init: Literal["default", "loftq"]
    loraplus_ratio: Annotated[float, Limits(low=1)] | None
    quant_type: Literal["nf4", "fp4"]
    double_quant: bool


@dataclass(frozen=True)
class Dora:
    """`adapter=dora`."""

    name: str
    r: Count
    alpha: Positive
    dropout: PartialShare
    target_modules: Literal["all-linear"] | list[str]
    use_rslora: bool
    loraplus_ratio: Annotated[float, Limits(low=1)] | None


ADAPTER = By("name", {"none": NoAdapter, "lora": Lora, "qlora": Qlora, "dora": Dora}, "adapter")


@dataclass(frozen=True)
class Card:
    """A dataset card."""

    name: str
    kind: Literal["embedded", "files", "hub"]
    generator: str | None
    path: Files
    revision: str | None
    config: str | None
    split: str | None
    license: str | None
    gated: bool
    roles: list[Literal["train", "eval"]]
    size: Count | None
    rows: Count | None
    eval_rows: Whole | None
    seed: Seed
    fields: dict[str, str]
    weight: Positive


@dataclass(frozen=True)
class Reward:
    """A card of `reward`; `nexus.rewards.registry` knows the options of each function."""

    function: str
    weight: Positive
    options: dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """`capabilities.NAME.environment`: who executes the calls of an answer."""

    name: Literal["tools"]
    max_turns: Annotated[int, Limits(low=2)]


@dataclass(frozen=True)
class ReadyCapability:
    """An entry of `capabilities` that can be used."""

    status: str
    description: str
    requires: list[Modality]
    max_new_tokens: Count
    environment: Environment | None
    metrics: Literal["tools", "tool_results", "cot", "reasoning", "thinking", "streaming", "refusal"]
    primary_metric: str
    rewards: dict[str, Reward]
    sources: dict[str, Card]


@dataclass(frozen=True)
class PlannedCapability:
    """An entry of `capabilities` that is refused by name."""

    status: str
    description: str
    requires: list[Modality]
    part: str


CAPABILITY = By("status", {"ready": ReadyCapability, "planned": PlannedCapability}, "capability")


@dataclass(frozen=True)
class Data:
    """`data`: own files and batching."""

    train: Files
    validation: Files
    validation_fraction: PartialShare
    sources: dict[str, Card]
    max_seq_len: Annotated[int, Limits(low=2)]
    long_rows: Literal["error", "drop", "truncate"]
    packing: bool
    global_batch_size: Count
    shuffle: bool
    max_bad_rows: Whole
    num_proc: Count | None
    cache: bool


@dataclass(frozen=True)
class Hardware:
    """`hardware`: the machine."""

    name: str
    accelerator: Literal["auto", "cpu", "gpu"]
    precision: Literal["auto", "fp32", "bf16"]
    micro_batch_size: Count
    micro_batch_tokens: Count | None
    gradient_checkpointing: bool | Literal["offload"]
    compile: bool
    memory_gib: Positive | None
    overhead_gib: NotNegative
    fragmentation: PartialShare
    tflops: Positive | None
    utilization: Share
    threads: Count | None
    thermal_pause: bool
    cooldown: bool


@dataclass(frozen=True)
class Strategy:
    """`strategy`: how many devices."""

    name: Literal["auto"]


@dataclass(frozen=True)
class Scale:
    """`scale`: how much."""

    name: str
    rows_per_source: Count | None
    max_steps: Count | None
    eval_prompts: Count | None
    global_batch_size: Count | None


@dataclass(frozen=True)
class Paths:
    """`paths`: roots on disk."""

    data_dir: str
    output_dir: str
    checkpoint_dir: str | None
    metrics_dir: str | None
    cache_dir: str


@dataclass(frozen=True)
class Package:
    """`package`: what is written at the end."""

    enabled: bool


@dataclass(frozen=True)
class TrainEvaluation:
    """`evaluation` of a training run."""

    before: bool
    after: bool
    batch_size: Count


@dataclass(frozen=True)
class Safety:
    """`safety`: which optimizer steps are skipped."""

    spike_factor: Annotated[float, Limits(above=1)] | None
    spike_window: Count
    max_skipped_in_a_row: Count


@dataclass(frozen=True)
class Evaluation:
    """`evaluation` without training."""

    batch_size: Count


#: Temperatures at which a chip can work.
Celsius = Annotated[float, Limits(above=0, below=130)]

Nodes = dict[str, Annotated[Any, Node()] | None]


@dataclass(frozen=True)
class TrainConfig:
    """Root `train`."""

    base_model: BaseModel
    encoders: Nodes
    decoders: Nodes
    teachers: Nodes
    adapter: Annotated[Any, ADAPTER]
    method: Annotated[Any, METHOD]
    data: Data
    hardware: Hardware
    strategy: Strategy
    scale: Scale
    callbacks: Nodes
    logger: Nodes
    paths: Paths
    seed: Seed
    dry_run: bool
    run_dir: str | None
    resume: str | None
    resume_mode: Literal["exact", "fast"]
    capabilities: dict[str, Annotated[Any, CAPABILITY]]
    package: Package
    safety: Safety
    evaluation: TrainEvaluation


@dataclass(frozen=True)
class Preview:
    """`preview`: what is shown of the rows."""

    rows: Whole
    near_duplicates: Annotated[float, Limits(above=0, high=1)] | None
    png: str | None


@dataclass(frozen=True)
class PreviewConfig(TrainConfig):
    """Root `preview`: the settings of a training run, and what to show of its rows."""

    preview: Preview


@dataclass(frozen=True)
class EvaluateConfig:
    """Root `evaluate`."""

    base_model: BaseModel
    encoders: Nodes
    decoders: Nodes
    adapter: Annotated[Any, ADAPTER]
    method: Annotated[Any, METHOD]
    data: Data
    hardware: Hardware
    scale: Scale
    paths: Paths
    package: str | None
    seed: Seed
    output: str | None
    capabilities: dict[str, Annotated[Any, CAPABILITY]]
    evaluation: Evaluation


@dataclass(frozen=True)
class Chat:
    """`mode=chat`."""

    name: str


@dataclass(frozen=True)
class RejectionSampling:
    """`mode=rejection_sampling`."""

    name: str
    prompts: Count | None
    num_generations: Annotated[int, Limits(low=2)]
    top_p: Annotated[float, Limits(above=0, high=1)] | None
    batch_size: Count
    threshold: float
    keep: Count
    margin: Annotated[float, Limits(above=0)]


MODE = By("name", {"chat": Chat, "rejection_sampling": RejectionSampling}, "mode")


@dataclass(frozen=True)
class GenerateConfig:
    """Root `generate`."""

    base_model: BaseModel
    adapter: Annotated[Any, ADAPTER]
    mode: Annotated[Any, MODE]
    hardware: Hardware
    paths: Paths
    package: str | None
    prompt: str | None
    system: str | None
    tools: list[dict[str, Any]]
    max_new_tokens: Count | None
    temperature: NotNegative
    stream: bool
    output: str | None
    seed: Seed
    capabilities: dict[str, Annotated[Any, CAPABILITY]]


ROOTS: dict[str, type] = {
    "train": TrainConfig,
    "preview": PreviewConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
}

#: Keys that a root may lack because nothing there reads them.
MAY_BE_MISSING: dict[str, tuple[str, ...]] = {"evaluate": ("method.optimizer",)}

#: Numbers inside nodes whose range their constructor would refuse too, but only after minutes.
NODE_SETTINGS: dict[str, Any] = {
    "lr": Positive,
    "eps": NotNegative,
    "weight_decay": NotNegative,
    "momentum": NotNegative,
    "betas": list[PartialShare],
    "chunk_size": Count,
    "min_8bit_size": Whole,
    "state_bits": Literal[8, 32],
    "every_n_steps": Count,
    "keep": Count,
    "count": Count,
    "max_rows": Count | None,
    "count_steps": Count,
    "tolerance": Positive,
    "seconds_between_updates": Positive,
    "seconds_between_lines": Positive,
    "wait_for_space_minutes": Positive,
    "seconds_between_tries": Positive,
    "seconds": Positive,
    **dict.fromkeys(("gpu_pause_at", "gpu_resume_at", "cpu_pause_at", "cpu_resume_at"), Celsius),
    "seconds_between_polls": Positive,
    "min_pause_seconds": NotNegative,
    "max_pause_seconds": Positive,
    "unknown_after_seconds": Positive,
    "stuck_after_seconds": Positive,
    "on_unknown": Literal["train", "pause", "stop"],
    **dict.fromkeys(("watts", "resume_watts", "window_seconds"), Positive),
}
