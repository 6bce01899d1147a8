"""Needle retrieval by length: the shipped model beyond the rows it was trained on, with and without scaled positions.

    python -m tests.benchmarks.needle [--prompts 50] [--steps 20] [--trained none,yarn] [--json FILE]

A haystack is the lookup task of `nexus_tiny`'s pretraining, only longer: lines of `key: value` and a question for one
of them, so every other line distracts. Lengths are true token counts, template and question included. An answer is
right if it is the value and nothing else. Values of training and evaluation come from disjoint splits.

Asked are the base model as it is and with every kind of `base_model.rope`, and the same again after a short training
at the longest length; that training also runs without scaling, on the same rows in the same order, since training
alone helps too. Training is `python -m nexus.train`; peak memory is what its report says, and for answering the most
that the process held, prompts of one length answered one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.models import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
#: Of 13,134 rows drawn evenly from the three stages of pretraining none is longer than 388 tokens, and of each stage at
#: most 1 in 100 longer than 284; `data.max_seq_len` there is 1,024 and the config says 2,048, but no row came near.
TRAINED = 256
LENGTHS = (TRAINED, 2 * TRAINED, 4 * TRAINED)
FACTOR = 4
SCALINGS = ("none", "linear", "dynamic", "yarn")
QUESTIONS = 8  # of a training row: eight answers for the price of one long prompt
ROWS_PER_STEP = 4
MAX_NEW_TOKENS = 24


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat; one that ends with a question gets the head of its answer."""
    asks = messages[-1]["role"] == "user"
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=asks, return_dict=True)["input_ids"]
    return ids


def haystack(rng: random.Random, tokenizer: Any, *, split: str, tokens: int, questions: int) -> list[dict[str, str]]:
    """A table and questions about it with their answers, together as long as fits.

    Args:
        rng: source of randomness.
        tokenizer: counts.
        split: "train" or "eval".
        tokens: limit of the whole chat; a line of the table more would be beyond it.
        questions: different lines to ask for, each at any depth.

    Returns:
        User and assistant messages in turn; the first holds the table.
    """
    from nexus.data.synthetic import pretrain_copy

    table: dict[str, str] = {}
    while len(table) * 6 < tokens:  # no line is shorter
        key, value = pretrain_copy.identifier(rng, split), pretrain_copy.value(rng, split)
        if key not in table and value not in table.values():
            table[key] = value
    lines = list(table.items())
    places = [rng.random() for _ in range(questions)]
    least, most = questions, len(lines)
    found: list[dict[str, str]] = []
    while least <= most:  # as many lines as fit, by halving
        count = (least + most) // 2
        chat = _chat(lines[:count], places)
        if len(encode(tokenizer, chat if questions > 1 else chat[:1])) <= tokens:
            found, least = chat, count + 1
        else:
            most = count - 1
    assert found, f"{tokens} tokens are too few for {questions} questions"
    return found


def _chat(lines: list[tuple[str, str]], places: list[float]) -> list[dict[str, str]]:
    """Questions about different lines, at the given shares of the depth or the next free line."""
    asked: list[int] = []
    for place in places:
        at = int(place * len(lines))
        while at in asked:
            at = (at + 1) % len(lines)
        asked.append(at)
    messages: list[dict[str, str]] = []
    for at in asked:
        messages.append({"role": "user", "content": f"What is {lines[at][0]}?"})
        messages.append({"role": "assistant", "content": lines[at][1]})
    table = "\n".join(f"{key}: {value}" for key, value in lines)
    messages[0]["content"] = f"{table}\n{messages[0]['content']}"
    return messages


def rope_settings(scaling: str) -> dict[str, Any]:
    """`base_model.rope` of an arm."""
    if scaling == "none":
        return {"type": None, "factor": 1.0, "original_max_position_embeddings": None}
    return {"type": scaling, "factor": FACTOR, "original_max_position_embeddings": TRAINED}


def ask(path: str, scaling: str, prompts: int) -> dict[str, Any]:
    """Answer the prompts of every length in this process.

    Args:
        path: of the model, `asset:nexus_tiny` or a package, which keeps the scaling that it was trained with.
        scaling: to load it with.
        prompts: of each length.

    Returns:
        By length: `right`, a list of 0 and 1; `tokens`, of the mean prompt; `peak_mib`.
    """
    import torch

    from nexus.hardware.usage import peak_memory_bytes, reset_peak_memory
    from nexus.models.loader import load_model
    from nexus.rollout.generate import generate

    torch.set_num_threads(1)
    tokenizer = load_tokenizer()
    model = load_model(
        path=path, architecture=None, revision=None, trust_remote_code=False, seed=0, dtype="fp32",
        rope=rope_settings(scaling),
    )  # fmt: skip
    found: dict[str, Any] = {}
    for tokens in LENGTHS:
        rng = random.Random(f"needle/eval/{tokens}")
        chats = [haystack(rng, tokenizer, split="eval", tokens=tokens, questions=1) for _ in range(prompts)]
        ids = [encode(tokenizer, chat[:1]) for chat in chats]
        reset_peak_memory()
        answers = generate(
            model=model, tokenizer=tokenizer, prompts=ids, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0,
            seeds=[0] * prompts, batch_size=1,
        )  # fmt: skip
        right = [int(answer.text.strip() == chat[1]["content"]) for answer, chat in zip(answers, chats, strict=True)]
        mean = sum(map(len, ids)) / prompts
        found[str(tokens)] = {"right": right, "tokens": mean, "peak_mib": peak_memory_bytes() / 2**20}
    return found


def write_rows(path: Path, *, tokens: int, rows: int) -> None:
    """A file of training chats of one length."""
    tokenizer = load_tokenizer()
    rng = random.Random(f"needle/train/{tokens}")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            chat = haystack(rng, tokenizer, split="train", tokens=tokens, questions=QUESTIONS)
            file.write(json.dumps({"messages": chat}) + "\n")


def run(*command: str) -> str:
    """Standard output of a Python module in a process of its own, one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def train(folder: Path, scaling: str, *, tokens: int, steps: int) -> tuple[str, dict[str, Any]]:
    """Train through the door on rows of one length; all scalings see the same rows in the same order.

    Args:
        folder: of rows, cache and runs.
        scaling: of the positions.
        tokens: length of the rows.
        steps: optimizer steps.

    Returns:
        Folder of the package, and `train` of the report.
    """
    rows = folder / f"rows_{tokens}_{steps}.jsonl"
    if not rows.exists():
        write_rows(rows, tokens=tokens, rows=steps * ROWS_PER_STEP)
    home = folder / f"{scaling}_{tokens}_{steps}"
    rope = [f"base_model.rope.{key}={json.dumps(value)}" for key, value in rope_settings(scaling).items()]
    run(
        "nexus.train", "base_model=nexus_tiny", f"data.train={rows}", "data.validation_fraction=0", "hardware=cpu",
        f"data.max_seq_len={tokens}", f"data.global_batch_size={ROWS_PER_STEP}", "hardware.threads=1",
        f"hardware.micro_batch_size={ROWS_PER_STEP}", "method.lr=1e-3", "callbacks.samples=null",
        f"paths.cache_dir={folder / 'cache'}", f"paths.output_dir={folder}", f"run_dir={home}", *rope,
    )  # fmt: skip
    report = json.loads((home / "report.json").read_text(encoding="utf-8"))
    assert report["train"]["global_step"] == steps, report["train"]
    return str(home / "package"), report["train"]


def cell(result: dict[str, Any]) -> str:
    """`0.450 [0.331, 0.575]`: share of right answers with Wilson's interval."""
    from nexus.evaluation.statistics import wilson_interval

    right = result["right"]
    low, high = wilson_interval(sum(right), len(right))
    return f"{sum(right) / len(right):.3f} [{low:.3f}, {high:.3f}]"


def show(answers: dict[str, dict[str, Any]], training: dict[str, dict[str, Any]]) -> None:
    """Print the tables."""
    from nexus.evaluation.statistics import paired_bootstrap

    first = next(iter(answers.values()))
    count = len(next(iter(first.values()))["right"])
    lengths = [f"{length} (mean {first[str(length)]['tokens']:.0f})" for length in LENGTHS]
    print(f"right answers of {count} by tokens of the prompt, 95 % intervals (Wilson)\n")
    print(f"{'':<26}" + "".join(f"{length:>24}" for length in lengths))
    for arm, found in answers.items():
        print(f"{arm:<26}" + "".join(f"{cell(found[str(length)]):>24}" for length in LENGTHS))
    plain = answers.get("none, trained")
    for arm, found in answers.items():
        if plain is None or not arm.endswith(", trained") or found is plain:
            continue
        tests = (paired_bootstrap(plain[key]["right"], found[key]["right"]) for key in map(str, LENGTHS))
        gains = "".join(f"{t.difference:+.3f} (p {t.p_value:.4f})".rjust(24) for t in tests)
        print(f"{arm + ' - none':<26}{gains}")
    print("\npeak memory, MiB (whole process)\n")
    print(f"{'answering one prompt':<26}" + "".join(f"{first[str(n)]['peak_mib']:>24,.0f}" for n in LENGTHS))
    peaks = (training[str(n)]["peak_memory_bytes"] / 2**20 for n in LENGTHS)
    print(f"{f'training, {ROWS_PER_STEP} rows at once':<26}" + "".join(f"{peak:>24,.0f}" for peak in peaks))


def main() -> None:
    """Measure and print; with `--child`, answer for one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=50, help="of each length")
    parser.add_argument("--steps", type=int, default=20, help=f"optimizer steps of {ROWS_PER_STEP} long rows")
    parser.add_argument("--untrained", default=",".join(SCALINGS), help=f"of {', '.join(SCALINGS)}")
    parser.add_argument("--trained", default="none,yarn", help="scalings to train with")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--child", nargs=2, metavar=("PATH", "SCALING"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print("\n" + json.dumps(ask(*given.child, given.prompts)))
        return

    def answer(path: str, scaling: str) -> dict[str, Any]:
        printed = run("tests.benchmarks.needle", "--child", path, scaling, "--prompts", str(given.prompts))
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found

    started = time.monotonic()
    answers = {
        f"{scaling}, as shipped": answer("asset:nexus_tiny", scaling)
        for scaling in filter(None, given.untrained.split(","))
    }
    training: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for tokens in LENGTHS[:-1]:  # for their memory
            training[str(tokens)] = train(Path(name), "none", tokens=tokens, steps=2)[1]
        for scaling in given.trained.split(","):
            package, told = train(Path(name), scaling, tokens=LENGTHS[-1], steps=given.steps)
            training.setdefault(str(LENGTHS[-1]), told)
            answers[f"{scaling}, trained"] = answer(package, "none")
    show(answers, training)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{time.monotonic() - started:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of them of the processor")
    if given.json:
        given.json.write_text(json.dumps({"answers": answers, "training": training}, indent=2) + "\n")


if __name__ == "__main__":
    main()
