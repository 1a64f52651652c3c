"""Notes: what was found out about image files while they were read: which cannot be, and which had to be converted."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixtune.data.reader_tasks import Job
from mixtune.files import replace_file

LEFT_OUT = -1  # the label of an image that could not be read
NAMED = 10  # unreadable files that are named when they are met; all are counted
LISTED = 10_000  # files that are named in a list; all are counted
IMAGES = "images.tsv"  # the list, in the folder of a run
UNREADABLE = "unreadable"
log = logging.getLogger(__name__)


@dataclass
class FileIssues:
    """What was found out about the files: unreadable {path: why}, decodes, and {kind: paths} of what was converted."""

    unreadable: dict[str, str] = field(default_factory=dict)
    converted: dict[str, set[str]] = field(default_factory=dict)
    decodes: int = 0
    _news: list[tuple[str, str, str]] = field(default_factory=list)  # what the other ranks were not told

    def add(self, job: Job) -> None:
        """What a finished piece of work found."""
        assert job.done is not None
        self.decodes += job.done.decodes
        for i, why in job.done.unreadable.items():
            path = job.work.paths[i]
            if path not in self.unreadable and len(self.unreadable) < NAMED:
                log.warning("%s cannot be read (%s); it is left out", path, why)
            self._note(path, UNREADABLE, why)
        for i, kinds in job.done.notes.items():
            for kind in kinds:
                self._note(job.work.paths[i], kind)

    def _note(self, path: str, kind: str, why: str = "") -> None:
        if path in (self.unreadable if kind == UNREADABLE else self.converted.setdefault(kind, set())):
            return
        self._news.append((path, kind, why))
        if kind == UNREADABLE:
            self.unreadable[path] = why
        else:
            self.converted[kind].add(path)

    def news(self) -> list[tuple[str, str, str]]:
        """(path, kind, why) of what was found since this was last asked."""
        found, self._news = self._news, []
        return found

    def hear(self, found: Iterable[Sequence[str]]) -> None:
        """(path, kind, why) of what another rank found, or this run before it was cut off."""
        told, self._news = self._news, []
        for path, kind, why in found:
            self._note(path, kind, why)
        self._news = told

    def listed(self) -> list[tuple[str, str, str]]:
        """(path, kind, why), the unreadable first; at most LISTED."""
        found = [(path, UNREADABLE, why) for path, why in sorted(self.unreadable.items())]
        for kind, paths in sorted(self.converted.items()):
            found += [(path, kind, "") for path in sorted(paths)[: max(0, LISTED - len(found))]]
        return found[:LISTED]

    def save(self, folder: Path) -> None:
        """Write the list to ``images.tsv`` where there is anything to name. Raises InputError when the disk refuses."""
        rows, text = self.listed(), io.StringIO()
        if rows:
            csv.writer(text, delimiter="\t", lineterminator="\n").writerows([("path", "kind", "why"), *rows])
            replace_file(folder / IMAGES, text.getvalue().encode())

    def counts(self) -> dict[str, int]:
        """How many files of each kind were met so far, for records."""
        found = {UNREADABLE: len(self.unreadable)} | {k: len(paths) for k, paths in sorted(self.converted.items())}
        return {kind: n for kind, n in found.items() if n}

    def lines(self) -> list[str]:
        """For people: one line per kind, with a name."""
        said = [
            f"{len(paths)} image{'s are' if len(paths) > 1 else ' is'} {kind}, for example {min(paths)}"
            for kind, paths in sorted(self.converted.items())
        ]
        if self.unreadable:
            (path, why), n = next(iter(sorted(self.unreadable.items()))), len(self.unreadable)
            what = f"{n} image{'s' if n > 1 else ''} cannot be read"
            said.append(f"{what}: others stand in for training, accuracies are without; for example {path} ({why})")
        return said
