"""Tokenized rows in a few flat arrays: 5 bytes a token in memory, or mapped from files and read when needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from nexus.types import TokenizedExample, TokenizedGroup

#: A row as a method reads it: alone, or a prompt with its completions.
AnyRow = TokenizedExample | TokenizedGroup


@dataclass(frozen=True, eq=False)
class TokenRows(Sequence[TokenizedExample]):
    """Rows of tokens; R rows of N tokens in all.

    Attributes:
        input_ids: [N] int32, row after row.
        loss_mask: [N] bool, True where the token is learned.
        offsets: [R + 1] int64, where each row starts, and N.
        names: [bytes] uint8, UTF-8 of the rows' ids, one after the other.
        name_offsets: [R + 1] int64, where each id starts.
        source_index: [R] int32, the row's place in `sources`.
        sources: names of the data sources.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    names: NDArray[np.uint8]
    name_offsets: NDArray[np.int64]
    source_index: NDArray[np.int32]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, rows: Iterable[AnyRow]) -> TokenRows:
        """Lay rows out flat."""
        rows = list(rows)
        return cls.from_parts(
            ids=[(row.id, row.source) for row in rows],
            input_ids=[np.array(row.input_ids, dtype=np.int32) for row in rows],
            loss_mask=[np.array(row.loss_mask, dtype=np.bool_) for row in rows],
            lengths=[len(row.input_ids) for row in rows],
        )

    @classmethod
    def from_parts(
        cls,
        *,
        ids: Sequence[tuple[str, str]],
        input_ids: Sequence[NDArray[np.int32]],
        loss_mask: Sequence[NDArray[np.bool_]],
        lengths: Sequence[int],
    ) -> TokenRows:
        """Join pieces of rows.

        Args:
            ids: id and source of each row.
            input_ids: pieces of any number of rows, in order.
            loss_mask: pieces of the same lengths.
            lengths: tokens of each row.

        Returns:
            The rows.
        """
        sources = tuple(dict.fromkeys(source for _, source in ids))
        place = {source: index for index, source in enumerate(sources)}
        encoded = [name.encode("utf-8", "surrogatepass") for name, _ in ids]
        return cls(
            input_ids=np.concatenate([*input_ids, np.empty(0, np.int32)]),
            loss_mask=np.concatenate([*loss_mask, np.empty(0, np.bool_)]),
            offsets=_starts(lengths),
            names=np.frombuffer(b"".join(encoded), dtype=np.uint8),
            name_offsets=_starts([len(name) for name in encoded]),
            source_index=np.array([place[source] for _, source in ids], dtype=np.int32),
            sources=sources,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...

    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        """One row, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        start, end = self.offsets[index], self.offsets[index + 1]
        return TokenizedExample(
            id=self.name(index),
            source=self.sources[self.source_index[index]],
            input_ids=self.input_ids[start:end].tolist(),
            loss_mask=self.loss_mask[start:end].tolist(),
        )

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same rows."""
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def name(self, index: int) -> str:
        """Id of row `index`."""
        start, end = self.name_offsets[index], self.name_offsets[index + 1]
        return self.names[start:end].tobytes().decode("utf-8", "surrogatepass")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> NDArray[np.int64]:
        """[R] learned tokens of each row; the first token has no predecessor and never counts."""
        counts = np.zeros(len(self), dtype=np.int64)
        filled = np.flatnonzero(self.lengths)
        if len(filled):  # rows without tokens take no part: reduceat would give them their successor's first value
            starts = self.offsets[filled]
            counts[filled] = np.add.reduceat(self.loss_mask, starts, dtype=np.int64) - self.loss_mask[starts]
        return counts

    def take(self, rows: NDArray[np.int64], *, max_seq_len: int) -> TokenRows:
        """Chosen rows, cut at a length.

        Args:
            rows: [K] which rows, in their new order.
            max_seq_len: tokens of a row that are kept.

        Returns:
            The rows; itself if all are kept whole.
        """
        lengths = np.minimum(self.lengths[rows], max_seq_len)
        if len(rows) == len(self) and lengths.sum() == self.offsets[-1] and (np.diff(rows) > 0).all():
            return self
        pieces = [slice(start, start + length) for start, length in zip(self.offsets[rows], lengths, strict=True)]
        return TokenRows.from_parts(
            ids=[(self.name(row), self.sources[self.source_index[row]]) for row in rows],
            input_ids=[self.input_ids[piece] for piece in pieces],
            loss_mask=[self.loss_mask[piece] for piece in pieces],
            lengths=lengths.tolist(),
        )

    def rows_by_source(self) -> dict[str, int]:
        """Number of rows of each source, in the order in which they first appear."""
        counts = np.bincount(self.source_index, minlength=len(self.sources))
        return dict(zip(self.sources, counts.tolist(), strict=True))

    def sha256(self) -> str:
        """Hash of the lengths, token ids and masks of all rows, in order, on every machine the same."""
        digest = hashlib.sha256()
        for numbers in (self.lengths.astype("<i8"), self.input_ids.astype("<i4", copy=False), self.loss_mask):
            digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()


def flat_rows(rows: Sequence[AnyRow]) -> TokenRows:
    """Rows as plain tokens; a group as its prompt and then all completions."""
    return rows if isinstance(rows, TokenRows) else TokenRows.of(rows)


def rows_sha256(rows: Sequence[AnyRow], flat: TokenRows) -> str:
    """Hash of all that is learned from: the tokens, and what groups carry besides them (labels, margins).

    Args:
        rows: as a method reads them.
        flat: the same as plain tokens.

    Returns:
        That of the tokens alone where there is nothing else.
    """
    groups = () if isinstance(rows, TokenRows) else rows
    carried = [row.values for row in groups if isinstance(row, TokenizedGroup)]
    if not any(carried):
        return flat.sha256()
    return hashlib.sha256(json.dumps([flat.sha256(), carried], sort_keys=True).encode()).hexdigest()


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _same(left: TokenizedExample, right: object) -> bool:
    return left == right
