"""What a batch may hold, which depends on the form in which a sink takes points. Reads and sends nothing.

A sink that encodes text is limited by the request that it makes. One that takes the columns as they are can have far
larger batches: a batch costs a commit of the store, whatever it holds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from repo.errors import InvalidSettings
from repo.inputs.arguments import check_count, shown

if TYPE_CHECKING:
    from repo.delivery.protocol import Sink

__all__ = ["AS_COLUMNS", "AS_TEXT", "BatchLimits", "Form", "limits_of"]


class Form(StrEnum):
    """The form in which a sink takes points, by which their bytes are counted."""

    TEXT = "text"
    """Each point becomes a text with all its fields."""
    COLUMNS = "columns"
    """`Batch.columns` or `Batch.arrow()`: machine numbers, and names as numbers."""

    @property
    def point_bytes(self) -> int:
        """About how many bytes a point takes, without its texts."""
        return 70 if self is Form.TEXT else 52

    @property
    def text_bytes(self) -> int:
        """How many bytes a text or metadata takes besides its characters; a column holds it as a Python object."""
        return 0 if self is Form.TEXT else 49

    @property
    def repeats_names(self) -> bool:
        """Whether each point repeats its names."""
        return self is Form.TEXT


class BatchLimits(NamedTuple):
    """What a batch for a sink may hold; the one that is reached first ends it."""

    form: Form
    points: int
    bytes: int
    """The approximate size, counted in the form and without compression. A single point may be larger."""


AS_TEXT: Final = BatchLimits(Form.TEXT, 10_000, 1_000_000)
AS_COLUMNS: Final = BatchLimits(Form.COLUMNS, 40_960, 2_200_000)
"""A third of a page of the store.

Half a page takes as much CPU time, and 10,000 points take a seventh more.
"""


def limits_of(sink: Sink) -> BatchLimits:
    """Return the limits that a sink has as its `limits`; those of text if it has none."""
    limits = getattr(sink, "limits", AS_TEXT)
    if not isinstance(limits, BatchLimits) or not isinstance(limits.form, Form):
        raise InvalidSettings(
            f"limits = {shown(limits)} of the sink {sink.name}: a `repo.delivery.limits.BatchLimits` is expected"
        )
    check_count(limits.points, "points of `limits`", 1, error=InvalidSettings)
    check_count(limits.bytes, "bytes of `limits`", 1, error=InvalidSettings)
    return limits
