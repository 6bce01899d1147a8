"""Door: one answer of a package or a base model, or a conversation on the terminal."""

from __future__ import annotations

import sys

from nexus.config.compose import Job, run_hydra
from nexus.stages.preflight import secret_problems


def generate(job: Job) -> None:
    """Do one job."""
    from nexus.stages.chat import chat

    chat(job.config)


def main() -> int:
    """Run the door; returns the exit status."""
    return run_hydra(generate, "generate", extra=secret_problems, verbatim=("prompt", "system"))


if __name__ == "__main__":
    sys.exit(main())
