"""The shape of `method`: one dataclass for each kind of method; `config.schema` holds the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nexus.config.kinds import By, Count, Limits, Node, NotNegative, PartialShare, Positive, Share


@dataclass(frozen=True)
class Method:
    """What all methods have."""

    name: str
    adapter: Literal["none", "lora", "qlora", "dora"] | None
    epochs: Positive | None
    max_steps: Count | None
    global_batch_size: Count
    lr: Positive
    warmup_ratio: PartialShare
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    min_lr_ratio: Share
    weight_decay: NotNegative
    gradient_clip: Positive | None
    neftune_alpha: Positive | None
    optimizer: Annotated[Any, Node()]
    module: Annotated[Any, Node()]


@dataclass(frozen=True)
class SftMethod(Method):
    """`method=sft` and its kin: `cpt`, `lora`, `qlora`, `dora`."""

    view: Literal["sft"]
    count_tokens: Literal["completion", "all"]


@dataclass(frozen=True)
class DpoMethod(Method):
    """`method=dpo`."""

    view: Literal["preference"]
    count_tokens: Literal["completion"]
    form: Literal["sigmoid", "conservative", "robust", "hinge", "ipo"]
    beta: Positive
    label_smoothing: Annotated[float, Limits(low=0, below=0.5)]
    length_normalized: bool
    sft_weight: NotNegative


@dataclass(frozen=True)
class OrpoMethod(Method):
    """`method=orpo`."""

    view: Literal["preference"]
    count_tokens: Literal["completion"]
    beta: NotNegative


@dataclass(frozen=True)
class OwnDataMethod(OrpoMethod):
    """`method=safety` and `method=anti_refusal`: a preference loss on data of their own."""

    learns: Literal["safety", "anti_refusal"]


@dataclass(frozen=True)
class SimpoMethod(Method):
    """`method=simpo`."""

    view: Literal["preference"]
    count_tokens: Literal["completion"]
    beta: Positive
    gamma: NotNegative


@dataclass(frozen=True)
class KtoMethod(Method):
    """`method=kto`."""

    view: Literal["judged"]
    count_tokens: Literal["completion"]
    beta: Positive
    desirable_weight: Positive
    undesirable_weight: Positive


@dataclass(frozen=True)
class RewardModelMethod(Method):
    """`method=reward_model`."""

    view: Literal["preference"]
    count_tokens: Literal["completion"]
    margin: NotNegative
    center_coef: NotNegative
    head_lr_ratio: Positive


@dataclass(frozen=True)
class Rollout:
    """`method.rollout`: how answers are sampled while training."""

    engine: Literal["native", "transformers", "vllm"]
    num_generations: Annotated[int, Limits(low=2)]
    temperature: Positive
    top_p: Annotated[float, Limits(above=0, high=1)] | None
    batch_size: Count
    steps_per_rollout: Count
    num_iterations: Count
    patience: Count


@dataclass(frozen=True)
class ColdStart:
    """`method.cold_start`: a supervised phase before reinforcement, with the optimizer of the method."""

    when: Literal["auto", "always", "never"]
    below: Share
    rows: Count | None
    name: Literal["cold_start"]
    view: Literal["sft"]
    count_tokens: Literal["completion"]
    adapter: Literal["none"] | None
    epochs: Positive | None
    max_steps: Count | None
    global_batch_size: Count
    lr: Positive
    warmup_ratio: PartialShare
    schedule: Literal["cosine", "linear", "constant", "wsd"]
    min_lr_ratio: Share
    weight_decay: NotNegative
    gradient_clip: Positive | None
    neftune_alpha: Positive | None
    module: Annotated[Any, Node()]


@dataclass(frozen=True)
class RolloutMethod(Method):
    """What all methods have that learn from answers which they sample."""

    view: Literal["prompts"]
    count_tokens: Literal["completion"]
    epsilon_low: Share
    epsilon_high: NotNegative
    kl_coef: NotNegative
    reward_model: str | None
    reward_model_weight: Positive
    rollout: Rollout
    cold_start: ColdStart


@dataclass(frozen=True)
class GrpoMethod(RolloutMethod):
    """`method=grpo` and its kin: `dapo`, `gspo`."""

    scale: Literal["group", "batch", "none"]


@dataclass(frozen=True)
class PpoRollout(Rollout):
    """`method.rollout` where no group is needed."""

    num_generations: Count


@dataclass(frozen=True)
class PpoMethod(RolloutMethod):
    """`method=ppo`."""

    rollout: PpoRollout
    kl_estimator: Literal["k1", "k3"]
    gamma: Share
    gae_lambda: Share
    whiten_rewards: bool
    value_clip: Positive | None
    value_coef: NotNegative
    value_lr_ratio: Positive


METHOD = By(
    "name",
    {
        **dict.fromkeys(("sft", "cpt", "lora", "qlora", "dora"), SftMethod),
        "dpo": DpoMethod,
        "orpo": OrpoMethod,
        **dict.fromkeys(("safety", "anti_refusal"), OwnDataMethod),
        "simpo": SimpoMethod,
        "kto": KtoMethod,
        "reward_model": RewardModelMethod,
        **dict.fromkeys(("grpo", "dapo", "gspo"), GrpoMethod),
        **dict.fromkeys(("dr_grpo", "rloo"), RolloutMethod),
        "ppo": PpoMethod,
    },
    "method",
)
