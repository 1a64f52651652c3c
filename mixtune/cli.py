"""What all commands share: InputError becomes a sentence and exit code 2, TrainingError 1, Ctrl-C 130."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mixtune.errors import InputError, TrainingError


def run(main: Callable[[], int | None]) -> None:
    """Call a command's main and exit with its code."""
    try:
        code = main() or 0
    except InputError as err:
        print(f"error: {err}", file=sys.stderr)
        code = 2
    except TrainingError as err:
        print(f"failed: {err}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        code = 141
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """argparse, with the house's error form and --set."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(prog=f"python -m {module}", description=description)

    def add_set(self) -> None:
        """The --set option, which overrides one key of the YAML file."""
        self.add_argument(
            "--set",
            dest="assignments",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="override one key of the file, for example --set budget.epochs=5 (may be given several times)",
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        """Bad flags are bad input like any other."""
        raise InputError(f"{message}; see {self.prog} --help")


def python() -> str:
    """How this interpreter is called from here, as a person would type it."""
    on_path = shutil.which("python")
    if on_path and Path(on_path).resolve() == Path(sys.executable).resolve() and sys.prefix == _prefix_of(on_path):
        return "python"
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        executable = executable.relative_to(Path.cwd())
    return shlex.quote(str(executable))


def _prefix_of(executable: str) -> str:
    """The environment an executable belongs to (a virtual one resolves to the same file as its parent)."""
    folder = Path(executable).parent.parent
    return str(folder) if (folder / "pyvenv.cfg").exists() else sys.base_prefix


def shell(*words: str | Path) -> str:
    """A command line that can be pasted: words quoted where needed, paths below the working folder made relative."""
    return " ".join(shlex.quote(str(short(w)) if isinstance(w, Path) else w) for w in words)


def short(path: Path) -> Path:
    """The path as seen from the working folder when it lies below it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def parse_args(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed flags (of the process when argv is None)."""
    return parser.parse_args(argv)
