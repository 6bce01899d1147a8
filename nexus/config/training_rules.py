"""What adapter, optimizer, hardware and positions ask of each other and of the installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from nexus.errors import Problem

#: The optimizers that bitsandbytes computes.
BNB_OPTIMIZER = "nexus.methods.bnb_adamw.BnbAdamW"


def training_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Settings of a training run that cannot go together.

    Args:
        config: resolved, plain containers whose shape is right.

    Yields:
        Problems.
    """
    adapter, optimizer, hardware = config["adapter"], config["method"]["optimizer"], config["hardware"]
    uses = {"adapter": adapter["name"] == "qlora", "method.optimizer": optimizer["_target_"] == BNB_OPTIMIZER}
    if importlib.util.find_spec("bitsandbytes") is None:
        for key, wanted in uses.items():
            if wanted:
                without = "adapter=lora" if key == "adapter" else "optimizer=adamw"
                yield Problem(
                    "E-DEP-01",
                    key,
                    "this needs the package bitsandbytes, which is not installed",
                    f"pip install 'nexus-omni[qlora]', or {without}",
                )
    if adapter["name"] == "qlora" and adapter["init"] == "loftq" and config["base_model"]["path"] is None:
        yield Problem(
            "E-CFG-03",
            "adapter.init",
            "loftq fits what quantizing loses of trained weights, but the base starts from random ones",
            "adapter.init=default",
        )
    yield from _validation_problems(config)
    if hardware["accelerator"] != "cpu":
        return
    if uses["method.optimizer"] and optimizer["paged"]:
        yield paged_needs_gpu()
    if hardware["compile"]:
        yield compile_needs_gpu()


def _validation_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """`E-DAT-35`: own rows of which none is held out, and a held-out loss to measure while training."""
    data, validation = config["data"], (config.get("callbacks") or {}).get("validation") or {}
    own_alone = data["train"] and not any(entry["status"] == "ready" for entry in config["capabilities"].values())
    if validation.get("enabled") and own_alone and not data["validation"] and not data["validation_fraction"]:
        yield Problem(
            "E-DAT-35",
            "callbacks.validation.enabled",
            "the held-out loss is to be measured while training, but data.validation_fraction=0 holds no row out",
            "data.validation=FILE, data.validation_fraction=0.05, or callbacks.validation.enabled=false",
        )


def paged_needs_gpu() -> Problem:
    """`E-DEV-05`: pages move between the memory of a GPU and the host's."""
    return Problem(
        "E-DEV-05",
        "method.optimizer.paged",
        "pages move between the memory of a CUDA device and the host's, and this run has no CUDA device",
        "optimizer=adamw_8bit runs on the processor too",
    )


def compile_needs_gpu() -> Problem:
    """`E-DEV-06`: compiled layers are for GPUs."""
    return Problem(
        "E-DEV-06",
        "hardware.compile",
        "layers are compiled for CUDA devices only, and this run has none",
        "hardware.compile=false",
    )


def rope_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Positions that are scaled without a factor, or a factor that scales nothing.

    Args:
        config: resolved, plain containers whose shape is right.

    Yields:
        Problems.
    """
    rope = config["base_model"]["rope"]
    if rope["type"] is None and (rope["factor"] != 1 or rope["original_max_position_embeddings"] is not None):
        yield Problem(
            "E-CFG-03",
            "base_model.rope.type",
            "a factor or a length is given without it",
            "base_model.rope.type=yarn",
        )
    if rope["type"] is not None and rope["factor"] == 1:
        yield Problem(
            "E-CFG-03", "base_model.rope.factor", "= 1 scales nothing", "for example base_model.rope.factor=4"
        )
