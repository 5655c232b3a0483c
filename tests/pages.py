"""The ```sh blocks of a Markdown page, as written."""

import re
from pathlib import Path


def blocks(page: Path, heading: str = "") -> list[str]:
    """The blocks of `page`, or of the part below the heading whose text is `heading`, up to the next one of any level."""
    text = page.read_text(encoding="utf-8")
    if heading:
        text = re.split(r"^#+ ", text.partition(f" {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page.name}: no commands below {heading!r}"
    return found
