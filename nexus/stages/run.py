"""One run: score, train, score, package, report."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nexus.callbacks.hold import Desk, RunStopped
from nexus.callbacks.memory_probe import MemoryProbe
from nexus.callbacks.metrics_csv import read_metrics
from nexus.callbacks.run_control import RunControl
from nexus.callbacks.validation import Validation
from nexus.config.check import config_sha256, config_yaml
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.flags import FLAGS, INTERRUPTED
from nexus.hardware.memory_plan import format_bytes
from nexus.hardware.processor import use_processor
from nexus.hardware.usage import peak_memory_bytes
from nexus.methods.base import Method
from nexus.methods.reward_model import RewardModel
from nexus.models.adapters import parameter_counts
from nexus.models.attention import packing_support
from nexus.packaging.card import model_card
from nexus.packaging.pack import PackageInfo, write_package
from nexus.rollout.loader import RolloutDataModule
from nexus.stages import assemble, cold_start, planning
from nexus.stages.best import restore_best, validation_section
from nexus.stages.gain import paired_gains, read_answers, write_answers
from nexus.stages.held_out_prompts import held_out_prompts
from nexus.stages.loggers import end_loggers, log_scores, start_loggers
from nexus.stages.prepare import Prepared
from nexus.stages.reference import attach_reference
from nexus.stages.report import plain_scores, plot_loss, print_scores, provenance
from nexus.stages.resume import ResumeMode, find_checkpoint
from nexus.stages.scoring import Scoring, score_model
from nexus.stages.tables import open_console
from nexus.stages.tracker import Tracker
from nexus.stages.watch import watched
from nexus.storage.atomic import remove_leftovers, write_json, write_text
from nexus.storage.locks import RunLock
from nexus.storage.redaction import redact, redact_text
from nexus.storage.run_folder import discard_empty, read_kept, resume_word
from nexus.storage.run_status import STATUS_NAME, Board

_PROBE_TOKENS = 32
#: Settings of a method's loss that belong to its recipe.
_LOSS_SETTINGS = ("form", "beta", "label_smoothing", "length_normalized", "sft_weight", "gamma", "desirable_weight",
                  "undesirable_weight", "margin", "center_coef", "scale", "epsilon_low", "epsilon_high", "kl_coef",
                  "gae_lambda", "value_clip", "value_coef", "rollout")  # fmt: skip
_LOGIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # relative to the largest logit; merging rounds once more


@dataclass
class Run:
    """What belongs to one run while it lasts.

    Attributes:
        config: checked and resolved, plain containers.
        folder: the run folder.
        prepared: facts, tokenizer and corpus; the corpus has been read.
        console: where progress is told.
        tracker: appends to the tables over all runs.
        board: `status.json`; that of the whole run in a phase.
        loggers: Lightning's, besides `metrics.csv`.
        whole: the run that this one is a phase of; None for a run itself.
        fast_resumes: steps at which it went on in `fast` mode, and what differed.
    """

    config: dict[str, Any]
    folder: Path
    prepared: Prepared
    console: Console
    tracker: Tracker
    board: Board
    loggers: list[Any] = field(default_factory=list)
    whole: Run | None = None
    fast_resumes: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, line: str) -> None:
        """Print a line without markup or colors."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def status(self, state: str, reason: str = "") -> None:
        """Replace `status.json`; a phase has none of its own."""
        self.board.set_state(state if self.whole is None else f"{state} ({self.folder.name})", reason)


def train(config: dict[str, Any], folder: Path, prepared: Prepared, *, resume: ResumeMode | None) -> dict[str, Any]:
    """Score the base, train, score again, package, and report.

    Args:
        config: checked and resolved, plain containers.
        folder: an existing folder; without a run in it, unless one is resumed.
        prepared: facts, tokenizer and corpus; the corpus has been read.
        resume: how to go on from the newest checkpoint in `folder`, from step 0 if there is none; None for a new run.

    Returns:
        What `report.json` holds.

    Raises:
        NexusError: whatever a user can mend; `status.json` then says `failed`.
    """
    origin = provenance(
        config_sha256=config_sha256(config),
        data_sha256=prepared.corpus.data_sha256,
        device=assemble.device_of(config)[0].label,
    )
    _quiet_libraries()
    with RunLock(folder):
        remove_leftovers(folder)
        run = Run(config, folder, prepared, open_console(), Tracker(config, folder, origin), Board(folder))
        run.tell(f"run folder {folder}")
        write_text(folder / "config.yaml", config_yaml(config, redact=redact))
        try:
            with watched(folder, run.board, FLAGS):
                return _train(run, origin, resume=resume)
        except KeyboardInterrupt:
            run.status("interrupted", FLAGS.stop.reason if FLAGS.stop else "Ctrl-C")
            _track_failure(run, "interrupted")
            run.tell(f"interrupted; go on with {resume_word(folder)}")
            raise
        except BaseException as error:
            if isinstance(error, NexusError) and not resume and run.board.fields["state"] == "starting":
                for name in ("config.yaml", STATUS_NAME):  # nothing was begun, so nothing is left
                    (folder / name).unlink(missing_ok=True)
                discard_empty(folder)
                raise
            run.status("failed", str(error))
            _track_failure(run, str(error) or type(error).__name__)
            raise
        finally:
            end_loggers(run.loggers, failed=True)  # of a run that came to its end none is left


def _track_failure(run: Run, error: str) -> None:
    """A row that says failed; if even that cannot be written, the first error is still the one to show."""
    try:
        run.tracker.training(read_metrics(run.folder / "metrics.csv"), None, error=error)
    except (NexusError, OSError) as second:
        run.tell(f"W-OUT-01  this run is missing in training_metrics.csv: {second}")


def _train(run: Run, origin: dict[str, Any], *, resume: ResumeMode | None) -> dict[str, Any]:
    started = time.perf_counter()
    config, corpus = run.config, run.prepared.corpus
    use_processor(config["hardware"]["threads"])
    torch.manual_seed(config["seed"])
    run.tell(corpus.describe())
    method = assemble.make_method(config, total_steps=corpus.num_steps)
    method.configure_model()
    data = NexusDataModule(corpus, loss_unit=method.loss_unit)
    support = packing_support(method.policy)
    if data.packing and not support.supported:
        run.tell(f"W-MOD-15  rows are padded instead of packed: {support.reason}")
        data.packing = False
    found = _newest(run, resume)
    run.loggers = start_loggers(config, run.folder, step=found[0] if found else 0)
    before = _score_before(run, method, data)
    if not found:
        log_scores(run.loggers, "before", before, step=0)
    started_from = _cold_start(run, method, before, resume=resume)
    if method.needs_reference:
        run.status("computing the reference")
        device, precision = assemble.device_of(config)
        file = run.folder / "reference.safetensors"
        attach_reference(method.policy, data, file=file, device=device.kind, precision=precision, tell=run.tell)
    if "rollout" in config["method"]:
        data = assemble.make_rollouts(config, run.prepared, method, packing=data.packing)
    fitted = _fit(run, method, data, resume=resume, found=found)
    restore_best(method, fitted.validation, assemble.checkpoint_folder(config, run.folder), tell=run.tell)
    after = Scoring()
    if config["evaluation"]["after"]:
        run.status("scoring")
        after = _score(run, method, data, "after")
        write_answers(run.folder / "answers.jsonl", after.answers)
        log_scores(run.loggers, "after", plain_scores(after.scores), step=corpus.num_steps)
        run.tracker.answers(after.answers, after.speeds, "answers.jsonl")
    report: dict[str, Any] = {
        "status": "finished",
        "scores": {"before": before, **started_from.get("scores", {}), "after": plain_scores(after.scores)},
        "gain": _gain(run, after, since=cold_start.NAME if started_from else "before"),
        "train": _train_section(run, method, fitted.seconds),
        **validation_section(fitted.validation),
        **({"fast_resumes": run.fast_resumes} if run.fast_resumes else {}),
        **({"cold_start": started_from["train"]} if started_from else {}),
        **({"rollouts": data.summary()} if isinstance(data, RolloutDataModule) else {}),
        "memory": fitted.memory,
        "data": corpus.summary(),
        "package": None,
        "provenance": origin,
    }
    if config["package"]["enabled"]:
        run.status("packaging")
        report["package"] = _package_section(run, _package(run, method, report))
    report["seconds"] = round(time.perf_counter() - started, 1)
    rows = read_metrics(run.folder / "metrics.csv")
    plot_loss(run.folder / "loss.png", {"train": rows})
    write_json(run.folder / "report.json", report)
    end_loggers(run.loggers, failed=False)
    run.tracker.training(rows, report, error="")
    run.status("finished")
    _print_end(run, report)
    return report


def _score_before(run: Run, method: Method, data: NexusDataModule) -> dict[str, Any]:
    """Scores of the base; a resumed run has them already."""
    stored = run.folder / "scores_before.json"
    if stored.exists():
        return read_kept(stored)
    if not run.config["evaluation"]["before"]:
        return {}
    run.status("scoring the base")
    scoring = _score(run, method, data, "before")
    write_answers(run.folder / "answers_before.jsonl", scoring.answers)
    scores = plain_scores(scoring.scores)
    write_json(stored, scores)
    return scores


def _cold_start(run: Run, method: Method, before: dict[str, Any], *, resume: ResumeMode | None) -> dict[str, Any]:
    """The supervised phase before reinforcement, if there is to be one; `scores` and `train` for the report.

    The policy's weights are those of its end, also in a run that is resumed long after it: the reference is made of
    them.
    """
    if not cold_start.is_wanted(run.config, before):
        return {}
    corpus, folder = run.prepared.cold_start, run.folder / cold_start.NAME
    assert corpus is not None, "prepare_to_train reads these rows whenever a cold start is possible"
    prepared = replace(run.prepared, corpus=corpus, cold_start=None)
    phase = Run(
        cold_start.cold_start_config(run.config, run.folder),
        folder,
        prepared,
        run.console,
        run.tracker,
        run.board,
        whole=run,
    )
    folder.mkdir(exist_ok=True)
    learner = assemble.make_method(phase.config, total_steps=corpus.num_steps)
    learner.model = method.policy
    data = NexusDataModule(corpus, loss_unit=learner.loss_unit)
    data.packing = data.packing and packing_support(method.policy).supported
    run.tell(f"cold start: {corpus.describe()}")
    kept = folder / "result.json"
    if kept.exists():
        last = _newest(phase, "fast")  # it is over: only its weights are taken, wherever it was computed
        if last is None:
            raise NexusError(
                "E-RES-05",
                "the cold start's checkpoint is gone",
                where=str(folder),
                remedy="start a new run",
                status=65,
            )
        learner.load_trained(last[1])
        return read_kept(kept)
    fitted = _fit(phase, learner, data, resume=resume, found=_newest(phase, resume))
    scoring = _score(phase, learner, data, cold_start.NAME)
    write_answers(folder / "answers.jsonl", scoring.answers)
    scores = plain_scores(scoring.scores)
    log_scores(run.loggers, cold_start.NAME, scores, step=0)
    trained = _train_section(phase, learner, fitted.seconds)
    result: dict[str, Any] = {"scores": {cold_start.NAME: scores}, "train": trained}
    write_json(kept, result)
    return result


def _gain(run: Run, after: Scoring, *, since: str) -> dict[str, Any]:
    """What training gained since the base was scored, or since the cold start."""
    first = "answers_before.jsonl" if since == "before" else f"{since}/answers.jsonl"
    gains = paired_gains(read_answers(run.folder / first), after.answers, run.config["capabilities"])
    return {name: {"since": since, **gain} for name, gain in gains.items()}


def _score(run: Run, method: Method, data: NexusDataModule, when: str) -> Scoring:
    """Measure the model as it is now."""
    run.tell("scoring")
    scoring = score_model(
        model=method.policy,
        tokenizer=run.prepared.tokenizer,
        capabilities=run.config["capabilities"],
        prompts=held_out_prompts(run.config, run.prepared, tell=run.tell),
        held_out=data.held_out_batches(),
        batch_size=run.config["evaluation"]["batch_size"],
        tell=run.tell,
        rewards=method.rewards if isinstance(method, RewardModel) else None,
    )
    for group, metrics in scoring.scores.items():
        values = "  ".join(f"{name} {score.value:.3f}" for name, score in metrics.items())
        run.tell(f"  {group}: {values}")
    run.tracker.scoring(when, plain_scores(scoring.scores), scoring.speeds)
    return scoring


def _newest(run: Run, mode: ResumeMode | None) -> tuple[int, Path] | None:
    """The checkpoint that a resumed run goes on from."""
    if mode is None:
        return None
    identity = assemble.identity_of(run.config, run.prepared)
    folder = assemble.checkpoint_folder(run.config, run.folder)
    found = find_checkpoint(folder, identity=identity, mode=mode, run=run.folder, tell=run.tell)
    if found is None:
        return None
    step, path, run.fast_resumes = found
    return step, path


@dataclass(frozen=True)
class _Fitted:
    """What a training came to: its seconds without pauses and measurements, and what two callbacks found."""

    seconds: float
    memory: dict[str, Any] | None
    validation: Validation | None


def _fit(
    run: Run, method: Method, data: NexusDataModule, *, resume: ResumeMode | None, found: tuple[int, Path] | None
) -> _Fitted:
    """Train, from a checkpoint if there is one to resume."""
    config, folder, corpus = run.config, run.folder, run.prepared.corpus
    desk = Desk(board=run.board, flags=FLAGS)
    callbacks = assemble.make_callbacks(config, folder, run.prepared, desk=desk, fast_resumes=run.fast_resumes)
    # Without the callback that serves them, requests to stop must not wait for it.
    serving = FLAGS.served() if any(isinstance(one, RunControl) for one in callbacks) else contextlib.nullcontext()
    trainer = assemble.make_trainer(config, folder, callbacks, corpus.num_steps, run.loggers)
    run.status("training", f"from step {found[0]}" if found else "")
    if resume:
        run.tell(f"resuming from step {found[0]}" if found else "no checkpoint yet: starting at step 0")
    started = time.perf_counter()
    method.train()
    try:
        with serving:
            trainer.fit(method, datamodule=data, ckpt_path=str(found[1]) if found else None, weights_only=True)
    except RunStopped as error:
        raise KeyboardInterrupt(error.stop.status) from error
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        # Lightning answers Ctrl-C by ignoring further ones and ending the process as if it had failed.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt(FLAGS.stop.status if FLAGS.stop else INTERRUPTED) from error
    if trainer.global_step != corpus.num_steps:
        raise NexusError(
            "E-INT-01", f"training ended after {trainer.global_step} of {corpus.num_steps} steps", where=str(folder)
        )
    memory = next((callback.result for callback in callbacks if isinstance(callback, MemoryProbe)), None)
    validation = next((callback for callback in callbacks if isinstance(callback, Validation)), None)
    beside = desk.held_seconds + (validation.seconds_here if validation else 0.0)
    return _Fitted(time.perf_counter() - started - beside, memory, validation)


def _train_section(run: Run, method: Method, seconds: float) -> dict[str, Any]:
    rows, counts = read_metrics(run.folder / "metrics.csv"), parameter_counts(method)
    first, last = rows[0], rows[-1]
    tokens, span = last["train/tokens"], last["seconds"]
    if len(rows) > 1:  # the first step pays for warming up
        tokens, span = tokens - first["train/tokens"], span - first["seconds"]
    return {
        "method": run.config["method"]["name"],
        "adapter": run.config["adapter"]["name"],
        "global_step": int(last["step"]),
        "tokens": method.tokens_seen,
        "tokens_per_second": round(tokens / span, 1),
        "final_loss": [row["train/loss"] for row in rows if math.isfinite(row["train/loss"])][-1],
        "skipped_steps": method.guard.skipped,
        "micro_batch_limit": method.micro_batch_limit,
        "trainable_parameters": counts.trainable,
        "parameters": counts.total,
        "peak_memory_bytes": peak_memory_bytes(),
        "seconds": round(seconds, 1),
        "seed": run.config["seed"],
    }


def _package(run: Run, method: Method, report: dict[str, Any]) -> PackageInfo:
    """Write the package of the trained model."""
    config, corpus = run.config, run.prepared.corpus
    base_name, method_name = redact_text(config["base_model"]["name"]), config["method"]["name"]
    names = sorted(config["capabilities"])
    adapter = config["adapter"]
    card = functools.partial(
        model_card,
        name="-".join([base_name, *names, method_name]),
        base_name=base_name,
        capabilities=names,
        method=method_name,
        adapter=adapter["name"],
        scores=report["scores"],
        train=report["train"],
        sources=corpus.licences(),
        data_sha256=corpus.data_sha256,
        recipe=_recipe(config),
        quantization=_quantization(adapter) if adapter["name"] == "qlora" else None,
        is_reward_model=isinstance(method, RewardModel),
        validation=report.get("validation"),
    )
    dtype = str(next(method.policy.parameters()).dtype).removeprefix("torch.")
    return write_package(
        model=method.policy,
        tokenizer=run.prepared.tokenizer,
        folder=run.folder / "package",
        base_name=base_name,
        card=lambda difference: card(max_logit_difference=difference),
        probe=corpus.probe(_PROBE_TOKENS),
        tolerance=_LOGIT_TOLERANCE[dtype],
        reward_head=method.reward_head if isinstance(method, RewardModel) else None,
    )


def _quantization(adapter: dict[str, Any]) -> str:
    """The 4-bit type in words."""
    return str(adapter["quant_type"]) + (" with double quantization" if adapter["double_quant"] else "")


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide about the result, for the model card."""
    method = config["method"]
    return {
        "optimizer": method["optimizer"]["_target_"],
        "learning rate": f"{method['lr']:g}, {method['schedule']}, warm-up {method['warmup_ratio']:g} of the steps",
        **({"learning rate of the layers (Muon)": rate} if (rate := method["optimizer"].get("muon_lr")) else {}),
        "weight decay": method["weight_decay"],
        "gradient clip": method["gradient_clip"],
        "epochs": method["epochs"],
        "rows per optimizer step": config["data"]["global_batch_size"],
        "counted tokens": method["count_tokens"],
        **{name: method[name] for name in _LOSS_SETTINGS if name in method},
        "seed": config["seed"],
    }


def _package_section(run: Run, package: PackageInfo) -> dict[str, Any]:
    return {
        "path": str(package.path.relative_to(run.folder)),
        "sha256": package.sha256,
        "bytes": package.num_bytes,
        "max_logit_difference": package.max_logit_difference,
    }


def _print_end(run: Run, report: dict[str, Any]) -> None:
    scores = report["scores"]
    print_scores(run.console, scores["before"], scores["after"], cold_start=scores.get(cold_start.NAME))
    for name, gain in report["gain"].items():
        low, high = gain["ci95"]
        better = " (lower is better)" if gain["lower_is_better"] else ""
        run.tell(
            f"{name.partition('/')[0]}: {gain['metric']}{better} {gain['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] since {gain['since']}, "
            f"p = {gain['p_value']:.2g} (paired bootstrap, {gain['n']} prompts)"
        )
    train = report["train"]
    run.tell(
        f"{train['global_step']} steps, {train['tokens']:,} tokens at {train['tokens_per_second']:,.0f} tokens/s, "
        f"{report['seconds']:.0f} s in all"
    )
    if memory := report["memory"]:
        run.tell(
            f"memory of the first {memory['steps']} steps: {format_bytes(memory['measured_bytes'])}, planned "
            f"{format_bytes(memory['planned_bytes'])}"
        )
    run.tell(f"report   {run.folder / 'report.json'}")
    if report["package"]:
        run.tell(f"package  {run.folder / report['package']['path']}")
        outputs = "logits" if planning.answers_prompts(run.config) else "rewards"
        drift = report["package"]["max_logit_difference"]
        run.tell(f"         its {outputs} are within {drift:.2g} of the trained model's")


def _quiet_libraries() -> None:
    """Silence hints that do not concern the user; warnings about his data or model stay."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for pattern in (".*does not have many workers.*", ".*`isinstance\\(treespec.*", ".*Trainer already configured.*",
                    ".*`is_gradient_checkpointing` is deprecated.*"):  # fmt: skip
        warnings.filterwarnings("ignore", pattern)
