"""Rules that tie several groups together; each one reads only parts of the config whose shape is right.

A rule is a generator of problems over the plain config. `reads` names the parts that must be well-formed, so that a
rule never trips over what the schema complained about already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.config.capabilities import MEASURED_ONLY, MIN_STREAM, own_entry, read_capabilities, ready_names
from nexus.config.datasets import source_problems
from nexus.config.datasets import training_problems as eval_only_problems
from nexus.config.folders import ASSETS, data_file
from nexus.config.generate_rules import mode_problems
from nexus.config.rollout_rules import environment_problems, rollout_problems
from nexus.config.run_control_rules import run_control_problems, validation_problems
from nexus.config.training_rules import rope_problems, training_problems
from nexus.config.walk import nearest
from nexus.errors import Problem

Config = Mapping[str, Any]
RuleFunction = Callable[[Config], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A check across groups.

    Attributes:
        roots: root configs that it applies to.
        reads: dotted keys that must be free of problems.
        check: yields problems.
    """

    roots: tuple[str, ...]
    reads: tuple[str, ...]
    check: RuleFunction


RULES: list[Rule] = []
_ALL = ("train", "evaluate", "generate")


def _rule(*roots: str, reads: Sequence[str]) -> Callable[[RuleFunction], RuleFunction]:
    def register(check: RuleFunction) -> RuleFunction:
        RULES.append(Rule(roots, tuple(reads), check))
        return check

    return register


def rule_problems(config: Config, root: str, earlier: Sequence[Problem]) -> list[Problem]:
    """What the rules find.

    Args:
        config: resolved, plain containers.
        root: root config.
        earlier: problems of the shape; rules that read a part with a problem are left out.

    Returns:
        Problems.
    """
    root = "train" if root == "preview" else root  # the same settings, and the same mistakes
    bad = {problem.key for problem in earlier}
    problems: list[Problem] = []
    for rule in RULES:
        if root in rule.roots and not any(_touches(key, part) for key in bad for part in rule.reads):
            problems += rule.check(config)
    return problems


def _touches(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.") or part.startswith(f"{key}.") or not key


@_rule("train", reads=("adapter", "method"))
def _adapter_fits_alias(config: Config) -> Iterator[Problem]:
    wanted, chosen, method = config["method"]["adapter"], config["adapter"]["name"], config["method"]["name"]
    if wanted is not None and wanted != chosen:
        yield Problem(
            "E-CFG-03",
            "adapter",
            f"method={method} means adapter={wanted}, but adapter={chosen} was chosen",
            f"leave adapter out, or take method=sft adapter={chosen}",
        )


@_rule("train", reads=("adapter", "base_model", "hardware", "method"))
def _training_settings_fit(config: Config) -> Iterator[Problem]:
    yield from training_problems(config)


@_rule("train", reads=("capabilities", "data", "evaluation", "method"))
def _answers_can_be_rewarded(config: Config) -> Iterator[Problem]:
    yield from rollout_problems(config)


@_rule(*_ALL, reads=("capabilities",))
def _environments_have_calls(config: Config) -> Iterator[Problem]:
    yield from environment_problems(config)


@_rule(
    "generate", reads=("capabilities", "mode", "prompt", "system", "tools", "temperature", "max_new_tokens", "output")
)
def _mode_has_what_it_needs(config: Config) -> Iterator[Problem]:
    yield from mode_problems(config)


@_rule("train", reads=("callbacks",))
def _a_run_can_be_held(config: Config) -> Iterator[Problem]:
    yield from run_control_problems(config)


@_rule("train", reads=("base_model", "callbacks", "method"))
def _a_run_can_be_validated(config: Config) -> Iterator[Problem]:
    yield from validation_problems(config)


@_rule(*_ALL, reads=("base_model",))
def _positions_are_scaled_by_something(config: Config) -> Iterator[Problem]:
    yield from rope_problems(config)


@_rule(*_ALL, reads=("capabilities",))
def _capabilities_exist(config: Config) -> Iterator[Problem]:
    known, _ = read_capabilities()
    for name in config["capabilities"]:
        if name not in known and name != own_entry(config):
            near = nearest(name, list(known))
            remedy = f"did you mean +capability={near}?" if near else "see python -m nexus.capabilities"
            yield Problem("E-CFG-01", f"capabilities.{name}", "there is no such capability", remedy)


@_rule("train", reads=("capabilities",))
def _capabilities_are_trainable(config: Config) -> Iterator[Problem]:
    capabilities = config["capabilities"]
    measured = [name for name in capabilities if name in MEASURED_ONLY] if set(capabilities) <= {*MEASURED_ONLY} else []
    for name in measured:
        yield Problem(
            "E-CAP-02",
            f"capabilities.{name}",
            "there is nothing to train: it is a property of the run time",
            "leave it out; python -m nexus.evaluate is where it is measured",
        )
    yield from _planned({name: entry for name, entry in capabilities.items() if name not in measured}, to_train=True)


@_rule("evaluate", "generate", reads=("capabilities",))
def _capabilities_are_built(config: Config) -> Iterator[Problem]:
    yield from _planned(config["capabilities"], to_train=False)


def _planned(capabilities: Mapping[str, Mapping[str, Any]], *, to_train: bool) -> Iterator[Problem]:
    for name, entry in capabilities.items():
        if entry["status"] == "planned":
            yield Problem(
                "E-CAP-01",
                f"capabilities.{name}",
                f"the capability {name} is planned, not built yet; it comes with {entry['part']}",
                f"ready are: {', '.join(ready_names(to_train=to_train))}",
            )


@_rule("train", "evaluate", reads=("capabilities", "base_model.modalities", "encoders"))
def _modalities_are_there(config: Config) -> Iterator[Problem]:
    offered = set(config["base_model"]["modalities"])
    for name, entry in config["capabilities"].items():
        missing = [modality for modality in entry["requires"] if modality not in offered]
        if missing:
            yield Problem(
                "E-CAP-03",
                f"capabilities.{name}",
                f"{name} needs {', '.join(missing)}; {config['base_model']['name']} knows {', '.join(sorted(offered))}",
                "choose a base_model that has it, or an encoder for it with encoders=NAME",
            )


def _own_rows(config: Config) -> str | None:
    """Key of the rows that the user gave himself, if any."""
    data = config["data"]
    return "data.train" if data["train"] else "data.sources" if data["sources"] else None


@_rule("train", reads=("capabilities", "data", "resume"))
def _something_to_learn(config: Config) -> Iterator[Problem]:
    own, capabilities = _own_rows(config), config["capabilities"]
    entry = own_entry(config)
    if own and entry:
        yield Problem(
            "E-CFG-03",
            own,
            f"method={entry} has data of its own",
            f"add yours to them: +dataset@capabilities.{entry}.sources.mine=files "
            f"capabilities.{entry}.sources.mine.path=FILE",
        )
        return
    if not own and not capabilities and config["resume"] is None:
        yield Problem(
            "E-CFG-09",
            "capabilities",
            "there is nothing to learn: no capability and no rows of your own",
            f"add +capability=NAME ({', '.join(ready_names(to_train=True))}) or data.train=FILE",
        )
    if own and capabilities:
        yield Problem(
            "E-CFG-03",
            own,
            f"rows of your own and capabilities ({', '.join(capabilities)}) cannot be mixed yet",
            f"train on one, then on the other from its package; leave out {own} or +capability",
        )
    if config["data"]["validation"] and not own:
        yield Problem(
            "E-CFG-03", "data.validation", "held-out rows without rows to train on", "give data.train=FILE too"
        )


@_rule("evaluate", reads=("capabilities", "data"))
def _something_to_measure(config: Config) -> Iterator[Problem]:
    data = config["data"]
    if data["train"]:
        named = data["train"] if isinstance(data["train"], str) else f"[{','.join(data['train'])}]"
        yield Problem(
            "E-CFG-03",
            "data.train",
            "an evaluation trains on nothing, and would score only the share of these rows that training holds out",
            f"data.validation={named} scores all of them",
        )
    elif not config["capabilities"] and not data["sources"] and not data["validation"]:
        yield Problem(
            "E-CFG-09",
            "capabilities",
            "there is nothing to measure: no capability and no rows of your own",
            f"add +capability=NAME ({', '.join(ready_names(to_train=False))}) or data.validation=FILE",
        )


@_rule("train", reads=("method", "scale"))
def _length_is_given(config: Config) -> Iterator[Problem]:
    method, scale = config["method"], config["scale"]
    if method["epochs"] is None and method["max_steps"] is None and scale["max_steps"] is None:
        yield Problem(
            "E-CFG-03", "method.epochs", "neither epochs nor max_steps says when to stop", "give method.max_steps=N"
        )
    if method["max_steps"] and scale["max_steps"] and method["max_steps"] > scale["max_steps"]:
        yield Problem(
            "E-CFG-03",
            "method.max_steps",
            f"= {method['max_steps']}, but scale={scale['name']} stops after {scale['max_steps']}",
            "choose a larger scale, for example scale=full",
        )


@_rule("train", reads=("method",))
def _smoothing_has_a_form(config: Config) -> Iterator[Problem]:
    method = config["method"]
    if method.get("label_smoothing") and method["form"] not in ("conservative", "robust"):
        yield Problem(
            "E-CFG-03",
            "method.label_smoothing",
            f"= {method['label_smoothing']} has no meaning with method.form={method['form']}",
            "method.form=robust or method.form=conservative, or method.label_smoothing=0",
        )


@_rule(*_ALL, reads=("base_model",))
def _weights_are_named(config: Config) -> Iterator[Problem]:
    model = config["base_model"]
    if (model["path"] is None) == (model["architecture"] is None):
        given = "neither is given" if model["path"] is None else "both are given"
        yield Problem(
            "E-CFG-03",
            "base_model.path",
            f"exactly one of path and architecture is needed, {given}",
            "path loads trained weights, architecture starts from random ones",
        )
    if model["architecture"] is not None:
        if "model_type" not in model["architecture"]:
            yield Problem(
                "E-CFG-07", "base_model.architecture.model_type", "the setting is missing", "for example qwen3"
            )
        if model["tokenizer"] is None:
            yield Problem(
                "E-CFG-07",
                "base_model.tokenizer",
                "a new model needs a tokenizer",
                "base_model.tokenizer=asset:nexus_tiny",
            )
    if model["trust_remote_code"] and model["revision"] is None:
        yield Problem(
            "E-SEC-02",
            "base_model.trust_remote_code",
            "code from a model's folder runs only in a pinned revision",
            "give base_model.revision=COMMIT after reading that code, or leave trust_remote_code off",
        )


@_rule(*_ALL, reads=("base_model.path", "base_model.tokenizer"))
def _model_folders_exist(config: Config) -> Iterator[Problem]:
    for key in ("path", "tokenizer"):
        value = config["base_model"][key]
        if value is not None:
            problem = folder_problem(value, "package" if _is_package(config) and key == "path" else f"base_model.{key}")
            if problem is not None:
                yield problem


@_rule("train", reads=("method",))
def _reward_model_exists(config: Config) -> Iterator[Problem]:
    value = config["method"].get("reward_model")
    if value is None:
        return
    problem = folder_problem(value, "method.reward_model")
    if problem is None and not Path(value).expanduser().is_dir():
        problem = Problem(
            "E-MIS-01",
            "method.reward_model",
            f"= {value!r}: there is no such folder",
            "a reward model is a folder on this machine: python -m nexus.train method=reward_model makes one",
        )
    if problem is not None:
        yield problem


def _is_package(config: Config) -> bool:
    return "package" in config and isinstance(config["package"], str)


def folder_problem(value: str, key: str) -> Problem | None:
    """Whether a folder of weights is there; names of the Hugging Face hub are not looked up.

    Args:
        value: `asset:NAME`, a folder, or `owner/name` of the hub.
        key: dotted key, for the message.

    Returns:
        `E-MIS-01` or None.
    """
    if value.startswith("asset:"):
        name = value.removeprefix("asset:")
        shipped = sorted(f"asset:{path.name}" for path in ASSETS.iterdir() if path.is_dir())
        if f"asset:{name}" in shipped:
            return None
        return Problem("E-MIS-01", key, f"= {value!r}: nothing of that name is shipped", _choices(value, shipped))
    path = Path(value).expanduser()
    if path.is_dir():
        if (path / "config.json").exists() or not (path / "package" / "config.json").exists():
            return None
        return Problem("E-MIS-01", key, f"= {value!r} is a run, not a package", f"its package is {path / 'package'}")
    if path.exists():
        return Problem("E-MIS-01", key, f"= {value!r} is a file, not a folder of weights", "give its folder")
    if (
        value.count("/") == 1
        and not value.startswith((".", "/", "~"))
        and not path.parent.is_dir()
        and key != "package"
    ):
        return None
    siblings = [str(path.parent / p.name) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    return Problem("E-MIS-01", key, f"= {value!r}: there is no such folder", _choices(value, siblings))


def _choices(value: str, known: Sequence[str]) -> str:
    near = nearest(value, known)
    if near:
        return f"did you mean {near}?"
    return f"there is {', '.join(known[:5])}" if known else "paths are relative to the folder in which the command runs"


@_rule("train", "evaluate", reads=("data.train", "data.validation", "paths"))
def _data_files_exist(config: Config) -> Iterator[Problem]:
    for key in ("train", "validation"):
        value = config["data"][key]
        for name in [value] if isinstance(value, str) else value or []:
            path = data_file(name, config["paths"]["data_dir"])
            if not path.exists():
                siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
                yield Problem("E-MIS-02", f"data.{key}", f"= {name!r}: there is no such file", _choices(name, siblings))


@_rule("train", "evaluate", reads=("data.sources", "capabilities", "paths"))
def _cards_are_whole(config: Config) -> Iterator[Problem]:
    yield from source_problems(config)


@_rule("train", reads=("data.train", "data.sources", "capabilities"))
def _nobody_trains_on_a_benchmark(config: Config) -> Iterator[Problem]:
    yield from eval_only_problems(config)


@_rule("train", reads=("resume", "resume_mode"))
def _something_to_go_on_with(config: Config) -> Iterator[Problem]:
    if config["resume_mode"] != "exact" and config["resume"] is None:
        yield Problem("E-CFG-03", "resume_mode", "no run is resumed", "give resume=RUN too, or leave it out")


@_rule("train", reads=("run_dir", "resume"))
def _one_run_folder(config: Config) -> Iterator[Problem]:
    if config["run_dir"] is not None and config["resume"] is not None:
        yield Problem(
            "E-CFG-03", "run_dir", "a run is resumed in its own folder", f"leave run_dir out: resume={config['resume']}"
        )


@_rule("train", "evaluate", reads=("capabilities",))
def _metrics_have_cards(config: Config) -> Iterator[Problem]:
    for name, entry in config["capabilities"].items():
        if entry["status"] == "ready" and not any("eval" in card["roles"] for card in entry["sources"].values()):
            yield Problem(
                "E-CFG-03",
                f"capabilities.{name}.sources",
                "no source has the role eval",
                "give one of them roles=[train,eval]",
            )


@_rule("evaluate", reads=("capabilities",))
def _streams_are_long_enough(config: Config) -> Iterator[Problem]:
    for name, entry in config["capabilities"].items():
        if entry["status"] == "ready" and entry["metrics"] == "streaming" and entry["max_new_tokens"] < MIN_STREAM:
            yield Problem(
                "E-CFG-02",
                f"capabilities.{name}.max_new_tokens",
                f"= {entry['max_new_tokens']}: pauses and cancelling need at least {MIN_STREAM} tokens",
                f"capabilities.{name}.max_new_tokens={8 * MIN_STREAM}",
            )


def setting_warnings(config: Config, root: str) -> list[str]:
    """Settings that are allowed but do nothing, or less than they seem to.

    Args:
        config: checked, plain containers.
        root: root config.

    Returns:
        Lines `W-CFG-nn  key: what`.
    """
    if root == "preview":
        return [
            f"W-CFG-08  {key}: a preview writes no run and plans none, so it has no effect here"
            for key in ("run_dir", "dry_run")
            if config[key]
        ]
    if root != "train":
        return []
    lines = [
        f"W-CFG-01  {group}: method={config['method']['name']} does not use {', '.join(config[group])}"
        for group in ("encoders", "decoders", "teachers")
        if config[group]
    ]
    lines += [
        f"W-CFG-06  capabilities.{name}: nothing to train, so it is left out; python -m nexus.evaluate measures it"
        for name in config["capabilities"]
        if name in MEASURED_ONLY
    ]
    hardware, scale = config["hardware"], config["scale"]
    if hardware["accelerator"] == "cpu" and hardware["precision"] == "bf16":
        lines.append("W-CFG-03  hardware.precision: bf16 is slower than fp32 on most processors")
    if hardware["accelerator"] == "cpu" and hardware["gradient_checkpointing"] == "offload":
        lines.append("W-CFG-07  hardware.gradient_checkpointing: offload saves nothing where all memory is the host's")
    wanted = scale["eval_prompts"]
    if config["capabilities"] and wanted and wanted < 200 and scale["name"] not in ("quick", "debug"):
        lines.append(f"W-CFG-04  scale.eval_prompts: {wanted} prompts give wide intervals; 200 or more are usual")
    if config["method"]["schedule"] == "constant" and config["method"]["min_lr_ratio"] > 0:
        lines.append("W-CFG-05  method.min_lr_ratio: a constant schedule does not use it")
    return lines
