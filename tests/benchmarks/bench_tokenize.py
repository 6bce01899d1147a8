"""Tokenizing against `datasets.map` with `apply_chat_template`: same rows, tokens and masks; one process, one thread.

    python -m tests.benchmarks.bench_tokenize [--rows 3000] [--rounds 5] [--cache-rows 50000] [--json FILE]

Both sides start from rows in memory and end with ids and masks of all rows; they take turns, and processor time counts.
`datasets` runs row by row and in batches of 256, each time asked for the mask of the assistant's tokens as Nexus makes
it; ids and masks are compared before anything is timed. The tools of a row reach `datasets` as JSON text, since Arrow
has no type for schemas that differ from row to row.

The second part times the start of a run over a file of `--cache-rows` rows, and over nexus_tools, without and with the
token cache: each start is a process of its own, and what counts is reading, tokenizing and keeping the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.models import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("tools", "cot")


def make_examples(source: str, count: int) -> list[Any]:
    """Rows of an embedded source."""
    from nexus.data.formats import to_example
    from nexus.data.sources import generate_rows

    rows = generate_rows(source, view="sft", split="train", count=count, seed=1)
    return [to_example(row, place=place, source=source, view="sft", fields={}) for place, row in rows]


def contenders(tokenizer: Any, examples: list[Any]) -> dict[str, Callable[[], list[tuple[list[int], list[int]]]]]:
    """Each does all the work and gives ids and mask of every row; getting them out of the result is part of it."""
    import datasets

    from nexus.data.template import tokenize_examples

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = datasets.Dataset.from_list(
        [{"messages": json.dumps(e.messages), "tools": json.dumps(e.tools)} for e in examples]
    )

    def template(messages: list[Any], tools: list[Any] | None) -> Any:
        return tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)

    def one(row: dict[str, Any]) -> dict[str, Any]:
        encoded = template(json.loads(row["messages"]), json.loads(row["tools"]) or None)
        return {"input_ids": encoded["input_ids"], "assistant_masks": encoded["assistant_masks"]}

    def many(batch: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(batch["messages"], batch["tools"], strict=True)
        encoded = [template(json.loads(messages), json.loads(tools) or None) for messages, tools in pairs]
        return {name: [row[name] for row in encoded] for name in ("input_ids", "assistant_masks")}

    def read(done: Any) -> list[tuple[list[int], list[int]]]:
        return list(zip(done["input_ids"][:], done["assistant_masks"][:], strict=True))

    def nexus() -> list[tuple[list[int], list[int]]]:
        found = tokenize_examples(tokenizer, examples, count_tokens="completion")
        return [(row.input_ids, row.loss_mask) for row in found]  # type: ignore[misc]

    columns = ["messages", "tools"]
    return {
        "nexus": nexus,
        "datasets.map": lambda: read(rows.map(one, remove_columns=columns)),
        "datasets.map, batches of 256": lambda: read(
            rows.map(many, batched=True, batch_size=256, remove_columns=columns)
        ),
    }


def compare(source: str, *, rows: int, rounds: int) -> dict[str, list[float]]:
    """Rows per processor second of every contender, round by round.

    Args:
        source: embedded generator.
        rows: number of rows.
        rounds: how often each takes its turn.

    Returns:
        One number a round by contender.
    """
    tokenizer = load_tokenizer()
    runs = contenders(tokenizer, make_examples(source, rows))
    results = {name: [(list(i), [bool(m) for m in mask]) for i, mask in run()] for name, run in runs.items()}
    assert len(results["nexus"]) == rows
    assert all(found == results["nexus"] for found in results.values()), "they do not do the same work"
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run()
            speeds[name].append(rows / (time.process_time() - started))
    return speeds


def time_start(source: str, folder: Path, cache: str) -> dict[str, float]:
    """One start in this process: seconds of reading, tokenizing and keeping, by the clock and of the processor."""
    from nexus.config.compose import make_jobs
    from nexus.stages.prepare import prepare

    words = ["+capability=tools"] if source == "nexus_tools" else [f"data.train={folder / source}"]
    words += [f"paths.cache_dir={folder / 'cache'}", f"data.cache={cache}", "data.num_proc=1"]
    corpus = prepare(make_jobs(words, "train")[0].config).corpus
    before, started = os.times(), time.perf_counter()
    corpus.setup("fit")
    corpus.keep()
    seconds, after = time.perf_counter() - started, os.times()
    spent = sum(after[:4]) - sum(before[:4])
    return {"rows": len(corpus.rows), "tokens": int(corpus.rows.lengths.sum()), "wall": seconds, "cpu": spent}


def starts(rows: int) -> dict[str, dict[str, dict[str, float]]]:
    """Starts without cache, with an empty one and with a full one, each in a process of its own."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w") as file:
            for example in make_examples("cot", rows):
                file.write(json.dumps({"messages": example.messages}) + "\n")
        for source in ("nexus_tools", "rows.jsonl"):
            for label, cache in (("no cache", "false"), ("first start", "true"), ("second start", "true")):
                command = [sys.executable, "-m", "tests.benchmarks.bench_tokenize", "--child", source, cache, name]
                done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
                found.setdefault(source, {})[label] = json.loads(done.stdout)
    return found


def main() -> int:
    """Measure and print."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-rows", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("SOURCE", "CACHE", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.child:
        source, cache, folder = arguments.child
        print(json.dumps(time_start(source, Path(folder), cache)))
        return 0
    everything: dict[str, Any] = {}
    for source in SOURCES:
        speeds = compare(source, rows=arguments.rows, rounds=arguments.rounds)
        everything[source] = speeds
        print(
            f"{source}, {arguments.rows:,} rows, {arguments.rounds} rounds, rows per processor second (median, range)"
        )
        for name, values in speeds.items():
            ratios = [ours / theirs for ours, theirs in zip(speeds["nexus"], values, strict=True)]
            ratio = "" if name == "nexus" else f"   nexus is {statistics.median(ratios):.2f}x"
            ratio += "" if name == "nexus" else f" ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {name:<30}{statistics.median(values):8,.0f} ({min(values):,.0f} to {max(values):,.0f}){ratio}")
    if arguments.cache_rows:
        everything["starts"] = starts(arguments.cache_rows)
        for source, labels in everything["starts"].items():
            for label, numbers in labels.items():
                print(
                    f"{source}, {label}: {numbers['rows']:,.0f} rows, {numbers['tokens']:,.0f} tokens in "
                    f"{numbers['cpu']:.2f} processor seconds ({numbers['wall']:.2f} s)"
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
