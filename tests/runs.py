"""Runs of every method, so small that a step takes moments; tests of resuming and of faults share them.

Everything that draws random numbers is switched on: adapters have dropout, embeddings have NEFTune's noise, answers are
sampled. A step has two micro-batches.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file, save_file

from nexus.callbacks.checkpoint import newest_whole
from nexus.data.corpus import Corpus
from nexus.data.module import NexusDataModule
from nexus.methods.dpo import DPO
from nexus.methods.kto import KTO
from nexus.methods.orpo import ORPO
from nexus.methods.sft import SFT
from nexus.methods.simpo import SimPO
from nexus.storage.atomic import atomic_path
from tests import rollouts, small

DROPOUT = {"dropout": 0.2}
LORA, DORA, QLORA = ({**adapter, **DROPOUT} for adapter in (small.LORA, small.DORA, small.QLORA))
SFT_LIKE = {
    "sft": (SFT, small.NO_ADAPTER, {}),
    "cpt": (SFT, small.NO_ADAPTER, {"count_tokens": "all"}),
    "lora": (SFT, LORA, {}),
    "qlora": (SFT, QLORA, {}),
    "dora": (SFT, DORA, {}),
}
PREFERENCE = {
    "dpo": (
        DPO,
        {"form": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, "length_normalized": False, "sft_weight": 0.0},
    ),
    "orpo": (ORPO, {"beta": 0.1}),
    "simpo": (SimPO, {"beta": 2.0, "gamma": 1.0}),
    "kto": (KTO, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
}
ROLLOUTS = {"grpo": rollouts.GRPO, "ppo": rollouts.PPO}
#: One layer of the small model, for runs that are begun hundreds of times.
ONE_LAYER = {**small.ARCHITECTURE, "num_hidden_layers": 1}


@functools.cache
def _rows(count: int, count_tokens: str) -> Corpus:
    """Rows of the embedded tools generator, read once; an epoch over them is `count // 4` steps."""
    card = small.make_corpus(small.make_tokenizer(), setup=False).sources["tools"]["embedded"]
    sources = {"tools": {"embedded": {**card, "rows": count}}}
    return small.make_corpus(
        small.make_tokenizer(),
        sources=sources,
        count_tokens=count_tokens,
        epochs=None,
        max_steps=1,
        hold_out_capabilities=True,
        max_seq_len=1024,
    )


def letters(completion: str) -> float:
    """A reward that tells most answers apart."""
    return float(sum(map(ord, completion)) % 7)


@functools.cache
def _prompts() -> Any:
    return rollouts.make_prompts()


def build(name: str, *, steps: int, rows: int = 12, layers: int = 2) -> tuple[Any, Any]:
    """Method and data of a run, made anew as another process would.

    Args:
        name: of a method.
        steps: of the whole run.
        rows: of the corpus; four make a step. Prompts of rollouts are always twelve, two a step.
        layers: of the model, 1 or 2.

    Returns:
        A built method in training mode, and its data module.
    """
    architecture = ONE_LAYER if layers == 1 else small.ARCHITECTURE
    common: dict[str, Any] = {"neftune_alpha": 5.0, "total_steps": steps}
    if name in ROLLOUTS:
        base = small.settings() | {"architecture": architecture}
        method = rollouts.make_method(ROLLOUTS[name], adapter=LORA, kl_coef=0.1, base_model=base, **common)
        corpus = copy.copy(_prompts())
        corpus.max_steps = steps
        data = rollouts.make_data(
            method,
            rollouts.rewards_of(letters),
            corpus=corpus,
            steps_per_rollout=2,
            num_iterations=2,
            critic=method if name == "ppo" else None,
        )
        return method, data
    kind, adapter, changes = SFT_LIKE.get(name, (None, LORA, {}))
    corpus = copy.copy(_rows(rows, changes.get("count_tokens", "completion")))
    corpus.max_steps = steps
    more = {"quantization": small.QUANTIZATION} if name == "qlora" else {}
    base = small.settings(**more) | {"architecture": architecture}
    if name in PREFERENCE:
        kind, settings = PREFERENCE[name]
        method = small.make_method(kind, adapter=LORA, base_model=base, **common, **settings)
        corpus.rows = small.make_pairs(rows)
    else:
        method = small.make_method(kind, adapter=adapter, base_model=base, **common)
    method.configure_model()
    method.train()
    return method, NexusDataModule(corpus, loss_unit=method.loss_unit)


def train(
    name: str,
    folder: Path,
    *,
    steps: int,
    until: int | None = None,
    ambient: int,
    resume: Path | None = None,
    callbacks: tuple[Callback, ...] = (),
    every_n_steps: int = 100,
    keep: int = 2,
    **shape: int,
) -> Any:
    """One process's share of a run: from a checkpoint, or from the start, to step `until`.

    Args:
        name: of a method.
        folder: of the run; checkpoints lie in it.
        steps: of the whole run.
        until: where to stop; at the end if None.
        ambient: state of the generators that the process happens to have.
        resume: a checkpoint.
        callbacks: further ones.
        every_n_steps: between checkpoints.
        keep: checkpoints.
        shape: as `build` takes it.

    Returns:
        The method as it is then.
    """
    method, data = build(name, steps=steps, **shape)
    torch.manual_seed(ambient)
    until = steps if until is None else until
    saver = small.make_saver(folder, every_n_steps=every_n_steps, keep=keep)
    trainer = small.make_trainer(folder, max_steps=until, callbacks=[*callbacks, saver])
    trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
    assert trainer.global_step == until
    return method


def go_on(name: str, folder: Path, **more: Any) -> None:
    """Train to the end from wherever an earlier process died, without being told; the weights go to a file."""
    found = newest_whole(folder / "checkpoints", tell=print)
    method = train(name, folder, resume=found[1] if found else None, **more)
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file({key: p.detach().clone() for key, p in method.named_parameters() if p.requires_grad}, temporary)


def same_weights(a: Path, b: Path) -> bool:
    """Whether two finished runs ended with the same weights, bit for bit."""
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
