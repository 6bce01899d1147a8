"""Loading weights so that nothing is silently invented.

transformers fills missing or misshapen tensors with random numbers and goes on; here both are errors, as are NaN
weights, pickled weights and code from a model's folder.

Signatures:
    load_model(*, path, architecture, revision, trust_remote_code, seed, dtype, attn="segment", quantization=None,
               rope=None) -> PreTrainedModel
    stored_weight(path, revision) -> function that reads one tensor by its name
    load_config(*, path, architecture, revision, trust_remote_code) -> PretrainedConfig
    model_facts(*, path, architecture, revision) -> ModelFacts
    architecture_tensors(architecture) -> dict[str, StoredTensor]
    load_tokenizer: see nexus.models.tokenizer
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from nexus.errors import NexusError
from nexus.models.attention import NAME as SEGMENT
from nexus.models.attention import SegmentsUnsupportedError, enable_segments
from nexus.models.facts import StoredTensor, read_config, read_facts, read_tensors, refuse_remote_code, resolve_model
from nexus.models.head import probe_head
from nexus.models.published import refuse_missing_reader
from nexus.models.quantized import bits_and_bytes_config, keep_arithmetic
from nexus.models.reward_facts import refuse_reward_model
from nexus.models.rope import scale_positions
from nexus.storage.manifest import insist_as_packed
from nexus.types import ModelFacts

log = logging.getLogger(__name__)
#: What transformers raises for a config that it cannot use.
_REFUSALS = (TypeError, ValueError, KeyError, AttributeError, ImportError, StrictDataclassError)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    *,
    path: str | None,
    architecture: Mapping[str, Any] | None,
    revision: str | None,
    trust_remote_code: bool,
    seed: int,
    dtype: str | torch.dtype,
    attn: str = SEGMENT,
    quantization: Mapping[str, Any] | None = None,
    rope: Mapping[str, Any] | None = None,
) -> Any:
    """Load a decoder, or make one with random weights.

    Args:
        path: `asset:NAME`, a folder, or a hub id; None with `architecture`.
        architecture: config of a new model with `model_type`; None loads `path`.
        revision: of a hub id.
        trust_remote_code: True allows model code from the folder.
        seed: of random weights; the global RNG is left as it is.
        dtype: `fp32` or `bf16`, or a torch dtype.
        attn: attention implementation; `segment` allows packing.
        quantization: `quant_type`, `double_quant` and the `device` to quantize on: linear layers but the head are
            loaded in 4 bits; None keeps them as they are.
        rope: `base_model.rope`, see `models.rope`; None or `type: null` leaves positions as the config has them.

    Returns:
        A `PreTrainedModel` in eval mode on the CPU (a quantized one on its device), whose head passed `probe_head`.

    Raises:
        NexusError: `E-MOD-01` to `E-MOD-13`, `E-MOD-21`, `E-MOD-22`, `E-NUM-05`, `E-SEC-01`, `E-SEC-02`; `E-PKG-02`,
            `E-PKG-04` or `E-PKG-07` for a package that has changed; `E-CFG-20` if both or neither of `path` and
            `architecture` are given.
    """
    if (path is None) == (architecture is None):
        raise NexusError(
            "E-CFG-20",
            "give exactly one of path and architecture",
            where="base_model",
            remedy="architecture starts from random weights, path loads trained ones",
        )
    dtype = _DTYPES[dtype] if isinstance(dtype, str) else dtype
    config = load_config(path=path, architecture=architecture, revision=revision, trust_remote_code=trust_remote_code)
    if rope is not None:
        scale_positions(config, rope)
    extra = {} if quantization is None else _quantized(quantization, dtype)
    if path is None:
        model = _random_model(config, seed, dtype)
        if quantization is not None:
            with _quiet_transformers():
                model = type(model).from_pretrained(
                    None, config=config, state_dict=model.state_dict(), dtype=dtype, **extra
                )
    else:
        folder = resolve_model(path, revision)
        refuse_reward_model(read_config(folder), where=str(folder))
        model = stored_model(folder, config, trust_remote_code=trust_remote_code, dtype=dtype, extra=extra)
    keep_arithmetic(model)
    model.eval()
    if attn != SEGMENT:
        model.set_attn_implementation(attn)
        probe_head(model)
        return model
    enable_segments(model)
    try:
        probe_head(model)
    except SegmentsUnsupportedError as error:
        # not silent: packing_support() then says that the attention is not `segment`, and batches are padded
        log.warning("W-MOD-14  %s: %s; its own attention is used, without packing", type(model).__name__, error)
        model.set_attn_implementation("eager")
        probe_head(model)
    return model


def load_config(
    *, path: str | None, architecture: Mapping[str, Any] | None, revision: str | None, trust_remote_code: bool
) -> Any:
    """The transformers config of a folder or of an architecture dictionary.

    Args:
        path: as in `load_model`.
        architecture: as in `load_model`.
        revision: as in `load_model`.
        trust_remote_code: as in `load_model`.

    Returns:
        A `PretrainedConfig` of a causal decoder.

    Raises:
        NexusError: `E-MOD-01` to `E-MOD-04`, `E-MOD-09`, `E-SEC-02`.
    """
    from transformers import AutoConfig

    if path is None:
        raw = dict(architecture or {})
        where = "base_model.architecture"
        if not isinstance(raw.get("model_type"), str):
            raise NexusError(
                "E-MOD-04", "the architecture names no model_type", where=where, remedy="for example model_type: qwen3"
            )
        _check_type(raw["model_type"], where)
        kind = raw.pop("model_type")
        try:
            return AutoConfig.for_model(kind, **raw)
        except _REFUSALS as error:
            raise NexusError(
                "E-MOD-02",
                f"{kind} refuses the architecture: {error}",
                where=where,
                remedy=f"see transformers' config class of {kind}",
            ) from error
    folder = resolve_model(path, revision)
    raw = read_config(folder)
    where = str(folder / "config.json")
    refuse_remote_code(raw, trust_remote_code=trust_remote_code, where=where)
    refuse_missing_reader((raw.get("quantization_config") or {}).get("quant_method"), where=where)
    if trust_remote_code and "auto_map" in raw:
        _insist_on_pin(path, revision)
    else:
        _check_type(raw["model_type"], where)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except _REFUSALS as error:
        raise NexusError(
            "E-MOD-02", f"transformers refuses the config: {error}", where=where, remedy="download it again"
        ) from error


def _insist_on_pin(path: str, revision: str | None) -> None:
    is_hub = not Path(path).expanduser().is_dir() and not path.startswith("asset:")
    pinned = revision is not None and len(revision) == 40 and set(revision) <= set("0123456789abcdef")
    if is_hub and not pinned:
        raise NexusError(
            "E-SEC-02",
            "remote code needs a pinned revision",
            where="base_model.revision",
            remedy="give the 40-digit commit whose code you have read",
        )


def _check_type(model_type: str, where: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if model_type not in KNOWN:
        near = difflib.get_close_matches(model_type, list(KNOWN), n=3) or ["qwen3", "llama", "gemma3_text"]
        raise NexusError(
            "E-MOD-04",
            f"transformers knows no causal decoder of model_type {model_type!r}",
            where=where,
            remedy=f"nearest: {', '.join(near)}",
        )


def _random_model(config: Any, seed: int, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # drawn in float32 and then cast, so that both precisions start from the same numbers
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its loading report, which says "newly initialized" where our errors say it better, and without bars."""
    from transformers.utils import logging as hf_logging

    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()


def _quantized(quantization: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` that make the linear layers 4-bit ones."""
    config = bits_and_bytes_config(quantization, dtype)
    return {"quantization_config": config, "device_map": {"": quantization["device"]}}


def stored_model(
    folder: Path,
    config: Any,
    *,
    trust_remote_code: bool,
    dtype: torch.dtype,
    extra: Mapping[str, Any],
    kind: str = "AutoModelForCausalLM",
) -> Any:
    """Read a folder's weights; nothing may be missing, misshapen, NaN, or other than it was packed.

    Args:
        folder: of the weights.
        config: transformers' config of it.
        trust_remote_code: True allows model code from the folder.
        dtype: of the weights in memory.
        extra: further arguments of `from_pretrained`.
        kind: transformers' class to read it with.

    Returns:
        The `PreTrainedModel`.

    Raises:
        NexusError: `E-MOD-02`, `E-MOD-05` to `E-MOD-08`, `E-MOD-10`, `E-MOD-22`; `E-PKG-02`, `E-PKG-04` or
            `E-PKG-07` for a package that has changed.
    """
    import transformers

    tensors = read_tensors(folder)  # all header errors come before the weights are read
    _refuse_hidden_adapter(folder)
    insist_as_packed(folder)
    if extra:
        _refuse_stored_nan(folder, tensors)
    # a missing tensor would be drawn at random before it is refused: keep the caller's RNG out of it
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        try:
            model, info = getattr(transformers, kind).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **extra,
            )
        except _REFUSALS as error:
            raise NexusError(
                "E-MOD-02",
                f"transformers cannot make the model that the config describes: {type(error).__name__}: {error}",
                where=str(folder / "config.json"),
                remedy="download it again, or choose a model whose type and settings transformers knows",
            ) from error
    if info["mismatched_keys"]:
        wrong = sorted(info["mismatched_keys"])
        shown = "; ".join(f"{name} stored {list(a)}, config wants {list(b)}" for name, a, b in wrong[:3])
        raise NexusError(
            "E-MOD-05",
            f"{len(wrong)} tensors have another shape than the config says: {shown}",
            where=str(folder),
            remedy="config.json and the weights do not belong together",
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise NexusError(
            "E-MOD-06",
            f"{len(missing)} tensors are missing: {', '.join(missing[:3])}",
            where=str(folder),
            remedy=f"the files hold {len(tensors)} tensors; download them again or mend config.json",
        )
    _refuse_nan(model, folder)
    return model


def _refuse_hidden_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise NexusError(
            "E-MOD-22",
            "beside the weights lies an adapter, which transformers would put on unasked",
            where=str(folder / "adapter_config.json"),
            remedy="move the adapter to a folder of its own, or merge it and save the merged model",
        )


def _refuse_nan(model: nn.Module, folder: Path) -> None:
    for name, value in model.named_parameters():
        _insist_finite(name, value, folder)


def _refuse_stored_nan(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """As `_refuse_nan`, before quantizing: 4 bits cannot hold a NaN, so it would turn into some number."""
    from safetensors import safe_open

    for file in sorted({tensor.file for tensor in tensors.values()}):
        with safe_open(folder / file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dictionary
                _insist_finite(name, stored.get_tensor(name), folder)


def _insist_finite(name: str, value: torch.Tensor, folder: Path) -> None:
    if value.is_floating_point() and not torch.isfinite(value.sum()):
        count = int((~torch.isfinite(value)).sum())
        if count:  # a finite tensor may overflow its sum
            raise NexusError(
                "E-MOD-07",
                f"{name} holds {count} values that are NaN or infinite",
                where=str(folder),
                remedy="download the weights again",
            )


def stored_weight(path: str, revision: str | None) -> Callable[[str], torch.Tensor]:
    """Access to single stored weights, without loading the others.

    Args:
        path: as in `load_model`.
        revision: as in `load_model`.

    Returns:
        A function from a tensor's name to the tensor in float32 on the CPU; `E-MOD-06` if there is no such tensor.
    """
    from safetensors import safe_open

    folder = resolve_model(path, revision)
    tensors = read_tensors(folder)

    def read(name: str) -> torch.Tensor:
        if name not in tensors:
            raise NexusError(
                "E-MOD-06",
                f"the stored weights have no tensor {name}",
                where=str(folder),
                remedy="adapter.init=default needs none",
            )
        with safe_open(folder / tensors[name].file, framework="pt") as stored:
            value: torch.Tensor = stored.get_tensor(name)
        return value.float()

    return read


def _meta_model(config: Any) -> nn.Module:
    """The model of a config without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def architecture_tensors(architecture: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Names and shapes of a model that will start from random weights; a tied head is left out.

    Args:
        architecture: as in `load_model`.

    Returns:
        Tensors by name, in 32 bits.

    Raises:
        NexusError: as `load_config`.
    """
    model = _meta_model(load_config(path=None, architecture=architecture, revision=None, trust_remote_code=False))
    return {name: StoredTensor("F32", tuple(p.shape), "") for name, p in model.named_parameters()}


def model_facts(*, path: str | None, architecture: Mapping[str, Any] | None, revision: str | None) -> ModelFacts:
    """Facts of a folder, or of an architecture as it would be made (counted without memory on the meta device).

    Args:
        path: as in `load_model`.
        architecture: as in `load_model`.
        revision: as in `load_model`.

    Returns:
        The facts; for an architecture in float32.

    Raises:
        NexusError: as `read_facts` and `load_config`.
    """
    if path is not None:
        return read_facts(resolve_model(path, revision))
    config = load_config(path=None, architecture=architecture, revision=None, trust_remote_code=False)
    count = sum(p.numel() for p in _meta_model(config).parameters())
    text = config.get_text_config()
    heads = text.num_attention_heads
    return ModelFacts(
        path="",
        model_type=config.model_type,
        num_parameters=count,
        parameters_by_dtype={"F32": count},
        num_bytes=4 * count,
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        sliding_window=getattr(text, "sliding_window", None),
        tied=bool(config.tie_word_embeddings),
    )
