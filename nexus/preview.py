"""Door: shows the rows that training would read: masks, lengths, duplicates; takes the words of the train door."""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import sys

from nexus.config.capabilities import without_measured_only
from nexus.config.compose import Job, run_hydra
from nexus.stages.preflight import preview_problems
from nexus.storage.redaction import redact_message


def preview(job: Job) -> None:
    """Do one job; neither torch nor weights are loaded."""
    from nexus.stages.preview import preview as run

    run(job.config | {"capabilities": without_measured_only(job.config["capabilities"])})


def main() -> int:
    """Run the door; returns the exit status."""
    return run_hydra(preview, "preview", extra=preview_problems, redact=redact_message)


if __name__ == "__main__":
    sys.exit(main())
