"""What a run needs before any weight is read, checked in the order of cost. No torch, so errors come in seconds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nexus.config.capabilities import own_entry
from nexus.config.folders import data_file
from nexus.data.corpus import OWN_SOURCES, Corpus
from nexus.data.prompts import PromptCorpus
from nexus.data.template import check_template
from nexus.data.token_cache import TokenCache
from nexus.data.token_rows import AnyRow
from nexus.errors import NexusError
from nexus.hardware.memory_plan import MemoryPlan
from nexus.models.facts import StoredTensor, read_facts, resolve_model
from nexus.models.published import (
    model_tensors,
    published_config,
    published_facts,
    quantization,
    refuse_missing_reader,
)
from nexus.models.rope import scaled_length
from nexus.models.tokenizer import load_tokenizer
from nexus.rollout.environment import insist_on_results
from nexus.stages import cold_start, planning
from nexus.stages.held_out_prompts import held_out_prompts
from nexus.stages.row_lengths import lengths_of, longest_answer
from nexus.types import ModelFacts

#: Rows of each source that are tokenized for an estimate of the lengths.
SAMPLE_ROWS = 64


@dataclass(frozen=True)
class Prepared:
    """Everything about a run but the weights.

    Attributes:
        facts: of the base model.
        tensors: its headers.
        tokenizer: of the base model.
        corpus: its rows, not read yet.
        cold_start: rows of a supervised phase before reinforcement, read; None where there can be none.
    """

    facts: ModelFacts
    tensors: Mapping[str, StoredTensor]
    tokenizer: Any
    corpus: Corpus
    cold_start: Corpus | None = None


def prepare(config: dict[str, Any]) -> Prepared:
    """Look at the model's folder, load its tokenizer, and lay out the corpus.

    Args:
        config: checked and resolved, plain containers.

    Returns:
        Facts, tokenizer and corpus.

    Raises:
        NexusError: `E-MOD-*`, `E-TOK-*` or `E-LEN-03`.
    """
    facts = base_facts(config["base_model"])
    tensors = base_tensors(config["base_model"], facts)
    tokenizer = make_tokenizer(config, facts)
    limit, wanted = facts.max_position_embeddings, config["data"]["max_seq_len"]
    if wanted > limit:
        factor = math.ceil(wanted / limit * config["base_model"]["rope"]["factor"])
        raise NexusError(
            "E-LEN-03",
            f"data.max_seq_len={wanted} is beyond the {limit} positions that the model knows",
            where="data.max_seq_len",
            remedy=f"data.max_seq_len={limit}, or base_model.rope.type=yarn base_model.rope.factor={factor}",
        )
    refuse_other_tokenizer(config, tokenizer)
    if any(entry["environment"] for entry in config["capabilities"].values()):
        insist_on_results(tokenizer)
    return Prepared(facts, tensors, tokenizer, make_corpus(config, tokenizer))


def prepare_to_train(config: dict[str, Any]) -> Prepared:
    """As `prepare`, with the corpus read, and the memory plan checked before each step that takes long.

    Before anything is downloaded, what cannot fit with the shortest rows is refused; before the corpus is tokenized,
    what cannot fit with rows like its first ones; then the real lengths count.

    Args:
        config: checked and resolved, plain containers.

    Returns:
        Facts, tokenizer and corpus.

    Raises:
        NexusError: as `prepare`, `refuse_unloadable` and `Corpus.setup`; `E-MEM-01` for a run that does not fit.
    """
    base_model, limit = config["base_model"], planning.memory_limit(config)
    refuse_unloadable(base_model, config["adapter"])
    facts = base_facts(base_model)
    planning.refuse_hopeless(config, facts, base_tensors(base_model, facts))
    prepared = prepare(config)
    counts = planning.count_parameters(facts, config["adapter"], prepared.tensors)

    def check(rows: Sequence[AnyRow], num_rows: int) -> MemoryPlan:
        lengths = lengths_of(config, rows)
        plan = planning.memory_plan_of(config, facts, counts, lengths, num_rows=num_rows)
        planning.insist_on_fit(config, plan, prepared.tensors, limit_bytes=limit)
        return plan

    corpus = prepared.corpus

    def check_first_rows() -> None:
        sample = corpus.sample(SAMPLE_ROWS)
        check(sample.rows, sample.total_rows)

    corpus.setup("fit", before_reading=check_first_rows)
    if planning.is_validated(config):
        _insist_on_held_out(corpus)
    plan = check(corpus.rows, len(corpus.rows))
    planning.insist_on_room(config, planning.disk_plan_of(config, facts, counts, plan, corpus.num_steps))
    if config["evaluation"]["before"] or config["evaluation"]["after"]:
        held_out_prompts(config, prepared, tell=None)  # refuses what no answer fits behind, before the work
    if not cold_start.is_possible(config):
        return prepared
    first = make_corpus(cold_start.cold_start_config(config), prepared.tokenizer)
    first.setup("fit")
    return replace(prepared, cold_start=first)


def _insist_on_held_out(corpus: Corpus) -> None:
    """`E-DAT-35` if there is nothing that could be looked at while training."""
    if not corpus.held_out_rows:
        raise NexusError(
            "E-DAT-35",
            "the held-out loss is to be measured while training, but no row is held out",
            where="callbacks.validation.enabled",
            remedy="data.validation=FILE, data.validation_fraction=0.05 with at least two rows that differ, a source "
            "with roles=[train,eval], or callbacks.validation.enabled=false",
        )


def refuse_other_tokenizer(config: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse a reward model that would read other words in the policy's tokens.

    Args:
        config: checked and resolved.
        tokenizer: of the policy.

    Raises:
        NexusError: `E-TOK-11`.
    """
    path = config["method"].get("reward_model")
    if path is None:
        return
    own = load_tokenizer(
        path=path,
        revision=None,
        chat_template=None,
        trust_remote_code=False,
        vocab_rows=None,
        needs_chat_template=False,
    )
    if own.get_vocab() != tokenizer.get_vocab():
        raise NexusError(
            "E-TOK-11",
            f"the reward model's tokenizer has other tokens than the policy's ({len(own):,} and {len(tokenizer):,})",
            where=f"method.reward_model={path}",
            remedy="train the reward model from the base_model of this run, or from another with its tokenizer",
        )


def base_facts(base_model: dict[str, Any]) -> ModelFacts:
    """Facts of the base model as it will be loaded: counted without memory for an architecture (this imports torch),
    from the published config for a hub model that is known here, else from the folder's headers (a hub model is
    downloaded)."""
    if base_model["architecture"]:
        from nexus.models.loader import model_facts

        facts = model_facts(path=None, architecture=base_model["architecture"], revision=None)
    elif published_config(base_model["path"]) is not None:
        facts = published_facts(base_model["path"])
    else:
        facts = read_facts(resolve_model(base_model["path"], base_model["revision"]))
    return replace(facts, max_position_embeddings=scaled_length(facts, base_model["rope"]))


def base_tensors(base_model: dict[str, Any], facts: ModelFacts) -> Mapping[str, StoredTensor]:
    """Names and shapes of the base model's tensors.

    Args:
        base_model: settings of `conf/base_model`.
        facts: what `base_facts` made of them.

    Returns:
        Tensors by name.
    """
    if base_model["architecture"]:
        from nexus.models.loader import architecture_tensors

        return architecture_tensors(base_model["architecture"])
    return model_tensors(facts.path)


def refuse_unloadable(base_model: dict[str, Any], adapter: dict[str, Any]) -> None:
    """Refuse quantized weights that cannot be trained or read here, before they are downloaded.

    Args:
        base_model: settings of `conf/base_model`.
        adapter: settings of `conf/adapter`.

    Raises:
        NexusError: `E-MOD-16` without a fitting adapter, `E-DEP-03` if a package is missing that reads such weights.
    """
    method = quantization(base_model["path"])
    refuse_frozen_base(method, adapter)
    refuse_missing_reader(method, where="base_model.path")


def refuse_frozen_base(method: str | None, adapter: dict[str, Any]) -> None:
    """`E-MOD-16` if weights quantized by `method` are to be trained themselves, quantized again or taken apart."""
    wanted = {"none": "trained themselves", "qlora": "quantized again"}.get(adapter["name"])
    if "pissa" in adapter.get("init", ""):
        wanted = "taken apart for adapter.init=pissa"
    if method is not None and wanted is not None:
        raise NexusError(
            "E-MOD-16",
            f"the weights are quantized ({method}) and cannot be {wanted}",
            where="base_model.path",
            remedy="adapter=lora with adapter.init=default trains beside them; or choose the model's 16-bit version",
        )


def make_tokenizer(config: dict[str, Any], facts: ModelFacts) -> Any:
    """Tokenizer of the base model, with the chat template that the config names, if any; a foreign one is probed.

    Args:
        config: checked and resolved, plain containers.
        facts: of the base model.

    Returns:
        The tokenizer; what its template does wrong without harm is said on standard error.

    Raises:
        NexusError: `E-TOK-*`; `E-SEC-03` or `E-SEC-04` for a dangerous template.
    """
    base_model = config["base_model"]
    tokenizer = load_tokenizer(
        path=base_model["tokenizer"] or base_model["path"],
        revision=base_model["revision"],
        chat_template=base_model["chat_template"],
        trust_remote_code=base_model["trust_remote_code"],
        vocab_rows=facts.vocab_size,
        needs_chat_template=bool(config["capabilities"]),
    )
    for finding in check_template(tokenizer):
        if finding.part in ("user and assistant", *config["capabilities"]):
            raise NexusError(finding.code, finding.message, where="base_model.chat_template", remedy=finding.remedy)
        if finding.part != "tools":  # rows with tools are refused one by one
            print(f"{finding.code.replace('E', 'W', 1)}  {finding.message} -- {finding.remedy}", file=sys.stderr)
    return tokenizer


def make_corpus(config: dict[str, Any], tokenizer: Any) -> Corpus:
    """Corpus over the capabilities' sources or the user's own files."""
    data, method, hardware, scale = config["data"], config["method"], config["hardware"], config["scale"]
    sources = {name: capability["sources"] for name, capability in config["capabilities"].items()}
    common: dict[str, Any] = dict(
        sources={
            name: {source: _located(card, config) for source, card in cards.items()}
            for name, cards in (sources | ({OWN_SOURCES: data["sources"]} if data["sources"] else {})).items()
        },
        train=_files(data["train"], config),
        validation=_files(data["validation"], config),
        validation_fraction=data["validation_fraction"],
        view=method["view"],
        count_tokens=method["count_tokens"],
        max_seq_len=data["max_seq_len"],
        long_rows=data["long_rows"],
        packing=data["packing"],
        global_batch_size=data["global_batch_size"],
        micro_batch_size=hardware["micro_batch_size"],
        micro_batch_tokens=hardware["micro_batch_tokens"],
        shuffle=data["shuffle"],
        seed=config["seed"],
        epochs=method["epochs"],
        max_steps=method["max_steps"] or scale["max_steps"],
        rows_per_source=scale["rows_per_source"],
        eval_prompts=scale["eval_prompts"],
        max_bad_rows=data["max_bad_rows"],
        num_proc=data["num_proc"],
        cache=TokenCache(Path(config["paths"]["cache_dir"]) / "tokens") if data["cache"] else None,
        tokenizer=tokenizer,
        only_scored=() if own_entry(config) is None else set(sources) - {own_entry(config)},
        hold_out_capabilities=planning.is_validated(config),
    )
    if "rollout" not in method:
        return Corpus(**common)
    if method["epochs"] is not None:
        common["epochs"] = method["epochs"] * method["rollout"]["num_iterations"]  # each answer is used so often
    return PromptCorpus(answer_tokens=longest_answer(config), **common)


def make_prompts(config: dict[str, Any], tokenizer: Any, facts: ModelFacts) -> PromptCorpus:
    """Training prompts of the capabilities, to be answered outside of training (`mode=rejection_sampling`).

    Args:
        config: checked and resolved, plain containers of `conf/generate.yaml`.
        tokenizer: of the model.
        facts: of the model; a prompt that leaves no room for its answer in the context is left out and counted.

    Returns:
        The prompts, not read yet, in the order of their sources.
    """
    unused: dict[str, Any] = dict.fromkeys(
        ("train", "validation", "micro_batch_size", "micro_batch_tokens", "max_steps", "eval_prompts", "num_proc",
         "cache")
    )  # fmt: skip
    return PromptCorpus(
        **unused,
        sources={
            name: {source: _located(card, config) for source, card in entry["sources"].items()}
            for name, entry in config["capabilities"].items()
        },
        answer_tokens=config["max_new_tokens"] or longest_answer(config),
        validation_fraction=0.0,
        view="prompts",
        count_tokens="completion",
        max_seq_len=facts.max_position_embeddings,
        long_rows="drop",
        packing=False,
        global_batch_size=1,
        shuffle=False,
        seed=config["seed"],
        epochs=1,
        rows_per_source=config["mode"]["prompts"],
        max_bad_rows=0,
        tokenizer=tokenizer,
    )


def _located(card: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A card whose files, or whose copy of a repository, are looked for under `paths.data_dir` too."""
    if card["path"] is None:
        return card
    paths = _files(card["path"], config)
    return card | {"path": paths[0] if isinstance(card["path"], str) else paths}


def _files(given: str | list[str] | None, config: dict[str, Any]) -> list[str]:
    """Data files as they lie on the disk."""
    names = [given] if isinstance(given, str) else given or []
    return [str(data_file(name, config["paths"]["data_dir"])) for name in names]
