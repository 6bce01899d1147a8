"""Loading a tokenizer without loading torch.

Signature:
    load_tokenizer(path=, revision=, chat_template=, trust_remote_code=, vocab_rows=, needs_chat_template=)
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nexus.errors import NexusError
from nexus.models.facts import read_json, refuse_remote_code, resolve_model

log = logging.getLogger(__name__)


def load_tokenizer(
    *,
    path: str,
    revision: str | None,
    chat_template: str | None,
    trust_remote_code: bool,
    vocab_rows: int | None,
    needs_chat_template: bool,
) -> Any:
    """Load a fast tokenizer and check what training and chatting need.

    Args:
        path: `asset:NAME`, a folder, or a hub id.
        revision: of a hub id.
        chat_template: the template itself or a file that holds it, in place of the tokenizer's own; None keeps that.
        trust_remote_code: True allows a tokenizer class from the folder (this path imports torch).
        vocab_rows: rows of the model's input embedding, to compare with; None skips the comparison.
        needs_chat_template: True if messages will be rendered (False for raw text).

    Returns:
        A `PreTrainedTokenizerFast` with a pad token; where it had none, the end-of-sequence token serves.

    Raises:
        NexusError: `E-TOK-01` no tokenizer, `E-TOK-02` more tokens than embedding rows, `E-TOK-04` no end-of-sequence
            token, `E-TOK-05` no chat template, `E-SEC-02` remote code.
    """
    folder = resolve_model(path, revision)
    if not (folder / "tokenizer.json").is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise NexusError(
            "E-TOK-01",
            "the folder has no tokenizer.json",
            where=str(folder),
            status=66,
            remedy=f"it holds: {found}; set base_model.tokenizer to a folder that has one",
        )
    read_json(folder / "tokenizer.json", code="E-TOK-01")
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        refuse_remote_code(
            read_json(settings, code="E-TOK-01"), trust_remote_code=trust_remote_code, where=str(settings)
        )
    tokenizer = _open(folder, trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    if needs_chat_template and not tokenizer.chat_template:
        raise NexusError(
            "E-TOK-05",
            "the tokenizer has no chat template, so messages cannot be rendered",
            where=str(folder),
            remedy="set base_model.chat_template to a Jinja template or a file",
        )
    if tokenizer.eos_token_id is None:
        raise NexusError(
            "E-TOK-04",
            "the tokenizer has no end-of-sequence token, so no answer would ever end",
            where=str(settings),
            remedy="set eos_token in tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        log.warning("W-TOK-03  %s has no pad token; %s is used (padding is masked)", folder, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    if vocab_rows is not None:
        token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if largest >= vocab_rows:
            raise NexusError(
                "E-TOK-02",
                f"token {token!r} has id {largest}, but the embedding has {vocab_rows} rows",
                where=str(folder),
                remedy="use the tokenizer that belongs to the model",
            )
    return tokenizer


def _open(folder: Path, trust_remote_code: bool) -> Any:
    # AutoTokenizer imports torch and adds 4 s; the class behind tokenizer.json does not
    if trust_remote_code:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise NexusError(
            "E-TOK-01", f"the tokenizer cannot be opened: {error}", where=str(folder), remedy="download it again"
        ) from error


def _template_text(template: str) -> str:
    if "{" in template:
        return template
    file = Path(template).expanduser()
    if not file.is_file():
        raise NexusError(
            "E-TOK-05",
            f"no chat template file {template}",
            where="base_model.chat_template",
            remedy="give an existing file or the template itself",
        )
    return file.read_text(encoding="utf-8")
