"""Random models of the benchmarks, and random rows: speed does not depend on what was learned."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.common import ASSET

#: Qwen2 layouts: 33 thousand, 10.0 M, 75.7 M, 494 M and 1.54 B parameters with a tied head, 7.62 B without.
SHAPES: dict[str, dict[str, int]] = {
    "atom": dict(vocab_size=4096, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=1, num_key_value_heads=1),
    "8k": dict(vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=8,
               num_attention_heads=4, num_key_value_heads=2),
    "152k": dict(vocab_size=151_936, hidden_size=384, intermediate_size=1536, num_hidden_layers=8,
                 num_attention_heads=6, num_key_value_heads=2),
    "0.5b": dict(vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                 num_attention_heads=14, num_key_value_heads=2),
    "1.5b": dict(vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                 num_attention_heads=12, num_key_value_heads=2),
    "7b": dict(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
               num_attention_heads=28, num_key_value_heads=4),
}  # fmt: skip

#: What is trained, by adapter.
WEIGHTS = {"none": "float32, all weights trained", "lora": "LoRA on bf16", "qlora": "LoRA on nf4"}


def load_tokenizer() -> Any:
    """The shipped tokenizer."""
    from nexus.models import tokenizer

    return tokenizer.load_tokenizer(
        path="asset:nexus_tiny",
        revision=None,
        chat_template=None,
        trust_remote_code=False,
        vocab_rows=None,
        needs_chat_template=True,
    )


def make_model(folder: Path, shape: str | None) -> None:
    """Write random weights and the shipped tokenizer, whose tokens are the first of the vocabulary.

    Args:
        folder: to write to.
        shape: one of `SHAPES`; None for the shipped architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(ASSET)
    tokenizer.save_pretrained(folder)
    if shape is None:
        config = AutoConfig.from_pretrained(ASSET)
    else:
        config = Qwen2Config(
            **SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=shape != "7b", bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    torch.manual_seed(0)
    # the largest is never trained whole, and takes 15 instead of 30 GB of disk
    dtype = torch.bfloat16 if shape == "7b" else torch.float32
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


def load_network(model: Path, settings: dict[str, Any], device: str, *, with_adapter: bool) -> Any:
    """The model through transformers and PEFT, with the weights' formats that Nexus gives them.

    Args:
        model: its folder.
        settings: of the Nexus run: which adapter, and its numbers.
        device: `cpu` or `cuda`.
        with_adapter: False leaves it to the caller to put the adapter on.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = settings["adapter"]["name"]
    half = kind != "none" and device == "cuda"
    quantized = {}
    if kind == "qlora":
        quantized["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings["adapter"]["quant_type"],
            bnb_4bit_use_double_quant=settings["adapter"]["double_quant"],
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if half else torch.float32, **quantized)
    network = network.to(device).train()
    if kind == "none" or not with_adapter:
        return network
    from peft import get_peft_model

    return get_peft_model(network, peft_config(settings))


def peft_config(settings: dict[str, Any]) -> Any:
    """PEFT's settings of a Nexus run's adapter; None without one."""
    adapter = settings["adapter"]
    if adapter["name"] == "none":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=adapter["r"],
        lora_alpha=adapter["alpha"],
        lora_dropout=adapter["dropout"],
        target_modules=adapter["target_modules"],
        use_rslora=adapter["use_rslora"],
        task_type="CAUSAL_LM",
    )


def make_pairs(count: int, vocabulary: int) -> list[Any]:
    """Pairs of random tokens with log-normal lengths: about 200 tokens of prompt, 120 of each answer.

    Args:
        count: pairs.
        vocabulary: tokens to draw from.

    Returns:
        `TokenizedGroup`s, the same at every call.
    """
    from nexus.types import TokenizedGroup

    source = random.Random(20261)

    def tokens(typical: int) -> list[int]:
        length = round(typical * math.exp(source.gauss(0.0, 0.5)))
        return [source.randrange(16, vocabulary) for _ in range(min(max(length, 16), 500))]

    pairs = []
    for index in range(count):
        prompt, answers = tokens(180), (tokens(110), tokens(110))
        masks = tuple([True] * len(answer) for answer in answers)
        pairs.append(TokenizedGroup(f"pair:{index}", "pairs", prompt, answers, masks))
    return pairs


def make_prompts(count: int, vocabulary: int, lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of random tokens.

    Args:
        count: prompts.
        vocabulary: tokens to draw from.
        lengths: shortest and longest.

    Returns:
        Token ids, the same at every call.
    """
    source = random.Random(20262)
    shortest, longest = lengths
    return [[source.randrange(16, vocabulary) for _ in range(source.randint(shortest, longest))] for _ in range(count)]
