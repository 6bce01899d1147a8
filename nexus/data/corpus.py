"""The rows of a training phase: read, converted, tokenized and counted. Imports neither torch nor Lightning.

Rows come from the user's own files, from the sources of capabilities, or both. The held-out rows are the files given as
validation, else a share of the own training rows, and the evaluation split of every source.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexus.data.describe import describe_rows, sft_remarks, unmeasured_remarks
from nexus.data.duplicates import exact_duplicates, shared_rows
from nexus.data.encode import end_of_turn_ids
from nexus.data.formats import to_example
from nexus.data.hub import read_hub
from nexus.data.mixture import count_steps, smaller, split_held_out, weighted
from nexus.data.pairs import insist_on_both_labels, limit_pairs, measured_pairs, rows_of_pairs, tokenize_pairs
from nexus.data.progress import track
from nexus.data.sources import BadRows, Row, generate_rows, read_path
from nexus.data.template import CountTokens, LongRows, RowCounts, limit_rows, nothing_left, tokenize_examples
from nexus.data.token_cache import CorpusRows, TokenCache, source_identity, tokenizer_identity
from nexus.data.token_rows import AnyRow, TokenRows, flat_rows, rows_sha256
from nexus.data.workers import usable_processors
from nexus.errors import NexusError
from nexus.types import Example, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A further process costs some hundredths of a second, as much as tokenizing a hundred rows.
_ROWS_PER_PROCESS = 1000
#: What decides nothing about the rows before their limit; everything else of a corpus is part of its key in the cache.
_NOT_IDENTITY = {"max_seq_len", "long_rows", "packing", "global_batch_size", "micro_batch_size", "micro_batch_tokens",
                 "shuffle", "epochs", "max_steps", "num_proc", "cache", "tokenizer", "bad_rows", "rows",
                 "flat", "held_out_rows", "judged", "counts", "duplicates", "leaked",
                 "unmeasured", "data_sha256"}  # fmt: skip

#: Name of the sources that belong to no capability (`data.sources`).
OWN_SOURCES = "data"


@dataclass(frozen=True)
class CorpusSample:
    """A first look at a corpus.

    Attributes:
        rows: some tokenized rows, at least one.
        flat: the same as plain tokens.
        total_rows: rows that training would read (of generated sources the number that the card states).
    """

    rows: Sequence[AnyRow]
    flat: TokenRows
    total_rows: int


class Corpus:
    """Rows of one training phase.

    Args:
        sources: capability (or `OWN_SOURCES`) -> source name -> dataset card (`conf/dataset`).
        train: own training files or folders; None for none.
        validation: own held-out files or folders; None for none.
        validation_fraction: share of the own training rows that is held out where `validation` is None, and of each
            own source where no own source has the role eval.
        view: what the method reads: `sft`; `preference`, pairs of answers; or `judged`, every answer of such a pair as
            a row of its own.
        count_tokens: `completion` or `all`.
        max_seq_len: longest row, in tokens.
        long_rows: what happens to longer rows: `error`, `drop` or `truncate`.
        packing: lay rows one after the other instead of padding them.
        global_batch_size: rows of an optimizer step.
        micro_batch_size: rows of a micro-batch; None is no limit.
        micro_batch_tokens: tokens of a micro-batch; None is no limit.
        shuffle: new order every epoch.
        seed: seed of order and held-out choice.
        epochs: passes over the rows; None leaves it to `max_steps`.
        max_steps: upper limit of optimizer steps; None is no limit.
        rows_per_source: rows taken of each training source; None is all of the card.
        eval_prompts: rows taken of each evaluation split; None is all of the card.
        max_bad_rows: rows that may be unusable before it is an error.
        num_proc: processes that tokenize; None is one a processor, less for few rows.
        cache: keeps tokenized rows for the next start; None for none.
        tokenizer: a fast tokenizer.
        only_scored: keys of `sources` whose rows are not read; their evaluation prompts are there all the same.
        hold_out_capabilities: whether the evaluation splits of capabilities are held-out rows too, besides prompts.
    """

    def __init__(
        self,
        *,
        sources: dict[str, dict[str, dict[str, Any]]],
        train: str | Sequence[str] | None,
        validation: str | Sequence[str] | None,
        validation_fraction: float,
        view: str,
        count_tokens: CountTokens,
        max_seq_len: int,
        long_rows: LongRows,
        packing: bool,
        global_batch_size: int,
        micro_batch_size: int | None,
        micro_batch_tokens: int | None,
        shuffle: bool,
        seed: int,
        epochs: float | None,
        max_steps: int | None,
        rows_per_source: int | None,
        eval_prompts: int | None,
        max_bad_rows: int,
        num_proc: int | None,
        cache: TokenCache | None,
        tokenizer: PreTrainedTokenizerBase,
        only_scored: Collection[str] = (),
        hold_out_capabilities: bool = False,
    ) -> None:
        self.sources = sources
        self.read_sources = {name: cards for name, cards in sources.items() if name not in only_scored}
        self.train_files = [train] if isinstance(train, str) else list(train or ())
        self.validation_files = [validation] if isinstance(validation, str) else list(validation or ())
        self.validation_fraction = validation_fraction
        self.hold_out_capabilities = hold_out_capabilities
        self.view = "preference" if view == "judged" else view  # of the sources' rows
        self.judged = view == "judged"
        self.count_tokens = count_tokens
        self.max_seq_len = max_seq_len
        self.long_rows = long_rows
        self.packing = packing
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.shuffle = shuffle
        self.seed = seed
        self.epochs = epochs
        self.max_steps = max_steps
        self.rows_per_source = rows_per_source
        self.max_eval_prompts = eval_prompts
        self.bad_rows = BadRows(max_bad_rows)
        self.num_proc = num_proc
        self.cache = cache
        self.tokenizer = tokenizer
        self.rows: Sequence[AnyRow] = ()
        self.held_out_rows: Sequence[AnyRow] = ()
        self.flat = TokenRows.of(())  # the rows as plain tokens
        self.counts = RowCounts()
        self.duplicates = 0
        self.leaked = 0  # held-out rows that are trained on too
        self.unmeasured = 0  # held-out rows of a single answer, which no metric compares with another
        self.data_sha256 = ""

    def setup(self, stage: str | None = None, *, before_reading: Callable[[], None] | None = None) -> None:
        """Read, convert and tokenize; a second call does nothing.

        Args:
            stage: `test` reads held-out rows only; every other stage reads both.
            before_reading: called first if the rows are not in the cache; may raise, so that nothing is read in vain.

        Raises:
            NexusError: `E-DAT-*`, `E-LEN-*` or `E-TOK-*`, with the place of the row.
        """
        if self.rows or self.held_out_rows:
            return
        if self.view == "preference":
            self._setup_pairs(stage, before_reading)
            return
        tokenized = self.tokenized(stage, before_reading=before_reading)
        self.held_out_rows, _ = self._limit(tokenized.held_out_rows)
        if stage == "test":
            return
        rows, self.counts = self._limit(tokenized.rows)
        if not rows:
            raise nothing_left(len(tokenized.rows), self.counts)
        self.leaked = shared_rows(flat_rows(rows), flat_rows(self.held_out_rows))
        self._take(rows)

    def tokenized(self, stage: str | None = None, *, before_reading: Callable[[], None] | None = None) -> CorpusRows:
        """All rows as tokens, whatever their length, from the cache if they are there.

        Args:
            stage: as in `setup`.
            before_reading: as in `setup`.

        Returns:
            The rows before `max_seq_len` and `long_rows` apply.

        Raises:
            NexusError: as `setup`.
        """

        def build() -> CorpusRows:
            if before_reading is not None:
                before_reading()
            return self._read(stage)

        known = len(self.bad_rows.errors)
        found = build() if self.cache is None else self.cache.fetch(lambda: self._identity(stage), build)
        met = len(self.bad_rows.errors) - known
        for error in found.bad_rows[met:]:  # of rows that come from the cache: nobody met them in this run
            self.bad_rows.refuse(error)
        return found

    def looked_at(self) -> tuple[CorpusRows, Sequence[AnyRow]]:
        """All rows as the method reads them, whatever their length: as plain tokens, and with their parts.

        Returns:
            The rows, and those to train on once more: of pairs whole groups, not judged answers with a neighbor's.

        Raises:
            NexusError: as `setup`.
        """
        if self.view != "preference":
            found = self.tokenized("fit")
            return found, found.rows
        pairs, held_out = (
            list(tokenize_pairs(self.tokenizer, examples, refuse=self.bad_rows.refuse, counts=RowCounts()))
            for examples in self._examples("fit")
        )
        if self.judged and pairs:
            insist_on_both_labels(pairs)
        return CorpusRows(flat_rows(pairs), flat_rows(held_out), self.bad_rows.errors), pairs

    def keep(self) -> None:
        """Let the cache write what was tokenized, now that nothing is left that could refuse the rows."""
        if self.cache is not None:
            self.cache.keep()

    def _identity(self, stage: str | None) -> dict[str, Any] | None:
        """All that the tokenized rows follow from; None if one of the sources may change without a trace."""
        sources = source_identity([*self.train_files, *self.validation_files], self._cards())
        if sources is None:
            return None
        own = {name: value for name, value in vars(self).items() if name not in _NOT_IDENTITY}
        tokenizer = tokenizer_identity(self.tokenizer)
        return {**own, "held_out_only": stage == "test", "contents": sources, "tokenizer": tokenizer}

    def _read(self, stage: str | None) -> CorpusRows:
        """Read, convert and tokenize."""
        known = len(self.bad_rows.errors)
        train, held_out = self._examples(stage)
        held_out_rows = self._tokenize(held_out, "tokenizing held-out rows")
        rows = self._tokenize([] if stage == "test" else train, "tokenizing")
        return CorpusRows(rows, held_out_rows, self.bad_rows.errors[known:])

    def _examples(self, stage: str | None) -> tuple[list[Example], list[Example]]:
        """Rows to train on and held-out rows of all sources."""
        train, held_out = self._own_examples()
        for name, card in ((name, card) for name, cards in self.read_sources.items() for card in cards.values()):
            learned, kept_back = self._source_examples(name, card, stage)
            train, held_out = train + learned, held_out + kept_back
        return train, held_out

    def _setup_pairs(self, stage: str | None, before_reading: Callable[[], None] | None) -> None:
        """Pairs are tokenized anew for every run: the cache keeps plain rows only."""
        if before_reading is not None:
            before_reading()
        train, held_out = self._examples(stage)
        held_out_pairs, _ = self._pairs(held_out, "tokenizing held-out pairs")
        self.held_out_rows = measured_pairs(
            held_out_pairs, insist=stage == "test" and set(self.sources) <= {OWN_SOURCES}
        )
        self.unmeasured = len(held_out_pairs) - len(self.held_out_rows)
        if stage == "test":
            return
        pairs, self.counts = self._pairs(train, "tokenizing pairs")
        if not pairs:
            raise nothing_left(len(train), self.counts)
        if self.judged:
            insist_on_both_labels(pairs)
        self.leaked = shared_rows(flat_rows(pairs), flat_rows(self.held_out_rows))
        self._take(rows_of_pairs(pairs, judged=self.judged))

    def _take(self, rows: Sequence[AnyRow]) -> None:
        self.rows, self.flat = rows, flat_rows(rows)
        self.duplicates = int(exact_duplicates(self.flat).sum())
        self.data_sha256 = rows_sha256(rows, self.flat)

    def sample(self, count: int) -> CorpusSample:
        """Tokenize the first rows without reading all of a generated source; what is wrong with them is not counted.

        Args:
            count: rows of each source to look at.

        Returns:
            The rows, and how many there are in all.

        Raises:
            NexusError: as `setup`.
        """
        known = len(self.bad_rows.errors)
        examples, _ = self._own_examples()
        total = len(examples)
        examples = examples[:count]
        for card in self._cards():
            if "train" in card["roles"]:
                rows = self._card_rows(card, self.view, "train", count, self.bad_rows)
                first = self._convert(rows, card["name"], card["fields"], count)
                examples += first
                available = smaller(smaller(card["rows"], card["size"]), self.rows_per_source)
                total += round((len(first) if available is None else available) * card["weight"])
        found: Sequence[AnyRow]
        if self.view == "preference":
            pairs, counts = self._pairs(examples, "tokenizing pairs")
            if self.judged and pairs and total == len(examples):  # all of them: those to come may have the other label
                insist_on_both_labels(pairs)
            num_tokenized, found = len(pairs), rows_of_pairs(pairs, judged=self.judged) if pairs else []
        else:
            found, counts = self._limit(self._tokenize(examples, "tokenizing"))
            num_tokenized = len(found)
        if not found:
            raise nothing_left(len(examples), counts)
        del self.bad_rows.errors[known:]  # `setup` meets them again
        return CorpusSample(found, flat_rows(found), round(total * len(found) / num_tokenized))

    def steps_of(self, num_rows: int) -> int:
        """Optimizer steps that a phase over `num_rows` rows takes."""
        return count_steps(
            num_rows, global_batch_size=self.global_batch_size, epochs=self.epochs, max_steps=self.max_steps
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.steps_of(len(self.rows))

    def eval_prompts(self, capability: str) -> list[Example]:
        """Held-out prompts with gold answers.

        Args:
            capability: one of the keys of `sources`.

        Returns:
            At most `eval_prompts` examples of each source; nothing needs to be set up.

        Raises:
            NexusError: as the readers, or `E-DAT-05` and `E-DAT-12` for a row without a gold answer.
        """
        cards = [card for card in self.sources[capability].values() if "eval" in card["roles"]]
        return [
            to_example(row, place=place, source=card["name"], view="prompts", fields=card["fields"])
            for card in cards
            for place, row in self._card_rows(
                card, "prompts", "eval", self._eval_count(card), self._uncounted_if("train" in card["roles"])
            )
        ]

    def licences(self) -> dict[str, str]:
        """Licence by data source."""
        named = {card["name"]: card["license"] or "not stated" for card in self._cards()}
        return named | {file: "the user's own" for file in self.train_files}

    def probe(self, num_tokens: int) -> list[int]:
        """The first tokens of the data, for comparing logits of two copies of a model."""
        tokens: list[int] = []
        for row in self.rows:
            tokens += row.input_ids
            if len(tokens) >= num_tokens:
                break
        return tokens[:num_tokens]

    def summary(self) -> dict[str, Any]:
        """Counts as they stand in the report: rows, tokens, what was dropped and why, per source."""
        lengths = self.flat.lengths
        return {
            "rows": len(self.rows),
            "tokens": int(lengths.sum()),
            "target_tokens": int(self.flat.targets.sum()),
            "longest_row": int(lengths.max(initial=0)),
            "sources": self.flat.rows_by_source(),
            "dropped": dict(self.counts.dropped),
            "truncated": self.counts.truncated,
            "bad_rows": len(self.bad_rows.errors),
            "duplicates": self.duplicates,
            "held_out_rows": len(self.held_out_rows),
            "held_out_rows_also_trained": self.leaked,
            "held_out_tokens": int(flat_rows(self.held_out_rows).lengths.sum()),
            "steps": self.num_steps,
            "data_sha256": self.data_sha256,
        }

    def describe(self) -> str:
        """One paragraph for the console."""
        remarks: list[str] = []
        if self.view == "sft":
            remarks = sft_remarks(self.flat, count_tokens=self.count_tokens, ends=end_of_turn_ids(self.tokenizer))
        if self.judged:
            remarks = unmeasured_remarks(self.unmeasured, measured=len(self.held_out_rows))
        return describe_rows(self.summary(), rows_per_step=self.global_batch_size, remarks=remarks)

    def _cards(self) -> list[dict[str, Any]]:
        return [card for cards in self.read_sources.values() for card in cards.values()]

    def _own_examples(self) -> tuple[list[Example], list[Example]]:
        train = self._convert(self._file_rows(self.train_files), "own files", {}, None)
        if self.validation_files:
            return train, self._convert(self._file_rows(self.validation_files), "own files", {}, None)
        return self._split(train)

    def _split(self, rows: list[Example]) -> tuple[list[Example], list[Example]]:
        pairs = self.view == "preference"
        return split_held_out(rows, self.validation_fraction, seed=self.seed, pairs_only=pairs)

    def _file_rows(self, files: Iterable[str]) -> Iterable[Row]:
        for file in files:
            yield from read_path(file, self.bad_rows)

    def _source_examples(
        self, name: str, card: dict[str, Any], stage: str | None
    ) -> tuple[list[Example], list[Example]]:
        """Rows of a source to train on, as often as its weight says, and rows that are held out."""
        # A capability is measured by its metrics; its held-out loss would say less and cost as much, unless it is asked
        # for. Pairs are measured besides, since a preference is what is learned from them.
        wanted = self.hold_out_capabilities and "train" in card["roles"]  # other cards may hold nothing but prompts
        measured = wanted or name == OWN_SOURCES or self.view == "preference"
        held_out = self._held_out_examples(card, stage) if measured else []
        has_own = self.validation_files or any("eval" in own["roles"] for own in self.sources[name].values())
        shares = name == OWN_SOURCES and not has_own
        if "train" not in card["roles"] or (stage == "test" and not shares):
            return [], held_out
        count = smaller(card["rows"], self.rows_per_source)
        rows = self._card_rows(card, self.view, "train", count, self.bad_rows)
        train = self._convert(rows, card["name"], card["fields"], count)
        if shares:
            train, held_out = self._split(train)
        return weighted(train, card["weight"], seed=self.seed, name=card["name"]), held_out

    def _held_out_examples(self, card: dict[str, Any], stage: str | None) -> list[Example]:
        if "eval" not in card["roles"]:
            return []
        count = self._eval_count(card)
        bad_rows = self._uncounted_if("train" in card["roles"] and stage != "test")
        rows = self._card_rows(card, self.view, "eval", count, bad_rows)
        return self._convert(rows, card["name"], card["fields"], count)

    def _uncounted_if(self, read_again: bool) -> BadRows:
        """Both splits of a file are read from its beginning; what is wrong with its rows is counted once."""
        return BadRows(self.bad_rows.limit) if read_again else self.bad_rows

    def _eval_count(self, card: dict[str, Any]) -> int | None:
        return smaller(card["eval_rows"], self.max_eval_prompts)

    def _card_rows(
        self, card: dict[str, Any], view: str, split: str, count: int | None, bad_rows: BadRows
    ) -> Iterable[Row]:
        if card["kind"] == "embedded":
            if count is None:
                raise NexusError(
                    "E-DAT-16",
                    "a generator never ends, so its card needs numbers of rows",
                    where=f"dataset {card['name']}",
                    remedy="set rows and eval_rows",
                )
            return generate_rows(card["generator"], view=view, split=split, count=count, seed=card["seed"])
        is_shared = split == "train" and "eval" in card["roles"]
        start = card["eval_rows"] if is_shared else 0  # the first rows are held out
        if card["kind"] == "hub":
            named = {key: card[key] for key in ("config", "split", "revision")}
            return read_hub(card["path"], **named, start=start, count=count)
        paths = [card["path"]] if isinstance(card["path"], str) else card["path"]
        rows = itertools.chain.from_iterable(read_path(path, bad_rows) for path in paths)
        return itertools.islice(rows, start, None if count is None else start + count)

    def _convert(self, rows: Iterable[Row], source: str, fields: dict[str, str], total: int | None) -> list[Example]:
        examples = []
        for place, row in track(rows, f"reading {source}", total=total):
            try:
                examples.append(to_example(row, place=place, source=source, view=self.view, fields=fields))
            except NexusError as error:
                self.bad_rows.refuse(error)
        return examples

    def _tokenize(self, examples: list[Example], title: str) -> TokenRows:
        return tokenize_examples(
            self.tokenizer,
            examples,
            count_tokens=self.count_tokens,
            processes=self.num_proc or max(1, min(usable_processors(), len(examples) // _ROWS_PER_PROCESS)),
            watch=lambda pieces, sizes: track(pieces, title, total=len(examples), sizes=sizes),
        )

    def _limit(self, rows: TokenRows) -> tuple[TokenRows, RowCounts]:
        return limit_rows(rows, max_seq_len=self.max_seq_len, long_rows=self.long_rows, refuse=self.bad_rows.refuse)

    def _pairs(self, examples: list[Example], title: str) -> tuple[list[TokenizedGroup], RowCounts]:
        counts = RowCounts()
        tokenized = tokenize_pairs(self.tokenizer, examples, refuse=self.bad_rows.refuse, counts=counts)
        pairs = list(track(tokenized, title, total=len(examples)))
        return limit_pairs(pairs, max_seq_len=self.max_seq_len, long_rows=self.long_rows, counts=counts), counts
