"""Where a function's definition begins in a text that need not be Python."""

import re


def left_margin(code: str, entry_point: str) -> bool:
    """Whether a line of `code` begins the definition of `entry_point`; the code need not be complete."""
    name = re.escape(entry_point)
    found = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)"
    return bool(re.search(found, code, re.MULTILINE))
