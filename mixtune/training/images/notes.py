"""Notes: what was found out about image files while they were read: which cannot be, and which had to be converted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mixtune.training.images.pieces import Job

LEFT_OUT = -1  # the label of an image that could not be read
NAMED = 10  # unreadable files that are named when they are met; all are counted
log = logging.getLogger(__name__)


@dataclass
class Notes:
    """What was found out about the files: unreadable {path: why}, decodes, and {kind: paths} of what was converted."""

    unreadable: dict[str, str] = field(default_factory=dict)
    converted: dict[str, set[str]] = field(default_factory=dict)
    decodes: int = 0

    def add(self, job: Job) -> None:
        """What a finished piece of work found."""
        assert job.done is not None
        self.decodes += job.done.decodes
        for i, why in job.done.unreadable.items():
            path = job.work.paths[i]
            if path not in self.unreadable and len(self.unreadable) < NAMED:
                log.warning("%s cannot be read (%s); it is left out", path, why)
            self.unreadable[path] = why
        for i, kinds in job.done.notes.items():
            for kind in kinds:
                self.converted.setdefault(kind, set()).add(job.work.paths[i])

    def counts(self) -> dict[str, int]:
        """How many files of each kind were met so far, for records."""
        found = {"unreadable": len(self.unreadable)} | {k: len(paths) for k, paths in sorted(self.converted.items())}
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
