"""Secrets never reach a saved file: they are found by the name of their key and by their own shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"

#: Names that hold a secret when they are the last words of a key.
_SECRET_NAMES = re.compile(
    r"(?:^|_)(?:token|secret|password|passwd|passphrase|credentials?|api_?key|access_?key(?:_id)?|secret_?key"
    r"|private_?key|auth|authorization)$"
)

#: Tokens of text, not of access.
_TEXT_TOKENS = re.compile(
    r"^(?:\w+_)?(?:pad|eos|bos|unk|sep|cls|mask|image|audio|video|special|think|stop|start|end|first|last|next|per"
    r"|boi|eoi|boa|eoa)_token$"
)

#: Shapes of secrets in running text; the first group, where there is one, stays.
_SECRET_SHAPES = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:gh[opsru]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,})"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(\bBearer\s+)[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(
        r"((?:^|[\s\"',{?&+])[\w.]*(?:token|secret|password|api_?key|access_?key)\"?'?\s*[=:]\s*[\"']?)"
        r"(?!\$\{|null\b|none\b|true\b|false\b|<redacted>)[A-Za-z0-9_/+.=-]{12,}",
        re.IGNORECASE,
    ),
)

_INTERPOLATION = re.compile(r"^\$\{[^}]*\}$")


def is_secret_key(key: str) -> bool:
    """True if a value under this key is a secret.

    Args:
        key: one name or a dotted path; only the last name counts.

    Returns:
        True for `hf_token`, `wandb.api_key`, `password`; False for `pad_token`, `max_new_tokens`, `tokenizer`.
    """
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rsplit(".", 1)[-1]).lower().replace("-", "_")
    return bool(_SECRET_NAMES.search(name)) and not _TEXT_TOKENS.search(name)


def redact_text(text: str) -> str:
    """Replace whatever has the shape of a secret.

    Args:
        text: a log line, a command line, a card.

    Returns:
        The text with `<redacted>` in place of each secret.
    """
    for shape in _SECRET_SHAPES:
        text = shape.sub(lambda match: (match.group(1) if match.re.groups else "") + REDACTED, text)
    return text


def redact(value: Any) -> Any:
    """Copy plain containers without their secrets.

    Args:
        value: dictionaries, lists, tuples, strings, numbers, at any depth.

    Returns:
        The same shape; a value under a secret key is `<redacted>` unless it is empty, a switch, or an interpolation
        such as `${oc.env:HF_TOKEN}`, which reveals nothing; secrets inside other strings are replaced in place.
    """
    if isinstance(value, Mapping):
        return {key: _redact_entry(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [redact(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(redact(entry) for entry in value)
    if isinstance(value, str):
        return redact_text(value)
    return value


def _redact_entry(key: str, entry: Any) -> Any:
    if not is_secret_key(key) or entry is None or entry == "" or isinstance(entry, bool):
        return redact(entry)
    if isinstance(entry, str) and _INTERPOLATION.match(entry):
        return entry
    if isinstance(entry, Mapping):  # a group that happens to be called `auth`: look inside
        return redact(entry)
    return REDACTED
