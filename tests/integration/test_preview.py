"""`nexus.preview` through the command line: numbers that can be counted by hand, mistakes, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

ROWS = [{"prompt": f"What follows {n}?", "completion": str(n + 1)} for n in range(20)]
SILENT = {"messages": [{"role": "user", "content": "Hi"}]}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path.name


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_own_file_with_everything_wrong(run_door: Callable[..., Any], tmp_path: Path) -> None:
    long = {"prompt": "Say it", "completion": "word " * 60}
    train = write(tmp_path / "own.jsonl", [*ROWS, ROWS[0], ROWS[1], long, SILENT, "garbage", {"unknown": 1}])
    held_out = write(tmp_path / "held.jsonl", [ROWS[3], {"prompt": "New?", "completion": "Yes."}])
    words = [f"data.train={train}", f"data.validation={held_out}", "data.max_seq_len=50", "preview.png=lengths.png"]
    finished = run_door("preview", *words, "preview.near_duplicates=null")
    assert finished.status == 0, finished.errors
    shown = finished.output
    [line] = [line for line in shown.splitlines() if line.startswith("│ own files")]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1] == "24"
    assert cells[8:] == ["1", "1", "2", "-"]  # too long, nothing to learn, copies, near
    longest = int(cells[7])
    assert longest > 60
    assert "rows longer than data.max_seq_len=50: 1 (data.long_rows=error: training refuses them; " in shown
    assert f"data.max_seq_len={longest} takes all)" in shown
    assert "unusable rows: 2, rows with nothing to learn: 1 (data.max_bad_rows=0: training refuses them)" in shown
    assert "own.jsonl:25" in shown
    assert "held-out rows: 2, of which training rows as well: 1" in shown
    assert "What follows 0?" in shown
    assert "nothing was trained" in shown
    assert "rows by tokens (preview.png=FILE.png draws them by source)" in shown
    bars = [line.split() for line in shown.splitlines() if "█" in line]
    assert sum(int(count) for *_, count in bars) == 24
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert "token cache: miss" in finished.errors
    again = run_door("preview", *words, "preview.rows=0", "data.long_rows=drop", "data.max_seq_len=60")
    assert "token cache: hit" in again.errors
    assert "training drops them" in again.output
    assert "What follows" not in again.output


def test_words_of_the_train_door(run_door: Callable[..., Any], tmp_path: Path) -> None:
    words = ["+capability=tools", "scale=quick", "method=lora", "run_dir=x", "callbacks.checkpoint.keep=1"]
    finished = run_door("preview", *words)
    assert finished.status == 0, finished.errors
    assert "<tool_call>" in finished.output
    [line] = [line for line in finished.output.splitlines() if line.startswith("│ nexus_tools")]
    assert line.split("│")[2].strip() == "16"
    assert "W-CFG-08  run_dir: a preview writes no run" in finished.errors
    assert "dry_run" not in finished.errors
    assert all(name.startswith("outputs/.cache/tokens/") for name in files(tmp_path))
    other = run_door("preview", *words, "data.cache=false", "dry_run=true")
    assert "W-CFG-08  dry_run: " in other.errors
    assert "token cache" not in other.errors
    assert other.output.splitlines()[:8] == finished.output.splitlines()[:8]


def test_training_finds_what_the_preview_tokenized(run_door: Callable[..., Any], tmp_path: Path) -> None:
    train = f"data.train={write(tmp_path / 'own.jsonl', ROWS)}"
    assert "token cache: miss: 19 rows and 1 held out" in run_door("preview", train).errors
    short = ["method.max_steps=1", "evaluation.before=false", "evaluation.after=false", "package.enabled=false"]
    trained = run_door("train", train, *short, "run_dir=run", "data.max_seq_len=64", "seed=42")
    assert trained.status == 0, trained.errors
    assert "token cache: hit: 19 rows and 1 held out" in trained.errors


def test_no_torch_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    from tests.architecture.readme_tree import REPOSITORY

    code = (
        "import sys; sys.argv = ['preview', '+capability=cot', 'scale=quick', 'preview.png=x.png']\n"
        "from nexus.preview import main\n"
        "assert main() == 0\n"
        "print([name for name in ('torch', 'lightning', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ([], 64, "E-CFG-09"),
        (["+capability=toolz"], 64, "did you mean tools?"),
        (["+capability=tools", "preview.rowz=1"], 64, "did you mean preview.rows?"),
        (["+capability=tools", "preview.rows=-1"], 64, "E-CFG-02"),
        (["+capability=tools", "preview.near_duplicates=2"], 64, "E-CFG-02"),
        (["+capability=tools", "preview.png=nowhere/x.png"], 73, "E-OUT-03"),
        (["+capability=tools", "preview.png=lengths.xyz"], 64, "preview.png=lengths.png"),
        (["+capability=tools", "resume=x"], 64, "E-CFG-03"),
        (["data.train=missing.jsonl"], 66, "E-MIS-02"),
        (["data.train=garbage.jsonl"], 65, "E-DAT-13"),
        (["data.train=endless.jsonl", "base_model.chat_template=bomb.jinja"], 77, "E-SEC-04"),
        (["+capability=vision_qa"], 64, "E-CAP-01"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_mistakes(run_door: Callable[..., Any], tmp_path: Path, words: list[str], status: int, code: str) -> None:
    write(tmp_path / "garbage.jsonl", ["nonsense"])
    write(tmp_path / "endless.jsonl", ROWS)
    loops = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    (tmp_path / "bomb.jinja").write_text(loops + "{{ messages[0].content }}")
    before = files(tmp_path)
    finished = run_door("preview", *words)
    assert finished.status == status, finished.errors
    assert code in finished.errors
    assert "Traceback" not in finished.errors
    kept = [name for name in files(tmp_path) if not name.startswith("outputs/.cache/")]
    assert kept == before


PAIRS = [
    {"prompt": f"What follows {n}?", "chosen": f"{n + 1}, of course", "rejected": f"{n - 1} or so"} for n in range(20)
]


def cells_of(shown: str, source: str) -> list[str]:
    [line] = [line for line in shown.splitlines() if line.startswith(f"│ {source}")]
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_pairs_are_shown_as_the_method_reads_them(run_door: Callable[..., Any], tmp_path: Path, method: str) -> None:
    equal = {"prompt": "Same?", "chosen": "Yes.", "rejected": "Yes."}
    train = f"data.train={write(tmp_path / 'pairs.jsonl', [*PAIRS, equal])}"
    finished = run_door("preview", train, f"method={method}", "data.max_bad_rows=1")
    assert finished.status == 0, finished.errors
    shown = finished.output
    assert all(f"--- {title}" in shown for title in ("chosen", "rejected"))
    assert "1, of course" in shown or "2, of course" in shown
    cells = cells_of(shown, "own files")
    assert cells[1] == "19"
    assert 0 < int(cells[3].split()[0].replace(",", "")) < int(cells[2].replace(",", ""))
    assert cells[9] == "0"  # nothing to learn
    assert "unusable rows: 1, rows with nothing to learn: 0 (data.max_bad_rows=1: training counts them)" in shown
    assert "held-out rows: 1" in shown


def test_prompts_are_not_rows_with_nothing_to_learn(run_door: Callable[..., Any]) -> None:
    finished = run_door("preview", "+capability=tools", "method=grpo", "scale=quick")
    assert finished.status == 0, finished.errors
    assert "--- gold:" in finished.output
    assert cells_of(finished.output, "nexus_tools")[1] == "16"
    assert "unusable rows" not in finished.output


def test_answers_of_one_label_are_refused_before_training(run_door: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"What follows {n}?", "completion": str(n + 1), "label": True} for n in range(8)]
    train = f"data.train={write(tmp_path / 'good.jsonl', rows)}"
    for door, *words in (("preview",), ("train", "dry_run=true")):
        refused = run_door(door, train, "method=kto", *words)
        assert refused.status == 65
        assert "E-PREF-06" in refused.errors


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Say nothing", "response": ""}, "W-DAT-44  21 of 21 rows have an empty answer"),
        ({"text": "A parrot has feathers."}, "W-DAT-43  21 of 21 rows are plain text"),
    ],
)
def test_what_a_dry_run_warns_of(run_door: Callable[..., Any], tmp_path: Path, row: dict[str, str], words: str) -> None:
    train = f"data.train={write(tmp_path / 'rows.jsonl', [row] * 21)}"
    for door, *more in (("preview",), ("train", "dry_run=true")):
        told = run_door(door, train, "data.validation_fraction=0", *more)
        assert told.status == 0, told.errors
        assert words in told.output
