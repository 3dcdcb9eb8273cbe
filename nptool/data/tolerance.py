"""How many records of a data set may be unusable: few are skipped and said, many are an error."""

from __future__ import annotations

import logging

from nptool.errors import DataError, UnusableRecord

logger = logging.getLogger(__name__)

MAX_BAD_SHARE = 0.01


class Tolerance:
    """Counts the records of one data set."""

    def __init__(self, share: float, seen: int = 0) -> None:
        """
        Args:
            share: of the records that may be unusable.
            seen: records; `read_records` counts those it reads.
        """
        self._share, self.seen, self.skipped = share, seen, 0
        self._first = ""

    def skip(self, error: UnusableRecord) -> None:
        """Count one that is not used."""
        self.skipped += 1
        self._first = self._first or str(error)

    def finish(self) -> None:
        """Say what was skipped.

        Raises:
            DataError: more than the share.
        """
        if not self.skipped:
            return
        if self.skipped > self._share * self.seen:
            # Where all are, it is not a matter of tolerance.
            raise DataError(self._first + ("" if self.skipped == self.seen else f" ({self._counts()})"))
        logger.warning(
            "skipped %d of %d records that cannot be used; the first: %s", self.skipped, self.seen, self._first
        )

    def _counts(self) -> str:
        return (
            f"{self.skipped} of {self.seen} records cannot be used; --max-bad-share {self._share:g} allows "
            f"{int(self._share * self.seen)}"
        )
