"""Turns a checked, resolved config into the objects of training: model, method, callbacks, trainer."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from nexus.callbacks.checkpoint import AtomicCheckpointIO
from nexus.callbacks.hold import Desk
from nexus.callbacks.quiet_hours import minute_of_day
from nexus.callbacks.samples import SamplePrompt
from nexus.config.build import instantiate_node
from nexus.config.check import resume_identity
from nexus.config.targets import signature_of
from nexus.config.training_rules import BNB_OPTIMIZER, compile_needs_gpu, paged_needs_gpu
from nexus.data.template import encode_prompts
from nexus.errors import ConfigError
from nexus.evaluation.held_out import held_out_loss
from nexus.hardware.memory_plan import GIB, MemoryPlan
from nexus.hardware.probe import Device, choose_device, choose_precision, other_gpus, probe_devices, probe_host
from nexus.hardware.sensors import Sensor, find_power, find_sensors
from nexus.hardware.usage import memory_in_use_bytes
from nexus.methods.base import Method
from nexus.methods.ppo import PPO
from nexus.methods.step_guard import StepGuard
from nexus.models.attention import packing_support
from nexus.models.loader import load_model
from nexus.models.reward_model import load_reward_model
from nexus.models.sample_hash import weights_sample_sha256
from nexus.models.snapshot import Snapshot
from nexus.rewards.registry import Rewards, build_rewards
from nexus.rollout.collect import Collector, Task
from nexus.rollout.engines import make_engine
from nexus.rollout.environment import make_environment
from nexus.rollout.judge import Judge
from nexus.rollout.loader import RolloutDataModule
from nexus.stages import planning
from nexus.stages.lean_loop import LeanEpochLoop, LeanStrategy
from nexus.stages.prepare import Prepared
from nexus.stages.resume import machine_of
from nexus.stages.row_lengths import lengths_of, longest_answer
from nexus.storage.redaction import redact
from nexus.types import MicroBatch


def device_of(config: dict[str, Any]) -> tuple[Device, str]:
    """The device that the config's hardware means on this machine, and the number format there."""
    hardware = config["hardware"]
    device = choose_device(probe_devices(probe_host()), accelerator=hardware["accelerator"])
    return device, choose_precision(device, precision=hardware["precision"])


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `models.loader.load_model`, without the seed.

    Full fine-tuning keeps float32 weights (bf16 is then the arithmetic's, not the optimizer's); under an adapter the
    frozen weights take the arithmetic's precision and the adapter stays float32.
    """
    base_model = config["base_model"]
    device, precision = device_of(config)
    adapter = config["adapter"]
    quantization = None
    if adapter["name"] == "qlora":
        quantization = {**{key: adapter[key] for key in ("quant_type", "double_quant")}, "device": device.kind}
    return {
        "path": base_model["path"],
        "architecture": base_model["architecture"],
        "revision": base_model["revision"],
        "trust_remote_code": base_model["trust_remote_code"],
        "dtype": "bfloat16" if adapter["name"] != "none" and precision == "bf16" else "float32",
        "quantization": quantization,
        "rope": base_model["rope"],
    }


def load_for_inference(config: dict[str, Any]) -> Any:
    """The base model or package on its device, in eval mode."""
    device, _ = device_of(config)
    return load_model(**model_settings(config), seed=config["seed"]).to(device.kind)


def load_reward_for_inference(config: dict[str, Any]) -> Any:
    """The reward model of a package on its device, in eval mode."""
    settings = model_settings(config)
    return load_reward_model(path=settings["path"], dtype=settings["dtype"]).to(device_of(config)[0].kind)


def make_method(config: dict[str, Any], *, total_steps: int) -> Method:
    """The LightningModule of the config's method."""
    method, hardware = config["method"], config["hardware"]
    signature = signature_of(method["module"]["_target_"])
    limit = {"max_new_tokens": longest_answer(config)} if signature and "max_new_tokens" in signature.names else {}
    made: Method = instantiate_node(
        method["module"],
        **limit,
        base_model=model_settings(config),
        adapter=config["adapter"],
        optimizer=instantiate_node(method["optimizer"]),
        schedule=method["schedule"],
        warmup_ratio=method["warmup_ratio"],
        min_lr_ratio=method["min_lr_ratio"],
        gradient_clip=method["gradient_clip"],
        neftune_alpha=method["neftune_alpha"],
        gradient_checkpointing=hardware["gradient_checkpointing"],
        compile_model=hardware["compile"],
        total_steps=total_steps,
        seed=config["seed"],
        guard=StepGuard(**config["safety"]),
    )
    return made


def _insist_on_gpu(config: dict[str, Any]) -> None:
    """What `config.training_rules` refuses for `hardware=cpu`, where only the machine shows that there is no GPU."""
    if device_of(config)[0].kind != "cpu":
        return
    optimizer = config["method"]["optimizer"]
    problems = [paged_needs_gpu()] if optimizer["_target_"] == BNB_OPTIMIZER and optimizer["paged"] else []
    problems += [compile_needs_gpu()] if config["hardware"]["compile"] else []
    if problems:
        raise ConfigError(problems)


def make_rollouts(config: dict[str, Any], prepared: Prepared, method: Method, *, packing: bool) -> RolloutDataModule:
    """The data module of a method that samples its answers; the policy as it is now becomes the reference.

    Args:
        config: checked and resolved.
        prepared: tokenizer and prompts.
        method: with the model that trains.
        packing: whether that model's attention can be packed.

    Returns:
        The data module.
    """
    settings = config["method"]["rollout"]
    device, precision = device_of(config)
    collector = Collector(
        tasks={
            card["name"]: Task(
                _reward_functions(config, entry["rewards"]),
                entry["max_new_tokens"],
                make_environment(entry["environment"]),
            )
            for entry in config["capabilities"].values()
            for card in entry["sources"].values()
            if "train" in card["roles"]
        },
        tokenizer=prepared.tokenizer,
        engine=make_engine(settings["engine"]),
        num_generations=settings["num_generations"],
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        batch_size=settings["batch_size"],
        seed=config["seed"],
        autocast=(device.kind, torch.bfloat16) if precision == "bf16" else None,
    )
    judge = _judge(config)
    data = RolloutDataModule(
        prepared.corpus,
        loss_unit=method.loss_unit,
        collector=collector,
        policy=lambda: method.policy,
        reference=Snapshot(method.policy) if config["method"]["kl_coef"] > 0 else None,
        with_old_logprobs=method.needs_old_logprobs,
        steps_per_rollout=settings["steps_per_rollout"],
        num_iterations=settings["num_iterations"],
        patience=settings["patience"],
        critic=method if isinstance(method, PPO) else None,
        judge=judge,
    )
    data.packing = packing and (judge is None or packing_support(judge.model).supported)
    return data


def _reward_functions(config: dict[str, Any], settings: dict[str, Any]) -> Rewards:
    """The reward functions of a capability; none where a reward model stands in their place."""
    return Rewards(()) if not settings and config["method"]["reward_model"] else build_rewards(settings)


def _judge(config: dict[str, Any]) -> Judge | None:
    """The reward model of a run, in the precision of its computation."""
    path = config["method"]["reward_model"]
    if path is None:
        return None
    device, precision = device_of(config)
    half = precision == "bf16"
    return Judge(
        load_reward_model(path=path, dtype="bfloat16" if half else "float32"),
        weight=config["method"]["reward_model_weight"],
        autocast=(device.kind, torch.bfloat16) if half else None,
    )


def checkpoint_folder(config: dict[str, Any], folder: Path) -> Path:
    """`checkpoints` of the run folder, or the run's own folder under `paths.checkpoint_dir`."""
    root = config["paths"]["checkpoint_dir"]
    return Path(root) / folder.name if root else folder / "checkpoints"


def make_callbacks(
    config: dict[str, Any], folder: Path, prepared: Prepared, *, desk: Desk, fast_resumes: list[dict[str, Any]]
) -> list[Any]:
    """Callbacks by name, each with what only the run knows: its files, its prompts, its memory plan."""
    capabilities, corpus, tokenizer = config["capabilities"], prepared.corpus, prepared.tokenizer
    asks = capabilities if planning.answers_prompts(config) else {}
    asked = []
    for name, entry in asks.items():
        examples, environment = corpus.eval_prompts(name)[:8], make_environment(entry["environment"])
        asked.append(
            [
                (example.id, SamplePrompt(ids, example.tools, environment, entry["max_new_tokens"]))
                for example, ids in zip(examples, encode_prompts(tokenizer, examples), strict=True)
            ]
        )
    # the first prompt of each capability, then the second of each, so that few samples show several capabilities
    prompts = dict(pair for row in zip_longest(*asked) for pair in row if pair is not None)
    from_run: dict[str, dict[str, Any]] = {
        "checkpoint": {
            "folder": str(checkpoint_folder(config, folder)),
            "identity": identity_of(config, prepared),
            "fast_resumes": fast_resumes,
            "desk": desk,
        },
        "metrics_csv": {"path": str(folder / "metrics.csv")},
        "samples": {"path": str(folder / "samples.jsonl"), "prompts": prompts, "tokenizer": tokenizer},
        "memory_probe": {"plan": device_plan(config, prepared), "limit_bytes": device_limit(config)},
        "validation": {"loss_of": _mean_loss, "desk": desk},
        "run_control": {"desk": desk},
        "thermal_pause": {"desk": desk, "find_sensors": functools.partial(_sensors, config)},
        "cooldown": {"desk": desk},
        "hang_watch": {"desk": desk},
        "power_budget": {"desk": desk, "find_power": lambda: find_power(_card_uuid(config))},
        "quiet_hours": {"desk": desk, "now": minute_of_day},
    }
    nodes = {name: node for name, node in config["callbacks"].items() if node is not None}
    return [instantiate_node(node, **from_run.get(name, {})) for name, node in nodes.items()]


def _mean_loss(model: Any, batches: Sequence[MicroBatch]) -> float:
    """The `held_out` loss of a report, of a model in training."""
    return held_out_loss(model, batches)["loss"].value


def identity_of(config: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """What a resumed run must share with the run that it goes on with: settings by key, rows, weights, machine."""
    base, reward_model = config["base_model"], config["method"].get("reward_model")
    own = {"data_sha256": prepared.corpus.data_sha256, **machine_of(*device_of(config))}
    if base["path"]:
        own["base_model.weights"] = weights_sample_sha256(base["path"], base["revision"])
    if reward_model:
        own["method.reward_model.weights"] = weights_sample_sha256(reward_model, None)
    return redact(resume_identity(config) | own)  # type: ignore[no-any-return]


def _sensors(config: dict[str, Any]) -> dict[str, Sensor]:
    """Sensors of the processor, and of the card that trains."""
    return find_sensors(_card_uuid(config))


def _card_uuid(config: dict[str, Any]) -> str | None:
    """The card that trains, as its driver calls it."""
    device = device_of(config)[0]
    return f"GPU-{torch.cuda.get_device_properties(device.index).uuid}" if device.kind == "cuda" else None


def device_plan(config: dict[str, Any], prepared: Prepared) -> MemoryPlan:
    """The memory plan of a run whose corpus was read, for the device and number format that it really has."""
    device, precision = device_of(config)
    counts = planning.count_parameters(prepared.facts, config["adapter"], prepared.tensors)
    lengths = lengths_of(config, prepared.corpus.rows)
    return planning.memory_plan_of(
        config,
        prepared.facts,
        counts,
        lengths,
        precision=precision,
        on_gpu=device.kind == "cuda",
        num_rows=len(prepared.corpus.rows),
    )


def device_limit(config: dict[str, Any]) -> int:
    """Bytes that tensors may take: `hardware.memory_gib` or all of the device, less what is not tensors on a GPU; on a
    processor this process counts as a whole, with what it holds already."""
    hardware, device = config["hardware"], device_of(config)[0]
    own = 0 if device.kind == "cuda" else memory_in_use_bytes()
    limit = device.free_bytes + own if hardware["memory_gib"] is None else int(hardware["memory_gib"] * GIB)
    return limit - (int(hardware["overhead_gib"] * GIB) if device.kind == "cuda" else 0)


def insist_on_device(config: dict[str, Any], prepared: Prepared) -> None:
    """Refuse what this machine cannot do, which only a look at it shows, before anything is written.

    That is a device that is not there, options that need a GPU, and a run that does not fit the GPU
    (`hardware.accelerator: auto`, no `memory_gib`).

    Args:
        config: checked and resolved.
        prepared: facts and rows.

    Raises:
        NexusError: `E-DEV-01`, `E-MEM-01`.
        ConfigError: `E-DEV-05`, `E-DEV-06`.
    """
    _insist_on_gpu(config)
    device = device_of(config)[0]
    if device.kind == "cuda":
        line = other_gpus(probe_devices(probe_host()), device)
        if line is not None:
            print(line, file=sys.stderr)
        overhead = int(config["hardware"]["overhead_gib"] * GIB)
        limit = device_limit(config) + overhead
        planning.insist_on_fit(config, device_plan(config, prepared), prepared.tensors, limit_bytes=limit)


class _NoProfiler(PassThroughProfiler):
    """Measures nothing at no cost; Lightning's own enters a new context around every hook of every callback."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return self._NOTHING


def make_trainer(
    config: dict[str, Any], folder: Path, callbacks: list[Any], total_steps: int, loggers: Sequence[Any] = ()
) -> Trainer:
    """Lightning's trainer: one device, no sanity checks, checkpoints by our own callback."""
    device, precision = device_of(config)
    trainer = Trainer(
        accelerator="gpu" if device.kind == "cuda" else "cpu",
        devices=1,
        strategy=LeanStrategy("cuda:0" if device.kind == "cuda" else "cpu"),
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_steps=total_steps,
        max_epochs=-1,
        logger=list(loggers) or False,
        log_every_n_steps=total_steps,  # concerns self.log, which nothing here uses; callbacks.metrics_csv logs
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        profiler=_NoProfiler(),
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, max_steps=total_steps)
    return trainer
