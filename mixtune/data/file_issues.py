"""File issues: which image files of a run cannot be read, and which had to be converted."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixtune.data.image_views import DecodeResult
from mixtune.files import atomic_write

LEFT_OUT = -1  # the label of an image that could not be read
MAX_LOGGED = 10  # unreadable files that are named when they are met; all are counted
MAX_LISTED = 10_000  # files that are named in a list; all are counted
ISSUES_FILE = "images.tsv"  # the list, in the folder of a run
UNREADABLE = "unreadable"
IssueRow = tuple[str, str, str]  # path, kind, reason
log = logging.getLogger(__name__)


@dataclass
class FileIssues:
    """Unreadable files {path: reason}, converted ones {kind: paths}, and the number of images decoded."""

    unreadable: dict[str, str] = field(default_factory=dict)
    converted: dict[str, set[str]] = field(default_factory=dict)
    decodes: int = 0
    _new: list[IssueRow] = field(default_factory=list)  # what the other ranks have not received

    def add(self, paths: Sequence[str], result: DecodeResult) -> None:
        """Add what became of these files."""
        self.decodes += result.decodes
        for i, reason in result.unreadable.items():
            if paths[i] not in self.unreadable and len(self.unreadable) < MAX_LOGGED:
                log.warning("%s cannot be read (%s); it is left out", paths[i], reason)
            self._add_row(paths[i], UNREADABLE, reason)
        for i, kinds in result.conversions.items():
            for kind in kinds:
                self._add_row(paths[i], kind)

    def _add_row(self, path: str, kind: str, reason: str = "") -> None:
        if path in (self.unreadable if kind == UNREADABLE else self.converted.setdefault(kind, set())):
            return
        self._new.append((path, kind, reason))
        if kind == UNREADABLE:
            self.unreadable[path] = reason
        else:
            self.converted[kind].add(path)

    def take_new(self) -> list[IssueRow]:
        """Return the rows that were added since the last call."""
        new, self._new = self._new, []
        return new

    def merge(self, rows: Iterable[Sequence[str]]) -> None:
        """Add the rows of another rank, or of this run before it was cut off."""
        new, self._new = self._new, []
        for path, kind, reason in rows:
            self._add_row(path, kind, reason)
        self._new = new

    def rows(self) -> list[IssueRow]:
        """Return at most MAX_LISTED rows, the unreadable files first."""
        rows = [(path, UNREADABLE, reason) for path, reason in sorted(self.unreadable.items())]
        for kind, paths in sorted(self.converted.items()):
            rows += [(path, kind, "") for path in sorted(paths)[: max(0, MAX_LISTED - len(rows))]]
        return rows[:MAX_LISTED]

    def save(self, folder: Path) -> None:
        """Write the rows to ``images.tsv`` where there are any. Raises InputError when the disk refuses."""
        rows, text = self.rows(), io.StringIO()
        if rows:
            csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("path", "kind", "why"), *rows])
            atomic_write(folder / ISSUES_FILE, text.getvalue().encode())

    def counts(self) -> dict[str, int]:
        """Return the number of files of each kind, for records."""
        counts = {UNREADABLE: len(self.unreadable)} | {k: len(paths) for k, paths in sorted(self.converted.items())}
        return {kind: n for kind, n in counts.items() if n}

    def lines(self) -> list[str]:
        """Return one line per kind, with an example, for people."""
        lines = [
            f"{len(paths)} image{'s are' if len(paths) > 1 else ' is'} {kind}, for example {min(paths)}"
            for kind, paths in sorted(self.converted.items())
        ]
        if self.unreadable:
            (path, reason), n = next(iter(sorted(self.unreadable.items()))), len(self.unreadable)
            what = f"{n} image{'s' if n > 1 else ''} cannot be read"
            lines.append(f"{what}: others stand in for training, accuracies are without; for example {path} ({reason})")
        return lines
