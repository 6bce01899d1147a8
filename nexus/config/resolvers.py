"""Resolvers that the YAML names; importing this module registers them."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf


def recommended_lr(
    full: float, adapter: float, adapter_name: str, quantized: float | None = None, share: float = 1.0
) -> float:
    """`${nexus.lr:...}`: the base model's recommended rate for what is trained, or a method's share of it.

    Args:
        full: rate when every weight is trained.
        adapter: rate when an adapter is trained.
        adapter_name: `adapter.name`.
        quantized: rate of an adapter on 4-bit weights.
        share: rate of a method that takes other steps than imitation does, divided by that of imitation.

    Returns:
        One of them, times the share.
    """
    rate = full if adapter_name == "none" else adapter
    if adapter_name == "qlora" and quantized is not None:
        rate = quantized
    return rate if share == 1.0 else float(f"{rate * share:.6g}")  # 5e-07, not 5.000000000000001e-07


def first_given(*values: Any) -> Any:
    """`${nexus.given:...}`: the first of the values that is not null."""
    return next((value for value in values if value is not None), None)


# replace: a second import under another name, as tests do, must not fail.
OmegaConf.register_new_resolver("nexus.lr", recommended_lr, replace=True)
OmegaConf.register_new_resolver("nexus.given", first_given, replace=True)
