"""python readme_commands.py PAGE.md: the shell blocks of a page that have `docker run` in them, as one script."""

import re
import sys
from pathlib import Path


def blocks(text: str) -> list[str]:
    """The ```sh blocks with `docker run`, as written."""
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if re.search(r"\bdocker run\b", block)]


if __name__ == "__main__":
    print("set -euxo pipefail\n" + "\n".join(blocks(Path(sys.argv[1]).read_text())))
