"""Door: one answer of a package or a base model, a conversation on the terminal, or data by rejection sampling."""

from __future__ import annotations

import nexus.signals  # noqa: F401  before anything else: until it is loaded, a signal ends the process

# isort: split
import sys

from nexus.config.compose import Job, run_hydra
from nexus.stages.preflight import generate_problems
from nexus.storage.redaction import redact_message


def generate(job: Job) -> None:
    """Do one job."""
    if job.config["mode"]["name"] == "rejection_sampling":
        from nexus.stages.rejection_sampling import rejection_sampling

        rejection_sampling(job.config)
        return
    from nexus.stages.chat import chat

    chat(job.config)


def main() -> int:
    """Run the door; returns the exit status."""
    free = ("prompt", "system")
    return run_hydra(generate, "generate", extra=generate_problems, verbatim=free, redact=redact_message)


if __name__ == "__main__":
    sys.exit(main())
