"""The site's pages that lie outside docs/: README, CONTRIBUTING and CHANGELOG, with their links made the site's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages. Their links to docs/ lose that folder; a link to a file that is no page becomes its text."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for source, target in PAGES.items():
            text = text.replace(f"]({source})", f"]({target})")
        files.append(File.generated(config, page, content=text.replace("](LICENSE)", "](../LICENSE)")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files outside docs/ into their text: the site does not hold them."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
