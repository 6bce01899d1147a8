"""What a folder of weights holds, read from `config.json` and the safetensors headers alone.

Imports neither torch nor transformers, so a dry run is quick, and every damaged folder is found before anything heavy
starts. Header format: 8 bytes little-endian length, that many bytes of JSON, then the data
(https://github.com/huggingface/safetensors#format).

Signatures:
    resolve_model(path, revision) -> Path
    is_here(path, revision) -> bool
    read_config(folder) -> dict
    read_tensors(folder) -> dict[str, StoredTensor]
    read_facts(folder) -> ModelFacts
    facts_of(*, config, tensors, path, where) -> ModelFacts
    refuse_remote_code(config, trust_remote_code=, where=) -> None
"""

from __future__ import annotations

import difflib
import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.errors import NexusError
from nexus.types import ModelFacts

ASSETS = Path(__file__).parent.parent / "assets"
_MAX_HEADER = 100_000_000  # the format's own limit
_LFS = b"version https://git-lfs"
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)


#: Settings whose value may name code on the hub instead of an implementation.
_KERNELS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a safetensors header.

    Attributes:
        dtype: safetensors name, for example `BF16`.
        shape: sizes.
        file: file name inside the folder.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.count * _BITS[self.dtype] // 8


def resolve_model(path: str, revision: str | None) -> Path:
    """The folder that a `path` setting means.

    Args:
        path: `asset:NAME` for a shipped folder, a folder, or `owner/name` of the Hugging Face hub.
        revision: commit, tag or branch of a hub model; None for its default branch.

    Returns:
        An existing folder; a hub model is downloaded into the hub's own cache first (safetensors and JSON only).

    Raises:
        NexusError: `E-MOD-01` if there is no such folder or hub model.
    """
    if path.startswith("asset:"):
        folder = ASSETS / path.removeprefix("asset:")
        shipped = sorted(p.name for p in ASSETS.iterdir() if p.is_dir()) if ASSETS.is_dir() else []
        if not folder.is_dir() or folder.parent != ASSETS:
            raise _missing(path, [f"asset:{name}" for name in shipped])
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NexusError(
            "E-MOD-01",
            f"{path} is a file, not a folder of weights",
            where="base_model.path",
            status=66,
            remedy="give the folder that holds config.json",
        )
    looks_like_hub = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not folder.parent.is_dir()
    if looks_like_hub:
        return _from_hub(path, revision)
    siblings = [str(folder.parent / p.name) for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
    raise _missing(path, siblings)


def is_here(path: str, revision: str | None) -> bool:
    """Whether a model can be read without the network.

    Args:
        path: as in `resolve_model`.
        revision: as in `resolve_model`.

    Returns:
        True for a folder, and for a hub model whose files lie in the hub's cache.
    """
    if path.startswith("asset:") or Path(path).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)


def _missing(path: str, candidates: list[str]) -> NexusError:
    near = difflib.get_close_matches(path, candidates, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"there is: {', '.join(candidates[:8]) or 'nothing'}"
    return NexusError("E-MOD-01", f"no model folder {path}", where="base_model.path", remedy=remedy, status=66)


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise NexusError(
            "E-MOD-01",
            f"no folder {name}, and the hub did not give a model of that name ({type(error).__name__})",
            where="base_model.path",
            remedy="check spelling and network, log in with `hf auth login` for a gated model, or give a folder",
            status=66,
        ) from error


def read_json(file: Path, *, code: str) -> dict[str, Any]:
    """Read a JSON object with a helpful error.

    Args:
        file: what to read.
        code: code of the error if it is malformed.

    Returns:
        The object.

    Raises:
        NexusError: `code` with line and column, or `E-MOD-09` for a git-lfs pointer.
    """
    raw = file.read_bytes()
    _refuse_pointer(file, raw[:64])
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}:{error.colno}"
        raise NexusError(
            code,
            f"{file.name} is not valid JSON: {error.msg}",
            where=where,
            remedy="mend it or download the file again",
        ) from error
    except UnicodeDecodeError as error:
        raise NexusError(
            code,
            f"{file.name} is not text: {error.reason} at byte {error.start}",
            where=str(file),
            remedy="download the file again",
        ) from error
    if not isinstance(value, dict):
        raise NexusError(
            code,
            f"{file.name} holds a {type(value).__name__}, not an object",
            where=str(file),
            remedy="download the file again",
        )
    return value


def _refuse_pointer(file: Path, head: bytes) -> None:
    if head.startswith(_LFS):
        raise NexusError(
            "E-MOD-09",
            f"{file.name} is a git-lfs pointer, not the file itself",
            where=str(file),
            remedy=f"run `git lfs pull` in {file.parent}",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Args:
        folder: a folder of weights.

    Returns:
        The config; it names a `model_type`.

    Raises:
        NexusError: `E-MOD-02` malformed, `E-MOD-03` absent, `E-MOD-04` without `model_type`, `E-MOD-09` an LFS pointer.
    """
    file = folder / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise NexusError(
            "E-MOD-03",
            "the model folder has no config.json",
            where=str(folder),
            status=66,
            remedy=f"it holds: {found}; give a folder made by save_pretrained",
        )
    config = read_json(file, code="E-MOD-02")
    if not isinstance(config.get("model_type"), str):
        raise NexusError(
            "E-MOD-04",
            "config.json names no model_type",
            where=str(file),
            remedy="give a folder made by transformers' save_pretrained",
        )
    return config


def refuse_remote_code(config: Mapping[str, Any], *, trust_remote_code: bool, where: str) -> None:
    """Refuse a config that wants to run code from its folder.

    Args:
        config: parsed `config.json` or `tokenizer_config.json`.
        trust_remote_code: the user allowed it for this model by name.
        where: file, for the message.

    Raises:
        NexusError: `E-SEC-02`.
    """

    def wants(value: Any) -> bool:
        if isinstance(value, Mapping):
            foreign = "auto_map" in value or bool(value.get("trust_remote_code", False))
            # the name of a repository in place of a kind of attention: its code would be loaded
            return foreign or any("/" in str(value.get(key)) for key in _KERNELS) or any(map(wants, value.values()))
        return isinstance(value, list) and any(map(wants, value))

    if wants(config) and not trust_remote_code:
        raise NexusError(
            "E-SEC-02",
            "the model wants to run Python code from its own folder or a repository",
            where=where,
            remedy="choose a model whose type transformers knows; if you have read the code, set "
            "base_model.trust_remote_code=true and pin base_model.revision",
        )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read and check the header of one safetensors file; the data is not touched.

    Args:
        file: the file.

    Returns:
        Tensors by name.

    Raises:
        NexusError: `E-MOD-08` damaged, `E-MOD-09` an LFS pointer.
    """
    size = file.stat().st_size

    def damaged(what: str) -> NexusError:
        return NexusError("E-MOD-08", f"{file.name} is damaged: {what}", where=str(file), remedy="download it again")

    with file.open("rb") as stream:
        start = stream.read(8)
        _refuse_pointer(file, start + stream.read(56))
        if len(start) < 8:
            raise damaged(f"{size} bytes, even the header needs 8")
        (length,) = struct.unpack("<Q", start)
        if length > min(_MAX_HEADER, size - 8):
            raise damaged(f"its header claims {length} bytes, the file has {size}")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            tensors = {
                name: StoredTensor(entry["dtype"], tuple(entry["shape"]), file.name)
                for name, entry in header.items()
                if name != "__metadata__"
            }
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise damaged(f"its header is unreadable ({type(error).__name__})") from error
    if 8 + length + end != size:
        raise damaged(f"expected {8 + length + end} bytes, found {size}")
    unknown = {tensor.dtype for tensor in tensors.values()} - _BITS.keys()
    if unknown:
        raise damaged(f"unknown dtype {sorted(unknown)[0]}")
    return tensors


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Headers of all weights of a folder.

    Args:
        folder: a folder of weights.

    Returns:
        Tensors by name, over all shards.

    Raises:
        NexusError: `E-MOD-08`, `E-MOD-09` as `read_header`; `E-MOD-10` a shard is missing; `E-MOD-13` no weights;
            `E-SEC-01` only pickled weights.
    """
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return read_header(single)
    if index.is_file():
        weight_map = read_json(index, code="E-MOD-02").get("weight_map")
        if not isinstance(weight_map, dict):
            raise NexusError("E-MOD-02", "the index has no weight_map", where=str(index), remedy="download it again")
        shards = sorted(set(weight_map.values()))
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            raise NexusError(
                "E-MOD-10",
                f"{len(absent)} of {len(shards)} shards are missing: {', '.join(absent[:3])}",
                where=str(index),
                remedy="download the missing files",
                status=66,
            )
        tensors: dict[str, StoredTensor] = {}
        for name in shards:
            tensors |= read_header(folder / name)
        return tensors
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise NexusError(
            "E-SEC-01",
            f"the folder holds only pickled weights ({pickled[0]}), which could run code",
            where=str(folder),
            remedy="get the safetensors version, or convert it with "
            "save_pretrained(safe_serialization=True) on a machine you can spare",
        )
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
    raise NexusError(
        "E-MOD-13", "the folder has no model.safetensors", where=str(folder), status=66, remedy=f"it holds: {found}"
    )


def _number(config: Mapping[str, Any], *names: str, where: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise NexusError(
        "E-MOD-02",
        f"config.json has no number {' or '.join(names)}",
        where=where,
        remedy="give a decoder's config.json as save_pretrained writes it",
    )


def _known_positions(text: Mapping[str, Any], where: str) -> int:
    """Longest sequence in tokens; what dynamic and YaRN scaling add is not in `max_position_embeddings` itself."""
    stored = _number(text, "max_position_embeddings", "n_positions", where=where)
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    scaling = scaling.get("full_attention", scaling)
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor") or 1.0
    if kind == "dynamic":
        return int(stored * factor)
    if kind == "yarn":
        return max(stored, int(scaling.get("original_max_position_embeddings", stored / factor) * factor))
    return stored


def read_facts(folder: Path) -> ModelFacts:
    """Everything that planning needs to know about a folder of weights.

    Args:
        folder: a folder of weights.

    Returns:
        The facts.

    Raises:
        NexusError: as `read_config` and `read_tensors`.
    """
    return facts_of(
        config=read_config(folder), tensors=read_tensors(folder), path=str(folder), where=str(folder / "config.json")
    )


def facts_of(*, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], path: str, where: str) -> ModelFacts:
    """Facts from a config and the headers of its tensors.

    Args:
        config: as `read_config` gives it.
        tensors: as `read_tensors` gives them.
        path: where the weights are.
        where: place of the config, for messages.

    Returns:
        The facts.

    Raises:
        NexusError: `E-MOD-02` for a config that lacks a number.
    """
    text = config.get("text_config", config)
    heads = _number(text, "num_attention_heads", "n_head", where=where)
    hidden = _number(text, "hidden_size", "n_embd", where=where)
    kv_heads = text.get("num_key_value_heads")
    stored_heads = [name for name in tensors if name.endswith(_HEADS)]
    tied = not stored_heads or text.get("tie_word_embeddings", config.get("tie_word_embeddings")) is True
    counted = {name: t for name, t in tensors.items() if not (tied and name in stored_heads)}
    by_dtype: Counter[str] = Counter()
    for tensor in counted.values():
        by_dtype[tensor.dtype] += tensor.count
    rows = [t.shape[0] for name, t in tensors.items() if name.endswith(_EMBEDDINGS)]
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    return ModelFacts(
        path=path,
        model_type=config["model_type"],
        num_parameters=sum(by_dtype.values()),
        parameters_by_dtype=dict(by_dtype),
        num_bytes=sum(t.num_bytes for t in counted.values()),
        num_layers=_number(text, "num_hidden_layers", "n_layer", where=where),
        hidden_size=hidden,
        intermediate_size=text.get("intermediate_size") or text.get("n_inner") or 4 * hidden,
        num_heads=heads,
        num_kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab_size=rows[0] if rows else _number(text, "vocab_size", where=where),
        max_position_embeddings=_known_positions(text, where),
        sliding_window=window,
        tied=tied,
    )
