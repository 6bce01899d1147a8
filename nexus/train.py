"""Door: trains a capability or on own rows, measures before and after, and packages the result."""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import os
import sys
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

from nexus.config.capabilities import without_measured_only
from nexus.config.compose import Done, Job, run_hydra
from nexus.stages.preflight import train_problems
from nexus.storage.redaction import redact_message


def train(job: Job) -> Path | None:
    """Do one job; torch is imported when everything that can be known without it is known to be good."""
    config = job.config | {"capabilities": without_measured_only(job.config["capabilities"])}
    job = replace(job, config=config)
    if config["dry_run"]:
        from nexus.stages.dry_run import show

        show(config)
        return None
    from nexus.stages.prepare import prepare_to_train
    from nexus.storage.run_folder import create_run_folder

    resume = config["resume"] is not None
    if resume and finished(Path(config["resume"])):
        return Path(config["resume"])
    prepared = prepare_to_train(config)
    from nexus.stages.assemble import insist_on_device

    insist_on_device(config, prepared)
    folder = Path(config["resume"]).resolve() if resume else create_run_folder(folder_of(job), key="run_dir")
    for corpus in (prepared.corpus, prepared.cold_start):
        if corpus is not None:
            corpus.keep()
    from nexus.stages.run import train as run

    # files by their full names, so that the run can be resumed from any folder
    files = {
        key: [str(Path(name).resolve()) for name in getattr(prepared.corpus, f"{key}_files")]
        for key in ("train", "validation")
    }
    data = config["data"] | {key: names or None for key, names in files.items()}
    method, judge = config["method"], config["method"].get("reward_model")
    if judge is not None and Path(judge).is_dir():
        method = method | {"reward_model": str(Path(judge).resolve())}
    own = {**config, "data": data, "method": method, "resume": None, "resume_mode": "exact", "run_dir": None}
    run(own, folder, prepared, resume=config["resume_mode"] if resume else None)
    return folder


def finished(folder: Path) -> bool:
    """True, and said so, if the run in `folder` has nothing left to do."""
    from nexus.storage.run_folder import read_kept

    report = folder / "report.json"
    if not report.is_file() or read_kept(report).get("status") != "finished":
        return False
    print(f"the run is finished; its report is {report}")
    return True


def folder_of(job: Job) -> Path:
    """Where a new run goes: `run_dir`, else a dated name under `paths.output_dir`; the jobs of a sweep go inside."""
    from nexus.storage.run_folder import run_name

    config = job.config
    if config["run_dir"] is not None:
        parent = Path(config["run_dir"])
    else:
        capabilities = list(config["capabilities"])
        name = run_name(capabilities=capabilities, method=config["method"]["name"], when=STARTED)
        name = f"{STARTED:%Y%m%d-%H%M%S}_sweep" if job.count > 1 else name
        parent = _free_folder(Path(config["paths"]["output_dir"]) / name)
    return parent / f"{job.index}_{job.name.replace('/', '-')}" if job.count > 1 else parent


@cache
def _free_folder(path: Path) -> Path:
    """The folder, or one beside it if another run began in the same second; all jobs of a sweep get the same."""
    return path.with_name(f"{path.name}_{os.getpid()}") if path.exists() else path


def compare(done: list[Done]) -> None:
    """Table, CSV and plot over the finished jobs of a sweep."""
    from nexus.stages.sweep import compare as compare_runs
    from nexus.stages.tables import open_console

    folders = [entry.result for entry in done if entry.result is not None]
    if folders:
        compare_runs(folders[0].parent, folders, open_console())


STARTED = datetime.now()  # one time for all jobs of a sweep


def main() -> int:
    """Run the door; returns the exit status."""
    return run_hydra(train, "train", extra=train_problems, finish=compare, redact=redact_message)


if __name__ == "__main__":
    sys.exit(main())
