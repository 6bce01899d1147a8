"""Secrets never reach a saved file, a logger or a message.

They are found by the name of their key, by their own shape, and as values of environment variables with such names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
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

#: Shorter values of environment variables are words (`basic`, `none`), which may stand anywhere by chance.
_SHORTEST_VALUE = 8

_INTERPOLATION = re.compile(r"^\$\{[^}]*\}$")


@lru_cache(maxsize=4096)
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
    """Replace whatever has the shape of a secret, and the values of environment variables that hold one.

    Args:
        text: a log line, a command line, a card.

    Returns:
        The text with `<redacted>` in place of each secret.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, REDACTED)
    for shape in _SECRET_SHAPES:
        text = shape.sub(lambda match: (match.group(1) if match.re.groups else "") + REDACTED, text)
    return text


def _environment_secrets() -> list[str]:
    """Values of variables such as `HF_TOKEN` and `WANDB_API_KEY`, longest first, since one may contain another."""
    found = {value for name, value in os.environ.items() if len(value) >= _SHORTEST_VALUE and is_secret_key(name)}
    return sorted(found, key=len, reverse=True)


def redact_message(text: str, words: Sequence[str]) -> str:
    """As `redact_text`, and without the secrets that stand in a command line that the text may repeat.

    Args:
        text: a message about the command line.
        words: the command line; `token=VALUE`, `--token=VALUE` and `--token VALUE` hold secrets whatever their shape.

    Returns:
        The text with `<redacted>` in place of each secret.
    """
    for secret in sorted(_given_secrets(words), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return redact_text(text)


def _given_secrets(words: Sequence[str]) -> Iterator[str]:
    for word, following in zip(words, [*words, ""][1:], strict=True):
        key, equals, value = word.partition("=")
        if not is_secret_key(key.lstrip("-+~")):
            continue
        given = value if equals else following if word.startswith("-") else ""
        # an interpolation reveals nothing; three letters are no secret, and taking them out would spoil every word
        if len(given) > 3 and not given.startswith("${"):
            yield given


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
