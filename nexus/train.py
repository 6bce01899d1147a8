"""Trains a capability, measures it before and after, and packages the result."""

from __future__ import annotations

import sys

from nexus.config.compose import Job, run_hydra
from nexus.stages.preflight import train_problems


def train(job: Job) -> None:
    """Print what a checked job would do."""
    print(f"{job.name or 'job'}: {', '.join(job.config['capabilities']) or 'own data'} with {job.config['method']['name']}")


def main() -> int:
    """Run the door; returns the exit status."""
    return run_hydra(train, "train", extra=train_problems)


if __name__ == "__main__":
    sys.exit(main())
