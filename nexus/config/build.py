"""Turns nodes with a `_target_` into objects: the only caller of `hydra.utils.instantiate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus.config.targets import refused_targets
from nexus.errors import ConfigError, NexusError


def instantiate_node(node: Mapping[str, Any], **kwargs: Any) -> Any:
    """Make one object.

    Args:
        node: resolved mapping with `_target_`; with `_partial_: true` the result still takes arguments.
        **kwargs: what only the run knows; it reaches the constructor as it is and wins over the node.

    Returns:
        The object.

    Raises:
        ConfigError: `E-SEC-06` if a class in the node is not on the allow-list.
        NexusError: what the constructor raises, or `E-CFG-02` for a value that it refuses.
    """
    refused = refused_targets(dict(node))
    if refused:
        raise ConfigError(refused)
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    # Made in two steps: what the run gives never passes through OmegaConf, which would copy and interpolate it.
    try:
        factory = instantiate({**node, "_partial_": True}, _convert_="all")
        if node.get("_partial_", False) is True and not kwargs:
            return factory
        return factory(**kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, NexusError):
            raise cause from error
        if isinstance(cause, ValueError):
            raise _refused(node, cause) from error
        raise
    except ValueError as error:
        raise _refused(node, error) from error


def _refused(node: Mapping[str, Any], error: Exception) -> NexusError:
    return NexusError("E-CFG-02", str(error), where=str(node["_target_"]), remedy="mend the settings of this class")
