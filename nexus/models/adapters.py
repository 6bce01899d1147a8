"""Putting a low-rank adapter on a model and taking it off again, through PEFT.

PEFT is imported only here and only when an adapter is used: it pulls in bitsandbytes and inductor.

Signatures:
    apply_adapter(model, adapter, seed=) -> model (name "none") or PeftModel
    parameter_counts(model) -> ParameterCounts(trainable, total)
    adapter_state(model) -> dict[str, Tensor]
    merge_adapter(model) -> PreTrainedModel
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nexus.errors import NexusError

_KEYS = ("r", "alpha", "dropout", "target_modules", "use_rslora")


def apply_adapter(model: Any, adapter: Mapping[str, Any], *, seed: int) -> Any:
    """Add what is trained.

    Args:
        model: a `PreTrainedModel`.
        adapter: a file of `conf/adapter`: `name: none` trains every weight; `name: lora` needs `r`, `alpha`,
            `dropout`, `target_modules` (`all-linear` or a list of name endings) and `use_rslora`.
        seed: of the adapter's random weights; the global RNG is left as it is.

    Returns:
        The model itself with every weight trainable, or a `PeftModel` whose adapter alone is.

    Raises:
        NexusError: `E-CFG-21` for a setting that cannot be, `E-CFG-22` if `target_modules` matches nothing.
    """
    if adapter["name"] == "none":
        model.requires_grad_(True)
        return model
    if adapter["name"] != "lora":
        raise NexusError(
            "E-CFG-21", f"there is no adapter {adapter['name']!r}", where="adapter.name", remedy="none or lora"
        )
    absent = [key for key in _KEYS if key not in adapter]
    if absent:
        raise NexusError(
            "E-CFG-21",
            f"adapter=lora needs {', '.join(absent)}",
            where=f"adapter.{absent[0]}",
            remedy="start from conf/adapter/lora.yaml",
        )
    return apply_lora(model, seed=seed, **{key: adapter[key] for key in _KEYS})


def apply_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    use_rslora: bool,
    seed: int,
) -> Any:
    """Low-rank adapters `W + s * B @ A` (LoRA, arXiv 2106.09685); s is alpha/r, or alpha/sqrt(r) with rsLoRA.

    Args:
        model: a `PreTrainedModel`; its weights are frozen.
        r: rank.
        alpha: scale.
        dropout: probability on the adapter's input.
        target_modules: `all-linear` (every linear layer but the output head), or name endings.
        use_rslora: rank-stabilized scale (arXiv 2312.03732).
        seed: of A; B starts at 0.

    Returns:
        A `PeftModel` whose adapter weights are float32.

    Raises:
        NexusError: `E-CFG-21` for numbers out of range, `E-CFG-22` if no layer matches.
    """
    for key, value, good in (("r", r, r >= 1), ("alpha", alpha, alpha > 0), ("dropout", dropout, 0 <= dropout < 1)):
        if not good:
            raise NexusError(
                "E-CFG-21",
                f"adapter.{key} = {value} is out of range",
                where=f"adapter.{key}",
                remedy="r at least 1, alpha above 0, dropout in [0, 1)",
            )
    from peft import LoraConfig, TaskType, get_peft_model

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, list):
        lost = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
        if lost or not targets:
            endings = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise NexusError(
                "E-CFG-22",
                f"no linear layer is called {', '.join(lost) or 'by an empty list'}",
                where="adapter.target_modules",
                remedy=f"all-linear, or from: {', '.join(endings)}",
            )
    elif targets != "all-linear":
        raise NexusError(
            "E-CFG-22",
            f"target_modules = {targets!r} is not understood",
            where="adapter.target_modules",
            remedy="all-linear, or a list of name endings",
        )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        use_rslora=use_rslora,
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


@dataclass(frozen=True)
class ParameterCounts:
    """Sizes of a model.

    Attributes:
        trainable: elements that receive a gradient.
        total: all elements, shared ones once.
    """

    trainable: int
    total: int


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count elements.

    Args:
        model: any module.

    Returns:
        Trainable and total elements.
    """
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCounts(trainable=sum(n for n, on in sizes if on), total=sum(n for n, _ in sizes))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by the model's own names; shared weights once.

    Args:
        model: any module.

    Returns:
        Detached tensors that share memory with the model.
    """
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The adapter's weights by the names of PEFT's own files.

    Args:
        model: a `PeftModel`.

    Returns:
        Tensors by name.
    """
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model)
    return state


def merge_adapter(model: Any) -> Any:
    """Fold the adapter into the weights, layer by layer in float32, then cast back.

    PEFT alone adds in the weight's dtype, so a bfloat16 model would round the update twice.

    Args:
        model: a `PeftModel` (changed: its layers lose their adapters), or a model without an adapter.

    Returns:
        The plain `PreTrainedModel`.

    Raises:
        NexusError: `E-NUM-03` if the merged weights are not finite.
    """
    if not hasattr(model, "peft_config"):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        dtype = base.weight.dtype
        base.weight.data = base.weight.data.float()
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise NexusError(
                "E-NUM-03",
                f"the adapter of {name} holds NaN or infinity",
                where=name,
                remedy="train again with a lower learning rate",
            ) from error
        base.weight.data = base.weight.data.to(dtype)
    return model.unload()
