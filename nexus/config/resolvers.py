"""Resolvers that the YAML names; importing this module registers them."""

from __future__ import annotations

from omegaconf import OmegaConf


def recommended_lr(full: float, adapter: float, adapter_name: str) -> float:
    """`${nexus.lr:...}`: the base model's recommended rate for what is trained.

    Args:
        full: rate when every weight is trained.
        adapter: rate when an adapter is trained.
        adapter_name: `adapter.name`.

    Returns:
        One of the two.
    """
    return full if adapter_name == "none" else adapter


# replace: a second import under another name, as tests do, must not fail.
OmegaConf.register_new_resolver("nexus.lr", recommended_lr, replace=True)
