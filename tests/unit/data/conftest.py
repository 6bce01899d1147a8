"""The shipped tokenizer, and a Qwen-like template that does not mark the assistant's tokens."""

import copy
from pathlib import Path
from typing import Any

import pytest

import nexus

ASSETS = Path(nexus.__path__[0]) / "assets"

QWEN3_LIKE = (
    "{%- if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Tokenizer of `nexus_tiny`; its template has `{% generation %}`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "nexus_tiny")


@pytest.fixture
def tokenizer(tiny_tokenizer: Any) -> Any:
    """A copy that a test may change."""
    return copy.deepcopy(tiny_tokenizer)


@pytest.fixture
def qwen_tokenizer(tokenizer: Any) -> Any:
    """The same tokens under a template without `{% generation %}`, which adds a think block to the last turn alone."""
    tokenizer.chat_template = QWEN3_LIKE
    return tokenizer
