"""Putting a low-rank adapter on a model and taking it off again, through PEFT.

PEFT is imported only here and only when an adapter is used: it pulls in bitsandbytes and inductor.

Signatures:
    apply_adapter(model, adapter, seed=, read_weight=None) -> model (name "none") or PeftModel
    parameter_counts(model) -> ParameterCounts(trainable, total)
    adapter_state(model) -> dict[str, Tensor]
    save_adapter(model, folder, base_name) -> None
    merge_adapter(model) -> PreTrainedModel
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nexus.errors import NexusError
from nexus.models.quantized import dequantized, is_4bit, plain_linear, restore_linears, start_from_error

#: Settings that an adapter needs, by its name.
_KEYS = {
    "lora": ("r", "alpha", "dropout", "target_modules", "use_rslora", "init"),
    "qlora": ("r", "alpha", "dropout", "target_modules", "use_rslora", "init"),
    "dora": ("r", "alpha", "dropout", "target_modules", "use_rslora"),
}
#: Where a model keeps the first values of an adapter that was cut out of its weights (PiSSA).
_START = "_nexus_adapter_start"


def apply_adapter(
    model: Any, adapter: Mapping[str, Any], *, seed: int, read_weight: Callable[[str], Tensor] | None = None
) -> Any:
    """Add what is trained.

    Args:
        model: a `PreTrainedModel`; for `qlora` one whose linear layers were loaded in 4 bits.
        adapter: a file of `conf/adapter`: `name: none` trains every weight; `lora`, `qlora` and `dora` need `r`,
            `alpha`, `dropout`, `target_modules` (`all-linear` or a list of name endings) and `use_rslora`; `lora` and
            `qlora` also `init`.
        seed: of the adapter's random weights; the global RNG is left as it is.
        read_weight: gives a stored weight by its name; `init: loftq` needs it.

    Returns:
        The model itself with every weight trainable, or a `PeftModel` whose adapter alone is.

    Raises:
        NexusError: `E-CFG-21` for a setting that cannot be, `E-CFG-22` if `target_modules` matches nothing.
    """
    name = adapter["name"]
    if name == "none":
        model.requires_grad_(True)
        return model
    if name not in _KEYS:
        raise NexusError(
            "E-CFG-21", f"there is no adapter {name!r}", where="adapter.name", remedy=f"none, {', '.join(_KEYS)}"
        )
    absent = [key for key in _KEYS[name] if key not in adapter]
    if absent:
        raise NexusError(
            "E-CFG-21",
            f"adapter={name} needs {', '.join(absent)}",
            where=f"adapter.{absent[0]}",
            remedy=f"start from conf/adapter/{name}.yaml",
        )
    if (name == "qlora") != any(is_4bit(layer) for layer in model.modules()):
        raise NexusError(
            "E-CFG-21",
            f"adapter={name}, but the base model was {'not ' if name == 'qlora' else ''}loaded in 4 bits",
            where="adapter.name",
            remedy="adapter=qlora loads the base in 4 bits by itself; the others need it as it is stored",
        )
    settings = {key: adapter[key] for key in ("r", "alpha", "dropout", "target_modules", "use_rslora")}
    init = "default" if name == "dora" else adapter["init"]
    if init == "loftq" and (name != "qlora" or read_weight is None):
        raise NexusError(
            "E-CFG-21",
            "init=loftq fits what quantizing lost: it needs adapter=qlora and stored weights",
            where="adapter.init",
            remedy="adapter.init=default",
        )
    adapted = apply_lora(model, seed=seed, use_dora=name == "dora", pissa=init if "pissa" in init else None, **settings)
    if init == "loftq" and read_weight is not None:
        start_from_error(adapted, read_weight)
    return adapted


def apply_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    use_rslora: bool,
    use_dora: bool,
    pissa: str | None,
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
        use_dora: a trained magnitude per output (DoRA, arXiv 2402.09353).
        pissa: `pissa` or `pissa_niter_N` (arXiv 2404.02948): A and B begin as the largest singular values, which are
            taken out of the frozen weights; N rounds of a fast decomposition instead of the exact one. None: A is
            random and B is 0.
        seed: of A.

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
    # PEFT imports bitsandbytes, which warns that it misses a kernel for 4 bits, where nothing is in 4 bits too
    if not any(is_4bit(layer) for layer in model.modules()):
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_targets(model, target_modules),
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora_weights=pissa or True,
        task_type=TaskType.CAUSAL_LM,
    )
    if pissa is not None:
        _insist_on_rank(model, r)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    if pissa is not None:
        setattr(adapted, _START, {name: value.clone() for name, value in adapter_state(adapted).items()})
    return adapted


def _targets(model: nn.Module, target_modules: str | list[str]) -> str | list[str]:
    """The setting as PEFT takes it, refused if a name matches no layer."""
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
    return targets


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
    """Count elements; a weight in 4 bits counts as the matrix that it stands for.

    Args:
        model: any module.

    Returns:
        Trainable and total elements.
    """
    trainable = total = 0
    for p in model.parameters():
        state = getattr(p, "quant_state", None)
        count = p.numel() if state is None else math.prod(state.shape)
        total += count
        trainable += count if p.requires_grad else 0
    return ParameterCounts(trainable=trainable, total=total)


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


def save_adapter(model: Any, folder: Path, *, base_name: str) -> None:
    """Write the folder that `PeftModel.from_pretrained` opens on the base model as it was published.

    A PiSSA adapter fits only the weights that it was cut out of, so it is written as a plain LoRA of twice the rank,
    `[B | -B0] @ [A ; A0]`, which needs nothing but the base. PEFT has that conversion too; it loads a second adapter
    into the model and asks the hub about the base's name.

    Args:
        model: a `PeftModel`; its settings are left as they are.
        folder: where to write.
        base_name: name of the base model in the adapter's settings: no path, no host.
    """
    kept = model.peft_config["default"]
    config = copy.deepcopy(kept)
    config.base_model_name_or_path = base_name
    if not hasattr(model, _START):
        model.peft_config["default"] = config
        try:
            model.save_pretrained(folder, save_embedding_layers=False)
        finally:
            model.peft_config["default"] = kept
        return
    from safetensors.torch import save_file

    start, state = getattr(model, _START), {}
    for name, value in adapter_state(model).items():
        first = start[name].to(value)
        parts = ([value, -first], 1) if "lora_B" in name else ([value, first], 0)
        state[name] = torch.cat(*parts).contiguous()
    config.init_lora_weights, config.inference_mode = True, True
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2  # the scale stays what it was
    config.r *= 2
    config.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merge_adapter(model: Any) -> Any:
    """Fold the adapter into the weights, layer by layer in float32, then cast back.

    PEFT alone adds in the weight's dtype, so a bfloat16 model would round the update twice; and it would quantize a
    4-bit base again, which is a new error. Here the merged model has no 4-bit layers: they become plain ones that hold
    the very numbers that training computed with.

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

    plain_dtype = next(model.parameters()).dtype  # of the embedding, which is never quantized
    for name, module in list(model.named_modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        if is_4bit(base):
            merged = dequantized(base) + module.get_delta_weight("default").float()
            if not torch.isfinite(merged).all():
                raise _not_finite(name)
            module.base_layer = plain_linear(base, merged.to(plain_dtype))
            continue
        dtype = base.weight.dtype
        base.weight.data = base.weight.data.float()
        try:
            module.merge(safe_merge=True)
        except ValueError as error:
            raise _not_finite(name) from error
        base.weight.data = base.weight.data.to(dtype)
    plain = model.unload()
    restore_linears(plain, plain_dtype)
    return plain


def _not_finite(name: str) -> NexusError:
    return NexusError(
        "E-NUM-03",
        f"the adapter of {name} holds NaN or infinity",
        where=name,
        remedy="train again with a lower learning rate",
    )


def _insist_on_rank(model: nn.Module, r: int) -> None:
    """PiSSA has no more directions to begin with than the smallest matrix."""
    smallest = min(min(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear))
    if r > smallest:
        raise NexusError(
            "E-CFG-21",
            f"adapter.r = {r}, but the smallest matrix has {smallest} singular values",
            where="adapter.r",
            remedy=f"adapter.r={smallest} or less, or adapter.init=default",
        )
