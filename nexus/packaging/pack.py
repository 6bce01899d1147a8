"""One folder that transformers opens: merged weights, tokenizer, card, manifest, and the PEFT adapter if any."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nexus.errors import NexusError
from nexus.models.adapters import merge_adapter, save_adapter
from nexus.models.head import text_model
from nexus.models.loader import load_model
from nexus.models.reward_model import as_classifier, load_reward_model
from nexus.models.value_head import ScalarHead, apply_head
from nexus.storage.atomic import atomic_folder
from nexus.storage.manifest import write_manifest
from nexus.storage.redaction import redact, redact_text

CARD = "README.md"


@dataclass(frozen=True)
class PackageInfo:
    """What was written.

    Attributes:
        path: the folder.
        sha256: hash over the sorted (name, sha256) of every file except card and manifest.
        max_logit_difference: largest difference between the logits (of a reward model, the rewards) of the trained
            model and those of the reopened package, on the probe tokens.
        num_bytes: size of all files.
    """

    path: Path
    sha256: str
    max_logit_difference: float
    num_bytes: int


def write_package(
    *,
    model: Any,
    tokenizer: Any,
    folder: Path,
    base_name: str,
    card: Callable[[float], str],
    probe: list[int],
    tolerance: float,
    reward_head: ScalarHead | None = None,
) -> PackageInfo:
    """Write the package beside its final name, reopen it, compare, and rename it into place.

    The adapter is merged into `model` itself, which needs no second copy of the weights; do not train it afterwards.

    Args:
        model: the trained model, with or without an adapter.
        tokenizer: saved along with its chat template.
        folder: final place; a package that stands there is replaced once the new one is proven.
        base_name: name of the base model for the adapter's config: no path, no host.
        card: makes the text of the model card from the largest difference of the logits.
        probe: token ids on which the logits are compared.
        tolerance: largest difference allowed, relative to the largest logit.
        reward_head: of a reward model, which is packaged as transformers' class for it and compared by its rewards at
            every probe token; None for a model that answers.

    Returns:
        What was written.

    Raises:
        NexusError: `E-PKG-03` if the reopened package answers differently; `E-MOD-20` for a reward model that
            transformers has no class for.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    before = _logits(model, probe) if reward_head is None else _rewards(model, reward_head, probe)
    with atomic_folder(folder, replace=True) as partial:
        if hasattr(model, "peft_config"):
            save_adapter(model, partial / "adapter", base_name=base_name)
            model = merge_adapter(model)
        if reward_head is not None:
            model = as_classifier(model, reward_head, pad_token_id=tokenizer.pad_token_id)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _drop_paths(partial / "tokenizer_config.json")
        _drop_secrets(partial, frozenset(tokenizer.get_vocab()))
        difference = float((_reopened(partial, probe, dtype, reward_head) - before).abs().max())
        if not difference <= tolerance * float(before.abs().max()):
            raise NexusError(
                "E-PKG-03",
                f"the reopened package's logits differ by {difference:.3g} from the trained model's",
                where=str(folder),
                remedy="the checkpoints are intact; report this with the run's config.yaml",
            )
        (partial / CARD).write_text(redact_text(card(difference)))
        extra = {"base_model": base_name, "max_logit_difference": difference}
        sha256 = write_manifest(partial, exclude=(CARD,), extra=extra)
        _usual_modes(partial)
        num_bytes = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    return PackageInfo(path=folder, sha256=sha256, max_logit_difference=difference, num_bytes=num_bytes)


def _reopened(folder: Path, probe: list[int], dtype: torch.dtype, reward_head: ScalarHead | None) -> torch.Tensor:
    """What the package says of the probe tokens, opened as its users open it."""
    if reward_head is not None:
        model = load_reward_model(path=str(folder), dtype=dtype)
        return _rewards(model, model.score, probe)
    model = load_model(path=str(folder), architecture=None, revision=None, trust_remote_code=False, seed=0, dtype=dtype)
    return _logits(model, probe)


@torch.inference_mode()
def _rewards(model: Any, head: ScalarHead | torch.nn.Linear, probe: list[int]) -> torch.Tensor:
    """[T] float32 rewards at every token of one row on the CPU."""
    input_ids = torch.tensor([probe], device=next(model.parameters()).device)
    hidden = text_model(model).base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    return apply_head(head.weight.to(hidden.device), hidden).flatten().cpu()


@torch.inference_mode()
def _logits(model: Any, probe: list[int]) -> torch.Tensor:
    """[T, V] float32 logits of one row on the CPU."""
    input_ids = torch.tensor([probe], device=next(model.parameters()).device)
    logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0]
    return logits.float().cpu()


def _usual_modes(folder: Path) -> None:
    """Give every file the mode that the umask says; safetensors makes its files readable by their owner alone."""
    usual = stat.S_IMODE((folder / CARD).stat().st_mode)  # made by open(), which asks the umask
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(usual)


def _drop_secrets(folder: Path, vocabulary: frozenset[str]) -> None:
    """Settings that came along with the base model may hold somebody's key; the package is made to be given away."""
    for file in folder.rglob("*config.json"):
        settings = json.loads(file.read_text())
        clean = _redacted("", settings, vocabulary)
        if clean != settings:
            file.write_text(json.dumps(clean, indent=2, ensure_ascii=False) + "\n")


def _redacted(key: str, value: Any, vocabulary: frozenset[str]) -> Any:
    """The value without secrets; what is a token of text is none, whatever its key is called."""
    if isinstance(value, dict):
        return {name: _redacted(name, entry, vocabulary) for name, entry in value.items()}
    if isinstance(value, list):
        return [_redacted(key, entry, vocabulary) for entry in value]
    return redact({key: value})[key] if isinstance(value, str) and value not in vocabulary else value


def _drop_paths(file: Path) -> None:
    """Remove what ties a tokenizer's settings to the machine that wrote them."""
    settings = json.loads(file.read_text())
    for key in ("name_or_path", "_name_or_path", "local_files_only"):
        settings.pop(key, None)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
