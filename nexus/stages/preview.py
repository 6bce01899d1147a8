"""What a training run would read: rows with their masks, lengths, duplicates, and a picture. No torch, no weights."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from nexus.data.describe import sft_remarks
from nexus.data.duplicates import exact_duplicates, near_duplicates, repeats, shared_rows
from nexus.data.encode import end_of_turn_ids
from nexus.data.masked_sample import show_sample
from nexus.data.pairs import longest_row
from nexus.data.token_cache import CorpusRows
from nexus.data.token_rows import AnyRow, TokenRows
from nexus.errors import NexusError
from nexus.stages.prepare import prepare
from nexus.stages.tables import open_console, print_table
from nexus.storage.atomic import atomic_path
from nexus.types import TokenizedGroup

_PERCENTILES = (50, 90, 99)
_BAD_ROWS_SHOWN = 3
_BARS = 10
_BAR_WIDTH = 40  # characters of the longest bar
_ANY_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Lengths:
    """Facts about some rows.

    Attributes:
        rows: how many.
        tokens: of all rows.
        learned: tokens that count.
        percentiles: tokens that 50, 90 and 99 % of the rows do not exceed.
        longest: tokens of the longest row.
        too_long: rows longer than `data.max_seq_len`.
        silent: rows in which nothing is learned.
        copies: rows that repeat an earlier one.
        near: further rows that are almost an earlier one; None if nobody looked.
    """

    rows: int
    tokens: int
    learned: int
    percentiles: tuple[int, ...]
    longest: int
    too_long: int
    silent: int
    copies: int
    near: int | None

    def cells(self) -> list[str]:
        """The numbers as text, in the order of the table."""
        share = f"{self.learned:,} ({100 * self.learned / max(1, self.tokens):.0f} %)"
        numbers = [self.rows, self.tokens, *self.percentiles, self.longest, self.too_long, self.silent, self.copies]
        cells = [f"{number:,}" for number in numbers] + ["-" if self.near is None else f"{self.near:,}"]
        return [*cells[:2], share, *cells[2:]]


def preview(config: dict[str, Any]) -> dict[str, Lengths]:
    """Read and tokenize all rows of a training run, and say what they are like.

    Args:
        config: checked and resolved, plain containers; `preview` says how much to show.

    Returns:
        Facts by data source, and `all` of them.

    Raises:
        NexusError: whatever the data, the tokenizer or its template show to be wrong; `E-DAT-13` without rows. Rows
            that are unusable, too long or without anything to learn are counted here, not refused.
    """
    settings = config["preview"]
    started = time.perf_counter()
    prepared = prepare({**config, "data": config["data"] | {"max_bad_rows": _ANY_NUMBER}})
    corpus = prepared.corpus
    found, shown = corpus.looked_at()
    if not len(found.rows):
        raise NexusError(
            "E-DAT-13",
            f"there are no usable rows ({len(found.bad_rows)} unusable)",
            where="data",
            remedy=f"the first: {found.bad_rows[0]}" if found.bad_rows else "data.train=FILE or +capability=NAME",
        )
    corpus.keep()
    console = open_console()
    _show_rows(console, prepared.tokenizer, found.rows, shown, settings["rows"])
    console.rule("all rows")
    lengths = _row_lengths(found.rows, shown)
    facts = measure(
        found.rows,
        lengths,
        max_seq_len=corpus.max_seq_len - getattr(corpus, "answer_tokens", 0),
        similarity=settings["near_duplicates"],
    )
    show_facts(console, facts)
    show_histogram(console, lengths)
    _show_remarks(console, config, found, facts["all"], ends=end_of_turn_ids(prepared.tokenizer))
    if settings["png"] is not None:
        plot_lengths(Path(settings["png"]), found.rows, lengths, max_seq_len=corpus.max_seq_len)
        console.print(f"picture of the lengths: {settings['png']}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.1f} s; nothing was trained", highlight=False)
    return facts


def _row_lengths(rows: TokenRows, shown: Sequence[AnyRow]) -> NDArray[np.int64]:
    """[R] tokens that count against the limit; a group is as long as its prompt with the longest completion."""
    if isinstance(shown, TokenRows) or not isinstance(shown[0], TokenizedGroup):
        return rows.lengths
    return np.array([longest_row(group) for group in shown if isinstance(group, TokenizedGroup)], dtype=np.int64)


def measure(
    rows: TokenRows, lengths: NDArray[np.int64], *, max_seq_len: int, similarity: float | None
) -> dict[str, Lengths]:
    """Facts by source and over all.

    Args:
        rows: at least one row, before any limit.
        lengths: [R] tokens that count against the limit.
        max_seq_len: longest row that training takes, in tokens.
        similarity: of near duplicates; None does not look for them.

    Returns:
        Facts by source in the order of the rows, then `all`.
    """
    copies = exact_duplicates(rows)
    near = None if similarity is None else near_duplicates(rows, similarity=similarity) & ~repeats(rows) & ~copies
    columns = (lengths, rows.lengths, rows.targets, copies, near)
    facts = {
        source: _facts(np.flatnonzero(rows.source_index == index), *columns, max_seq_len=max_seq_len)
        for index, source in enumerate(rows.sources)
    }
    return facts | {"all": _facts(np.arange(len(rows)), *columns, max_seq_len=max_seq_len)}


def _facts(
    which: NDArray[np.int64],
    lengths: NDArray[np.int64],
    tokens: NDArray[np.int64],
    targets: NDArray[np.int64],
    copies: NDArray[np.bool_],
    near: NDArray[np.bool_] | None,
    *,
    max_seq_len: int,
) -> Lengths:
    chosen = lengths[which]
    return Lengths(
        rows=len(which),
        tokens=int(tokens[which].sum()),
        learned=int(targets[which].sum()),
        percentiles=tuple(int(n) for n in np.percentile(chosen, _PERCENTILES, method="inverted_cdf")),
        longest=int(chosen.max()),
        too_long=int((chosen > max_seq_len).sum()),
        silent=int((targets[which] == 0).sum()),
        copies=int(copies[which].sum()),
        near=None if near is None else int(near[which].sum()),
    )


def _show_rows(console: Console, tokenizer: Any, rows: TokenRows, shown: Sequence[AnyRow], count: int) -> None:
    """The first rows of every source, with their parts."""
    for index, source in enumerate(rows.sources):
        for row in np.flatnonzero(rows.source_index == index)[:count]:
            show_sample(console, tokenizer, shown[int(row)], title=source)


def show_facts(console: Console, facts: dict[str, Lengths]) -> None:
    """Print facts by source.

    Args:
        console: where to print.
        facts: what `measure` found.
    """
    percentiles = [f"{percent} %" for percent in _PERCENTILES]
    headers = ["rows", "tokens", "learned", *percentiles, "longest", "too long", "nothing to learn", "copies", "near"]
    rows = [[name, *numbers.cells()] for name, numbers in facts.items() if name != "all" or len(facts) > 2]
    title = "tokens of a row: what 50, 90 and 99 % of the rows do not exceed"
    print_table(console, title=title, headers=["source", *headers], rows=rows, keys=1)


def show_histogram(console: Console, lengths: NDArray[np.int64]) -> None:
    """Print how many rows have which length, as bars of text.

    Args:
        console: where to print.
        lengths: [R] tokens of each row, at least one.
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _BARS))  # whole tokens, so that every bin holds as many lengths
    counts = np.bincount((lengths - low) // width)
    starts = range(low, high + 1, width)
    ranges = [f"{start:,}-{start + width - 1:,}" if width > 1 else f"{start:,}" for start in starts]
    pad = max(map(len, ranges))
    console.print("rows by tokens (preview.png=FILE.png draws them by source)", highlight=False, soft_wrap=True)
    for name, count in zip(ranges, counts.tolist(), strict=True):
        bar = "█" * max(int(count > 0), round(_BAR_WIDTH * count / int(counts.max())))
        console.print(f"  {name:>{pad}}  {bar}{' ' if bar else ''}{count:,}", highlight=False, soft_wrap=True)


def _show_remarks(
    console: Console, config: dict[str, Any], found: CorpusRows, facts: Lengths, *, ends: Collection[int]
) -> None:
    """What training will say about these rows, before it says so."""
    data = config["data"]
    prompts = config["method"]["view"] == "prompts"  # are answered, and nothing of them is learned
    lines = []
    if facts.too_long and prompts:
        lines.append(f"prompts that leave no room for their answer in data.max_seq_len: {facts.too_long:,}")
    elif facts.too_long:
        what = {"error": "training refuses them", "drop": "training drops them", "truncate": "training cuts them"}
        remedy = f"; data.max_seq_len={facts.longest} takes all" if data["long_rows"] != "truncate" else ""
        lines.append(
            f"rows longer than data.max_seq_len={data['max_seq_len']}: {facts.too_long:,} "
            f"(data.long_rows={data['long_rows']}: {what[data['long_rows']]}{remedy})"
        )
    silent = 0 if prompts else facts.silent
    unusable = len(found.bad_rows) + silent
    if unusable:
        verdict = "training counts them" if unusable <= data["max_bad_rows"] else "training refuses them"
        lines.append(
            f"unusable rows: {len(found.bad_rows):,}, rows with nothing to learn: {silent:,} "
            f"(data.max_bad_rows={data['max_bad_rows']}: {verdict})"
        )
        lines += [f"  {error}" for error in found.bad_rows[:_BAD_ROWS_SHOWN]]
    if len(found.held_out_rows):
        leaked = shared_rows(found.rows, found.held_out_rows)
        lines.append(f"held-out rows: {len(found.held_out_rows):,}, of which training rows as well: {leaked:,}")
    if config["method"]["view"] == "sft":
        lines += sft_remarks(found.rows, count_tokens=config["method"]["count_tokens"], ends=ends)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def plot_lengths(path: Path, rows: TokenRows, lengths: NDArray[np.int64], *, max_seq_len: int) -> None:
    """Histogram of row lengths by source; the file appears whole or not at all.

    Args:
        path: PNG to write, in an existing folder.
        rows: at least one row.
        lengths: [R] tokens that count against the limit.
        max_seq_len: marked by a line, in tokens.
    """
    from matplotlib.figure import Figure

    edges = np.histogram_bin_edges(lengths, bins=min(60, max(5, int(lengths.max() - lengths.min()))))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    parts = [lengths[rows.source_index == index] for index in range(len(rows.sources))]
    axes.hist(parts, bins=list(edges), stacked=True, label=list(rows.sources))
    if max_seq_len <= edges[-1]:
        axes.axvline(max_seq_len, color="black", linewidth=1, linestyle="--", label=f"data.max_seq_len={max_seq_len}")
    axes.set_xlabel("tokens of a row")
    axes.set_ylabel("rows")
    axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
