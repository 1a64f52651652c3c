"""What all commands share: exit codes (InputError 2, TrainingError 1, Ctrl-C 130), flags, progress bar, paths."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from mixtune.errors import DISK_FULL, InputError, TrainingError, disk_full_error
from mixtune.secrets import masked


def run_command(main: Callable[[], int | None]) -> None:
    """Call a command's main and exit with its code."""
    try:
        code = main() or 0
    except InputError as err:
        print(masked(f"error: {err}"), file=sys.stderr)
        code = 2
    except TrainingError as err:
        print(masked(f"failed: {err}"), file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        code = 141
    except OSError as err:
        if err.errno not in DISK_FULL:
            raise
        print(f"error: {disk_full_error(err.filename or 'a file')}", file=sys.stderr)
        code = 2
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError, and knows --set."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(prog=f"python -m {module}", description=description)

    def add_set(self) -> None:
        """Add the --set option, which overrides one key of the YAML file."""
        self.add_argument(
            "--set",
            dest="assignments",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="override one key of the file, for example --set budget.epochs=5 (may be given several times)",
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise InputError for bad flags."""
        raise InputError(f"{message}; see {self.prog} --help")


class ProgressBar:
    """A line with a run's progress, speed and remaining time; nothing where the stream is no terminal."""

    WIDTH = 30

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.stream, self.clock = total, stream or sys.stderr, clock
        self.shown = self.stream.isatty()
        self._first: tuple[float, int] | None = None  # when, and after which step, this process began to count
        self._views, self._drawn = 0, -1.0

    def step(self, step: int, views: int) -> None:
        """Count ``step`` of ``total`` as done, with ``views`` images; draw at most five times a second."""
        if not self.shown:
            return
        now = self.clock()
        if self._first is None:
            self._first = (now, step)
            return
        self._views += views
        if now - self._drawn >= 0.2:
            self._drawn = now
            self.stream.write("\r\033[K" + self.line(step, now))
            self.stream.flush()

    def line(self, step: int, now: float) -> str:
        """Return the line after ``step``, at clock ``now``."""
        assert self._first is not None
        began, first = self._first
        spent = max(now - began, 1e-9)
        full = self.WIDTH * step // self.total
        left = format_duration(spent / (step - first) * (self.total - step)) if step > first else "?"
        bar = "█" * full + "░" * (self.WIDTH - full)
        return f"  {bar} {100 * step // self.total:3d} %  {self._views / spent:,.0f} views/s  {left} left"

    def clear(self) -> None:
        """Erase the line, so that a report can be printed."""
        if self.shown:
            self.stream.write("\r\033[K")
            self.stream.flush()


def format_duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 3 min 20 s, 2 h 05 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def python_command() -> str:
    """Return how to call this interpreter from the working folder, quoted for a shell."""
    first = shutil.which("python")
    if first and Path(first).resolve() == Path(sys.executable).resolve() and sys.prefix == _prefix_of(first):
        return "python"
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        executable = executable.relative_to(Path.cwd())
    return shlex.quote(str(executable))


def path_assignment() -> str:
    """Return the PATH assignment that puts this environment's programs first; empty when it is active."""
    if python_command() == "python":
        return ""
    return f'PATH={shlex.quote(str(Path(sys.executable).absolute().parent))}:"$PATH" '


def _prefix_of(executable: str) -> str:
    """Return the environment of an executable (a virtual one resolves to the same file as its parent)."""
    folder = Path(executable).parent.parent
    return str(folder) if (folder / "pyvenv.cfg").exists() else sys.base_prefix


def shell_line(*words: str | Path) -> str:
    """Return a command line to paste: words quoted where needed, paths below the working folder made relative."""
    return " ".join(shlex.quote(str(relative_to_cwd(w)) if isinstance(w, Path) else w) for w in words)


def relative_to_cwd(path: Path) -> Path:
    """Return the path relative to the working folder when it lies below it, else the absolute path."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def parse_args(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags (of the process when argv is None)."""
    return parser.parse_args(argv)
