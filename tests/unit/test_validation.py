"""Validation while training: the right number, the best step kept, and not one bit of the weights changed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from nexus.callbacks.checkpoint import checkpoints, newest_whole
from nexus.callbacks.metrics_csv import MetricsCsv, read_metrics
from nexus.callbacks.validation import Validation
from nexus.data.module import NexusDataModule
from nexus.errors import NexusError
from nexus.models.saved_state import TENSORS_NAME, folder_name, read_state
from nexus.packaging.card import model_card
from nexus.stages.best import restore_best, validation_section
from nexus.stages.report import plot_loss
from tests import faults, runs, small
from tests.unit.test_report import CARD

STEPS = 6
#: Held-out losses as if measured after steps 1 to 6: the least at step 2, and again at step 4.
LOSSES = (3.0, 1.0, 2.0, 1.0, 2.0, 4.0)


def scripted(folder: Path, losses: Iterator[float] | None = None, **changes: Any) -> Validation:
    """Validation after every step, with losses that are given: which step is the best is then known."""
    given = iter(LOSSES) if losses is None else losses
    return small.make_validation(folder, every_n_steps=1, loss_of=lambda model, batches: next(given), **changes)


def newest(folder: Path) -> tuple[int, Path]:
    found = newest_whole(folder / "checkpoints", tell=print)
    assert found is not None
    return found


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Last checkpoints agree in every trained weight and every number of the optimizer, bit for bit."""
    a, b = (read_state(newest(folder)[1]) for folder in (ours, theirs))
    assert a["global_step"] == b["global_step"]
    assert a["nexus"] == b["nexus"]
    assert a["lr_schedulers"] == b["lr_schedulers"]
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    moments = [found["optimizer_states"][0]["state"] for found in (a, b)]
    assert len(moments[0]) == len(a["state_dict"]) >= 24
    assert all(torch.equal(moments[0][i][k], moments[1][i][k]) for i in moments[0] for k in moments[0][i])


@pytest.mark.parametrize("name", runs.SFT_LIKE)
def test_not_a_bit_of_the_weights_depends_on_it(name: str, tmp_path: Path) -> None:
    """With dropout and noise on the embeddings, full and with every adapter."""
    runs.train(name, tmp_path / "without", steps=3, ambient=1)
    validation = small.make_validation(tmp_path, every_n_steps=1)
    method = runs.train(name, tmp_path / "with", steps=3, ambient=2, callbacks=(validation,))
    assert validation.count == 3
    assert all(module.training for module in method.modules())
    assert_same_training(tmp_path / "with", tmp_path / "without")


def test_stopped_and_resumed_it_knows_the_best_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    runs.train("lora", tmp_path / "without", steps=STEPS, ambient=1)
    whole = small.make_validation(tmp_path)
    runs.train("lora", tmp_path / "whole", steps=STEPS, ambient=2, callbacks=(whole,))
    assert (whole.count, whole.rows) == (3, 2)
    runs.train(
        "lora", tmp_path / "parts", steps=STEPS, until=5, ambient=3, callbacks=(small.make_validation(tmp_path),)
    )
    later = small.make_validation(tmp_path)
    step, path = newest(tmp_path / "parts")
    assert step == 5, "the stop lies between two measurements"
    runs.train("lora", tmp_path / "parts", steps=STEPS, ambient=4, resume=path, callbacks=(later,))
    assert (later.best, later.last, later.count) == (whole.best, whole.last, 3)
    assert 0 < later.seconds_here < later.seconds
    for folder in ("whole", "parts"):
        assert_same_training(tmp_path / folder, tmp_path / "without")


def test_killed_while_it_measures(tmp_path: Path) -> None:
    """The second measurement never ends; the run goes on from the checkpoint of the step before."""
    runs.train("lora", tmp_path / "without", steps=STEPS, ambient=1)
    folder, calls = tmp_path / "killed", iter(range(9))

    def loss_of(model: Any, batches: Any) -> float:
        if next(calls) == 1:
            faults.die()
        return 1.0

    def work() -> None:
        validation = small.make_validation(tmp_path, loss_of=loss_of)
        runs.train("lora", folder, steps=STEPS, ambient=2, callbacks=(validation,), every_n_steps=1)

    assert faults.end_of(faults.in_a_child(work)) == -signal.SIGKILL
    step, path = newest(folder)
    assert step == 3
    again = small.make_validation(tmp_path)
    runs.train("lora", folder, steps=STEPS, ambient=3, resume=path, callbacks=(again,))
    assert (again.count, again.last is not None and again.last[0]) == (3, STEPS)
    assert_same_training(folder, tmp_path / "without")


def test_a_run_whose_training_is_over_still_knows_the_best(tmp_path: Path) -> None:
    first = scripted(tmp_path)
    runs.train("sft", tmp_path, steps=STEPS, ambient=1, callbacks=(first,))
    later = scripted(tmp_path)
    runs.train("sft", tmp_path, steps=STEPS, ambient=2, resume=newest(tmp_path)[1], callbacks=(later,))
    assert later.summary() == first.summary()
    assert later.seconds_here == 0


def test_the_loss_is_that_of_torch_over_the_rows(tmp_path: Path) -> None:
    validation = small.make_validation(tmp_path, every_n_steps=100)  # the last step is measured all the same
    method, data = runs.build("lora", steps=2)
    small.make_trainer(tmp_path, max_steps=2, callbacks=[validation]).fit(method, datamodule=data)
    method.eval()
    total, count = 0.0, 0
    for row in data.corpus.held_out_rows:
        ids = torch.tensor(row.input_ids)
        with torch.no_grad():
            logits = method.policy(input_ids=ids[None]).logits[0]
        learned = torch.tensor(row.loss_mask)[1:]
        total += float(cross_entropy(logits[:-1][learned].double(), ids[1:][learned], reduction="sum"))
        count += int(learned.sum())
    assert len(data.corpus.held_out_rows) == 2
    assert validation.last is not None
    assert validation.last[0] == 2
    assert validation.last[1] == pytest.approx(total / count, rel=1e-5)


def test_rows_are_taken_evenly_and_no_larger_than_memory_allows(tmp_path: Path) -> None:
    corpus = small.make_corpus(small.make_tokenizer())
    corpus.held_out_rows = small.make_rows(10)
    data = NexusDataModule(corpus)

    def names(batches: Any) -> list[str]:
        return [name for batch in batches for name in batch.ids]

    assert sorted(names(data.validation_batches(None))) == sorted(f"row:{i}" for i in range(10))
    four = data.validation_batches(4)
    assert sorted(names(four)) == ["row:0", "row:2", "row:5", "row:7"]
    assert max(len(batch.ids) for batch in four) == corpus.micro_batch_size == 2
    method = small.make_method()
    method.micro_batch_limit = 1  # memory was short: from then on every row stands alone
    assert [len(batch.ids) for batch in method.within_limit(four)] == [1] * 4


def test_the_best_step_is_saved_and_kept(tmp_path: Path) -> None:
    validation = scripted(tmp_path)
    runs.train("sft", tmp_path, steps=STEPS, ambient=1, callbacks=(validation,), every_n_steps=5, keep=1)
    assert validation.best == (2, 1.0), "of equal losses the earlier one counts"
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [2, 6]
    assert validation.summary() | {"seconds": 0} == {
        "best": {"step": 2, "loss": 1.0}, "last": {"step": 6, "loss": 4.0}, "measurements": 6, "seconds": 0,
    }  # fmt: skip


def test_a_resumed_run_keeps_the_best_of_before(tmp_path: Path) -> None:
    losses = iter(LOSSES)
    for until in (4, STEPS):
        found = newest_whole(tmp_path / "checkpoints", tell=print)
        runs.train(
            "sft", tmp_path, steps=STEPS, until=until, ambient=1, callbacks=(scripted(tmp_path, losses),), keep=1,
            resume=found[1] if found else None,
        )  # fmt: skip
        assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [2, until]


def test_a_run_can_end_with_the_weights_of_the_best_step(tmp_path: Path) -> None:
    told: list[str] = []
    validation = scripted(tmp_path, restore_best=True)
    method = runs.train("lora", tmp_path, steps=STEPS, ambient=1, callbacks=(validation,))
    tokens, last = method.tokens_seen, small.weights(method)
    folder = tmp_path / "checkpoints"
    restore_best(method, None, folder, tell=told.append)
    restore_best(method, scripted(tmp_path, restore_best=True), folder, tell=told.append)  # of no training
    assert told == []
    restore_best(method, validation, folder, tell=told.append)
    saved = read_state(folder / folder_name(2))["state_dict"]
    assert all(torch.equal(dict(method.named_parameters())[name], value) for name, value in saved.items())
    assert any(not torch.equal(last[name], value) for name, value in saved.items())
    assert method.tokens_seen == tokens, "what was trained is told of the whole run"
    assert told == ["weights of step 2: their held-out loss 1.0000 was the least, that of the last step 6 is 4.0000"]
    assert validation_section(validation)["validation"]["weights_of_step"] == 2
    validation.restore_best = False
    assert validation_section(validation)["validation"]["weights_of_step"] == 6
    assert validation_section(None) == {}


def test_a_damaged_best_checkpoint_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    validation = scripted(tmp_path, restore_best=True)
    method = runs.train("lora", tmp_path, steps=STEPS, ambient=1, callbacks=(validation,))
    tensors = tmp_path / "checkpoints" / folder_name(2) / TENSORS_NAME
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    with pytest.raises(NexusError) as caught:
        restore_best(method, validation, tmp_path / "checkpoints", tell=print)
    assert caught.value.code == "E-RES-04"
    assert "restore_best: false" in caught.value.remedy


def test_measured_steps_have_a_row_and_training_keeps_its_speed(tmp_path: Path) -> None:
    validation = small.make_validation(tmp_path, every_n_steps=3)
    metrics = MetricsCsv(every_n_steps=4, path=str(tmp_path / "metrics.csv"))
    runs.train("sft", tmp_path, steps=5, ambient=1, callbacks=(validation, metrics))
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "metrics.csv")}
    assert list(rows) == [1, 3, 4, 5]
    assert [step for step, row in rows.items() if "val/loss" in row] == [3, 5]
    assert validation.last == (5, rows[5]["val/loss"])
    assert sum(rows[step]["val/seconds"] for step in (3, 5)) == pytest.approx(validation.seconds, abs=2e-3)
    plot_loss(tmp_path / "loss.png", {"train": list(rows.values())})
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_switched_off_it_measures_nothing(tmp_path: Path) -> None:
    validation = scripted(tmp_path, enabled=False)
    runs.train("sft", tmp_path, steps=2, ambient=1, callbacks=(validation,))
    assert (validation.best, validation.count) == (None, 0)
    assert validation_section(validation) == {}


def test_the_card_names_the_step_whose_weights_it_is_about() -> None:
    found = {"best": {"step": 80, "loss": 1.0}, "last": {"step": 120, "loss": 1.5}, "weights_of_step": 80}
    assert "those of step 80" in model_card(**CARD, validation=found)
    assert model_card(**CARD, validation=found | {"weights_of_step": 120}) == model_card(**CARD)
