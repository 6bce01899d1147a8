"""Rejection sampling: several answers to every prompt, scored by the capability's rewards, the best kept as rows.

What is written trains as any own file does (`data.train=FOLDER/sft.jsonl`): answers that earned enough, and pairs of
the best answer and a clearly worse one. Every row carries its gold answer and where it comes from. An answer depends on
the model, its prompt and (seed, prompt, sample) alone, so that the same command writes the same rows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nexus.data.formats import to_example
from nexus.data.progress import track
from nexus.errors import NexusError
from nexus.hardware.processor import use_processor
from nexus.rewards.registry import build_rewards
from nexus.rollout.collect import REWARD, Collector, Task, Visit, sample_seed
from nexus.rollout.engines import make_engine
from nexus.stages import assemble
from nexus.stages.prepare import base_facts, make_prompts, make_tokenizer
from nexus.stages.tables import open_console
from nexus.storage.atomic import atomic_folder, write_json, write_text
from nexus.storage.manifest import MANIFEST_NAME, folder_sha256, read_manifest
from nexus.storage.run_folder import run_name
from nexus.types import Example, ModelFacts, TokenizedGroup, TokenizedPrompt

#: Share of the weights' sum that rounding may take from a reward.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Answer:
    """One sampled answer with what it earned.

    Attributes:
        sample: index within its group.
        text: as decoded, without the stop token.
        reward: the weighted sum.
        rewards: what each function gave.
    """

    sample: int
    text: str
    reward: float
    rewards: dict[str, float]


def rejection_sampling(config: dict[str, Any]) -> Path:
    """Sample, score, keep, write.

    Args:
        config: checked and resolved, plain containers of `conf/generate.yaml`.

    Returns:
        The folder that was written: `sft.jsonl`, `preference.jsonl` if there are pairs, `summary.json`.

    Raises:
        NexusError: of model, prompts or rewards; `E-RL-06` if no answer is good enough; `E-OUT-04` if the folder is
            there already.
    """
    use_processor(config["hardware"]["threads"])
    console, mode = open_console(), config["mode"]
    target = _target(config)
    facts = base_facts(config["base_model"])
    tokenizer = make_tokenizer(config, facts)
    corpus = make_prompts(config, tokenizer, facts)
    corpus.setup("fit")
    tasks = _tasks(config)
    collector = Collector(
        tasks=tasks,
        tokenizer=tokenizer,
        engine=make_engine("native"),
        num_generations=mode["num_generations"],
        temperature=config["temperature"],
        top_p=mode["top_p"],
        batch_size=mode["batch_size"],
        seed=config["seed"],
        autocast=None,
    )
    origin = _origin(config, facts)
    model = assemble.load_for_inference(config)
    counts: Counter[str] = Counter()
    best = -math.inf
    sft: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for prompt, group in _groups(collector, model, corpus.rows, mode):
        answers, finished = _answers(group, tokenizer)
        counts.update(prompts=1, answers=len(answers), unfinished=len(answers) - len(finished))
        scale = sum(reward.weight for reward in tasks[prompt.source].rewards.functions)
        best = max([best, *(answer.reward / scale for answer in finished)])
        kept, rejected = choose(finished, mode, scale)
        rows = [_sft_row(prompt, answer, origin) for answer in kept]
        readable = [row for row in rows if _is_readable(row, "sft")]
        counts.update(kept=len(readable), unreadable=len(rows) - len(readable), without=not readable)
        sft += readable
        if kept and rejected is not None:
            pair = _pair_row(prompt, kept[0], rejected, origin)
            usable = _is_readable(pair, "preference")
            pairs += [pair] if usable else []
            counts.update(pairs=usable, unreadable_pairs=not usable)
    counts["prompts_too_long"] = corpus.counts.dropped.get("too_long", 0)
    for line in _described(counts):
        console.print(line, highlight=False, soft_wrap=True)
    if not sft:
        raise _nothing_kept(counts, best, mode)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target, replace=False) as folder:
        write_text(folder / "sft.jsonl", _lines(sft))
        if pairs:
            write_text(folder / "preference.jsonl", _lines(pairs))
        settings = {key: config[key] for key in ("mode", "temperature", "seed")}
        write_json(folder / "summary.json", {"counts": dict(counts), "origin": origin, "settings": settings})
    console.print(f"sft         {target / 'sft.jsonl'}", highlight=False, soft_wrap=True)
    where = target / "preference.jsonl" if pairs else "none: no prompt has a kept answer and a clearly worse one"
    console.print(f"preference  {where}", highlight=False, soft_wrap=True)
    return target


def choose(answers: Sequence[Answer], mode: Mapping[str, Any], scale: float) -> tuple[list[Answer], Answer | None]:
    """The best answers of a prompt, and one to prefer them to.

    Args:
        answers: finished ones, in the order of their samples.
        mode: `threshold`, `keep` and `margin`; the first and the last are shares of `scale`.
        scale: sum of the rewards' weights.

    Returns:
        At most `keep` different answers that earned at least the threshold, the best first, of equal ones the earlier
        sample; and the worst answer, if it is worse than the best by at least the margin, or None.
    """
    different: dict[str, Answer] = {}
    for answer in answers:
        different.setdefault(answer.text, answer)
    ordered = sorted(different.values(), key=lambda answer: (-answer.reward, answer.sample))
    slack = _ROUNDING * scale
    kept = [answer for answer in ordered if answer.reward >= mode["threshold"] * scale - slack][: mode["keep"]]
    if not kept:
        return [], None
    worst = min(ordered, key=lambda answer: (answer.reward, answer.sample))
    return kept, worst if kept[0].reward - worst.reward >= mode["margin"] * scale - slack else None


def _target(config: Mapping[str, Any]) -> Path:
    """The folder to be written, which must not be there."""
    if config["output"] is not None:
        target = Path(config["output"])
    else:
        name = run_name(capabilities=list(config["capabilities"]), method=config["mode"]["name"], when=datetime.now())
        target = Path(config["paths"]["output_dir"]) / name
    if target.exists():
        raise NexusError("E-OUT-04", "the folder exists already", where=str(target), remedy="name another one")
    return target


def _tasks(config: Mapping[str, Any]) -> dict[str, Task]:
    """What is asked of the prompts of each source."""
    return {
        card["name"]: Task(build_rewards(entry["rewards"]), config["max_new_tokens"] or entry["max_new_tokens"])
        for entry in config["capabilities"].values()
        for card in entry["sources"].values()
        if "train" in card["roles"]
    }


def _origin(config: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Which weights answered, and how: the part of the provenance that all rows share."""
    sha256 = None
    if facts.path:  # an architecture that starts from random weights has none
        folder = Path(facts.path)
        packed = (folder / MANIFEST_NAME).exists()
        sha256 = read_manifest(folder)["sha256"] if packed else folder_sha256(folder, exclude=())
    return {
        "model": config["base_model"]["name"],
        "sha256": sha256,
        "seed": config["seed"],
        "temperature": config["temperature"],
        "top_p": config["mode"]["top_p"],
    }


def _groups(
    collector: Collector, model: Any, prompts: Sequence[TokenizedPrompt], mode: Mapping[str, Any]
) -> Iterator[tuple[TokenizedPrompt, TokenizedGroup]]:
    """Every prompt with its rewarded answers, as many at a time as fill a batch."""
    each = max(1, mode["batch_size"] // mode["num_generations"])
    chunks = [prompts[start : start + each] for start in range(0, len(prompts), each)]
    for chunk in track(chunks, "sampling", total=len(prompts), sizes=[len(chunk) for chunk in chunks]):
        yield from zip(chunk, collector.collect(model, [Visit(prompt, 0) for prompt in chunk]), strict=True)


def _answers(group: TokenizedGroup, tokenizer: Any) -> tuple[list[Answer], list[Answer]]:
    """All answers of a group, and those that came to an end."""
    found, finished = [], []
    for sample, ids in enumerate(group.completions):
        ended = bool(group.values["finished"][sample])
        rewards = {
            name.removeprefix(f"{REWARD}/"): values[sample]
            for name, values in group.values.items()
            if name.startswith(f"{REWARD}/") and not math.isnan(values[sample])
        }
        text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        found.append(Answer(sample, text, group.values[REWARD][sample], rewards))
        finished += found[-1:] if ended else []
    return found, finished


def _sft_row(prompt: TokenizedPrompt, answer: Answer, origin: Mapping[str, Any]) -> dict[str, Any]:
    messages = [*prompt.example.messages, {"role": "assistant", "content": answer.text}]
    row = {"id": f"{prompt.id}#{answer.sample}", "messages": messages}
    return row | _carried(prompt.example) | {"provenance": _provenance(prompt, answer, origin)}


def _pair_row(prompt: TokenizedPrompt, chosen: Answer, rejected: Answer, origin: Mapping[str, Any]) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "id": f"{prompt.id}#{chosen.sample}-{rejected.sample}",
        "prompt": list(prompt.example.messages),
        **{name: [{"role": "assistant", "content": answer.text}] for name, answer in sides.items()},
        **_carried(prompt.example),
        "provenance": {name: _provenance(prompt, answer, origin) for name, answer in sides.items()},
    }


def _carried(example: Example) -> dict[str, Any]:
    """What travels with a row: its tools, if any, and its gold answer."""
    return ({"tools": list(example.tools)} if example.tools else {}) | {"gold": example.gold}


def _provenance(prompt: TokenizedPrompt, answer: Answer, origin: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **origin,
        "prompt_id": prompt.id,
        "source": prompt.source,
        "sample": answer.sample,
        "sample_seed": sample_seed(seed=origin["seed"], visit=Visit(prompt, 0), sample=answer.sample),
        "reward": answer.reward,
        "rewards": answer.rewards,
    }


def _is_readable(row: dict[str, Any], view: str) -> bool:
    """Whether training would read the row; a sampled answer may hold a call that cannot be parsed."""
    try:
        to_example(row, place=row["id"], source="rejection_sampling", view=view, fields={})
    except NexusError:
        return False  # counted and told
    return True


def _described(counts: Mapping[str, int]) -> list[str]:
    lines = [
        f"{counts['prompts']:,} prompts, {counts['answers']:,} answers ({counts['unfinished']:,} came to no end), "
        f"{counts['kept']:,} kept, {counts['pairs']:,} pairs; {counts['without']:,} prompts with nothing kept"
    ]
    if counts["prompts_too_long"]:
        lines.append(f"left out: {counts['prompts_too_long']:,} prompts that leave no room for an answer")
    if counts["unreadable"] or counts["unreadable_pairs"]:
        lines.append(
            f"left out since training could not read them: {counts['unreadable']:,} answers, "
            f"{counts['unreadable_pairs']:,} pairs"
        )
    return lines


def _nothing_kept(counts: Mapping[str, int], best: float, mode: Mapping[str, Any]) -> NexusError:
    found = f"the best earned {best:.3f} of the weights' sum" if math.isfinite(best) else "none came to its end"
    return NexusError(
        "E-RL-06",
        f"none of {counts['answers']} answers to {counts['prompts']} prompts is kept: {found}, "
        f"mode.threshold={mode['threshold']}",
        where="mode.threshold",
        remedy="lower mode.threshold, sample more with mode.num_generations, or train the capability first: "
        "python -m nexus.train +capability=NAME, then package=outputs/RUN/package",
    )


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
