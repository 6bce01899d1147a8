"""Door: scores a package or a base model on capabilities or own rows, without training."""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import sys
from pathlib import Path

from nexus.config.compose import Job, run_hydra
from nexus.stages.preflight import evaluate_problems
from nexus.storage.redaction import redact_message


def evaluate(job: Job) -> None:
    """Do one job."""
    from nexus.stages.evaluate import evaluate as run
    from nexus.stages.prepare import prepare

    output = job.config["output"]
    run(job.config, prepare(job.config), None if output is None else Path(output))


def main() -> int:
    """Run the door; returns the exit status."""
    return run_hydra(evaluate, "evaluate", extra=evaluate_problems, redact=redact_message)


if __name__ == "__main__":
    sys.exit(main())
