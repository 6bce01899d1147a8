"""Prompts that are answered while training, with the gold that their rewards compare with. Imports no torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from nexus.data.corpus import Corpus, CorpusSample
from nexus.data.duplicates import exact_duplicates
from nexus.data.mixture import smaller
from nexus.data.sources import BadRows
from nexus.data.template import RowCounts, encode_prompts
from nexus.data.token_cache import CorpusRows
from nexus.data.token_rows import AnyRow, TokenRows, flat_rows
from nexus.errors import NexusError
from nexus.types import Example, TokenizedPrompt


class PromptCorpus(Corpus):
    """Prompts of the training splits; steps, order and held-out prompts are those of any corpus.

    Args:
        answer_tokens: limit of an answer; prompt and answer together must fit `max_seq_len`.
        **common: arguments of `Corpus`.
    """

    rows: list[TokenizedPrompt]  # type: ignore[assignment]

    def __init__(self, *, answer_tokens: int, **common: Any) -> None:
        super().__init__(**common)
        self.answer_tokens = answer_tokens

    def setup(self, stage: str | None = None, *, before_reading: Callable[[], None] | None = None) -> None:
        """Read and tokenize the prompts, anew for every run; a second call does nothing.

        Args:
            stage: `test` reads nothing, since capabilities are measured by their own prompts.
            before_reading: called first; may raise, so that nothing is read in vain.

        Raises:
            NexusError: as the readers; `E-LEN-04` for a prompt that leaves no room for its answer; `E-DAT-13` if no
                prompt is left.
        """
        if self.rows or stage == "test":
            return
        if before_reading is not None:
            before_reading()
        self.rows = self._limited(self._encoded(self._prompts()))
        self.flat = flat_rows(self.rows)  # type: ignore[arg-type]
        self.duplicates = int(exact_duplicates(self.flat).sum())
        self.data_sha256 = _sha256(self.rows)

    def looked_at(self) -> tuple[CorpusRows, Sequence[AnyRow]]:
        """All prompts as tokens, whatever their length, and with their gold.

        Returns:
            The prompts, nothing of which is learned, and once more with their parts.

        Raises:
            NexusError: as `setup`.
        """
        prompts: Any = self._encoded(self._prompts())
        return CorpusRows(flat_rows(prompts), TokenRows.of(()), self.bad_rows.errors), prompts

    def sample(self, count: int) -> CorpusSample:
        """The first prompts of each source.

        Args:
            count: prompts of each source to look at.

        Returns:
            The prompts, and how many there are in all.

        Raises:
            NexusError: as `setup`.
        """
        cards = [card for named in self.sources.values() for card in named.values() if "train" in card["roles"]]
        sizes = [smaller(smaller(card["rows"], card["size"]), self.rows_per_source) for card in cards]
        part = copy.copy(self)
        part.rows_per_source = smaller(count, self.rows_per_source)
        part.bad_rows, part.counts = BadRows(self.bad_rows.limit), RowCounts()
        rows = part._limited(part._encoded(part._prompts()))
        known = [round(size * card["weight"]) for size, card in zip(sizes, cards, strict=True) if size is not None]
        total = sum(known) if len(known) == len(cards) else len(rows)
        return CorpusSample(rows, flat_rows(rows), total)  # type: ignore[arg-type]

    def describe(self) -> str:
        """One paragraph for the console."""
        lengths = [len(row.input_ids) for row in self.rows]
        lines = [
            f"data  {len(lengths):,} prompts of up to {max(lengths):,} tokens, answers of up to "
            f"{self.answer_tokens:,}; {self.num_steps:,} steps of {self.global_batch_size} prompts"
        ]
        left_out = [f"{count} {reason.replace('_', ' ')}" for reason, count in self.counts.dropped.items()]
        left_out += [f"{len(self.bad_rows.errors)} unusable"] if self.bad_rows.errors else []
        if left_out:
            lines.append(f"      left out: {', '.join(left_out)}")
        return "\n".join(lines)

    def _prompts(self) -> list[Example]:
        """Prompts of all sources, with their weights."""
        examples: list[Example] = []
        for name, cards in self.sources.items():
            for card in cards.values():
                examples += self._source_examples(name, card, "fit")[0]
        return examples

    def _encoded(self, examples: list[Example]) -> list[TokenizedPrompt]:
        return [
            TokenizedPrompt(example.id, example.source, ids, example)
            for example, ids in zip(examples, encode_prompts(self.tokenizer, examples), strict=True)
        ]

    def _limited(self, rows: list[TokenizedPrompt]) -> list[TokenizedPrompt]:
        """The prompts that leave room for an answer."""
        room = self.max_seq_len - self.answer_tokens
        kept = [row for row in rows if len(row.input_ids) <= room]
        if len(kept) < len(rows) and self.long_rows != "drop":
            worst = max(rows, key=lambda row: len(row.input_ids))
            raise NexusError(
                "E-LEN-04",
                f"{len(rows) - len(kept)} of {len(rows)} prompts leave no room for an answer of {self.answer_tokens} "
                f"tokens within data.max_seq_len={self.max_seq_len}, the longest has {len(worst.input_ids)} tokens",
                where=worst.id,
                remedy=f"data.max_seq_len={len(worst.input_ids) + self.answer_tokens} or data.long_rows=drop; a prompt "
                "is not cut, since what is cut off may be what was asked",
            )
        for _ in range(len(rows) - len(kept)):
            self.counts.drop("too_long")
        self.counts.kept = len(kept)
        if not kept:
            raise NexusError(
                "E-DAT-13",
                f"0 of {len(rows)} prompts are left to answer",
                where="data",
                remedy="raise data.max_seq_len, or mend the rows" if rows else "give a source with the role train",
            )
        return kept


def _sha256(rows: list[TokenizedPrompt]) -> str:
    """Hash of tokens and gold, in order: with other gold the same prompts teach something else."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps([row.id, row.input_ids, row.example.gold], ensure_ascii=False, sort_keys=True, default=str)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
