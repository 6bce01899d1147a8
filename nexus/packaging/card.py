"""The model card of a package: what it is, how it was made, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(
    *,
    name: str,
    base_name: str,
    capabilities: list[str],
    method: str,
    adapter: str,
    scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]],
    train: Mapping[str, Any],
    sources: Mapping[str, str],
    data_sha256: str,
    recipe: Mapping[str, Any],
    max_logit_difference: float,
    quantization: str | None,
    is_reward_model: bool = False,
    validation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        name: title of the card.
        base_name: name of the base model.
        capabilities: what was trained; empty for own data.
        method: name of the method.
        adapter: name of the adapter, `none` for full fine-tuning.
        scores: `before` and `after`, then group, then metric, then `value`, `n` and `ci95`.
        train: the report's `train` section.
        sources: licence by data source.
        data_sha256: hash of the training tokens.
        recipe: further settings that decide about the result, by name.
        max_logit_difference: largest difference of the logits of this folder from those of the model as it was
            trained, on the probe tokens.
        quantization: the 4-bit type that the base was trained in; None for a base as it is stored.
        is_reward_model: whether the folder judges answers instead of writing them.
        validation: the report's section of that name; None if nothing was measured while training.

    Returns:
        The card's text.
    """
    return f"""---
library_name: transformers
base_model: {base_name}
pipeline_tag: {"text-classification" if is_reward_model else "text-generation"}
tags: [nexus, {method}{"".join(f", {capability}" for capability in capabilities)}]
---

# {name}

`{base_name}`, trained with method `{method}` and adapter `{adapter}` for {train["global_step"]} optimizer steps on
{train["tokens"]:,} tokens (seed {train["seed"]}).{_chosen_step(validation, train["global_step"])}

| group | metric | before | after | n |
|---|---|---|---|---|
{_table(scores)}

Values stand with their 95 % confidence intervals; they were measured on held-out data by the run that made this
package.

## Recipe

{_lines(recipe)}

{_packaging(adapter, max_logit_difference, quantization, "reward" if is_reward_model else "logit")}

The hashes of all files stand in `manifest.json`.

## Data

{_lines(dict(sorted(sources.items())))}

SHA-256 of the training tokens: `{data_sha256}`

## Use

{_usage("AutoModelForSequenceClassification" if is_reward_model else "AutoModelForCausalLM")}
"""


def _usage(auto_class: str) -> str:
    """How the folder is loaded."""
    return f"""```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""


def _chosen_step(validation: Mapping[str, Any] | None, last_step: int) -> str:
    """Which step's weights these are, if not the last one's."""
    if validation is None or validation["weights_of_step"] == last_step:
        return ""
    return (
        f"\nThe weights are those of step {validation['weights_of_step']}, which had the least loss on held-out rows; "
        "since they were\nchosen by it, that loss is a little lower than on rows that chose nothing."
    )


def _table(scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    """One line a metric, before and after."""
    rows = []
    for group, metrics in scores["after"].items():
        for metric, after in metrics.items():
            before = scores["before"].get(group, {}).get(metric)
            rows.append(f"| {group} | {metric} | {_cell(before)} | {_cell(after)} | {after['n']} |")
    return "\n".join(rows)


def _lines(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _packaging(adapter: str, difference: float, quantization: str | None, output: str) -> str:
    """What was merged into what, and how far the result is from the model that was trained."""
    text = f"The weights here do as the trained model did: the largest difference of a {output} is {difference:.2g}."
    if adapter == "none":
        return text
    if quantization is None:
        return f"{text} The adapter is merged into them; by itself it lies in `adapter/` and fits the base model."
    return (
        f"{text} The base was frozen in 4 bits ({quantization}); here its numbers are written out and the adapter is "
        f"merged into them. The adapter in `adapter/` fits the base in {quantization}, as it was trained."
    )


def _cell(score: Mapping[str, Any] | None) -> str:
    """`0.912 [0.880, 0.937]`, `1.234 (one row, no interval)`, or a dash if it was not measured."""
    if score is None:
        return "-"
    if score["ci95"] is None:
        return f"{score['value']:.3f} (one row, no interval)"
    low, high = score["ci95"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"
