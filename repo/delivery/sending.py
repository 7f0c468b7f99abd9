"""A batch of one sink between its attempt and its confirmation: what is sent, and what the sink has answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repo.cursors import Span
from repo.delivery.protocol import Lane, RecordItem
from repo.delivery.reading import Cut
from repo.repositories.attempts import Attempt
from repo.repositories.quarantine import Quarantined
from repo.repositories.sinks import Totals

__all__ = ["Answered", "Sending"]


@dataclass(slots=True)
class Sending:
    """A batch whose attempt is recorded, or is about to be, and that is not confirmed yet."""

    attempt: Attempt
    cut: Cut | None
    """Its points, as they were at `last_seq`, or the first part of them; None after a restart."""
    last_seq: int
    records: Sequence[RecordItem] = ()
    """Empty for points, and after a restart."""
    emptied: bool = False
    """Whether its lane had nothing else when the batch was cut."""

    @property
    def lane(self) -> Lane:
        """Its lane."""
        return Lane(self.attempt.lane)

    @property
    def span(self) -> Span:
        """The range of seqs that it answers for; (0, 0) if it has records."""
        return Span(self.attempt.first_seq, self.cut.span.last if self.cut else self.attempt.last_seq)

    @property
    def part(self) -> Attempt:
        """What its confirmation confirms of the attempt."""
        return self.attempt._replace(last_seq=self.span.last)

    @property
    def rest(self) -> Sending | None:
        """What is left of the attempt then, with the same token; None if it is sent whole."""
        if self.span.last == self.attempt.last_seq:
            return None
        return Sending(self.attempt._replace(first_seq=self.span.last + 1), None, self.last_seq)

    @property
    def nothing(self) -> Sending:
        """The same without its items."""
        return Sending(self.part.without_items(), None, self.last_seq)

    @property
    def seqs(self) -> Sequence[int]:
        """Those of its points."""
        return self.cut.columns[-1] if self.cut else ()

    @property
    def bytes(self) -> int:
        """About how many it has, in the form of the sink."""
        return sum(len(record.data) for record in self.records) + (self.cut.bytes if self.cut else 0)


@dataclass(slots=True)
class Answered:
    """A batch that the sink has stored, but that is not confirmed in the store."""

    sending: Sending
    totals: Totals
    refused: Sequence[Quarantined] = ()
    records: Sequence[tuple[str, str]] = ()
    """The ids and data of the records that it has stored."""

    @property
    def facts(
        self,
    ) -> tuple[Attempt, Totals, Sequence[Quarantined], Sequence[tuple[str, str]], Sequence[int]]:
        """The arguments of the confirmation."""
        return self.sending.part, self.totals, self.refused, self.records, self.sending.seqs
