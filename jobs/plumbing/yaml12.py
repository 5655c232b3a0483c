"""YAML as DVC reads it: by ruamel.yaml, YAML 1.2, where 2e-4 is a number, `no` is a word and a key stands once.

What a job reads is then what DVC tracks, and what `dvc exp run -S` writes back is what a job reads.
"""

import io
import warnings
from pathlib import Path
from typing import Any

from jobs.common.errors import UsageError


def parse(text: str) -> Any:
    """The value of a YAML text. Errors: ValueError that says in one line what is wrong with it, and where."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a %YAML 1.1 directive
            return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{' '.join(str(error.problem or error.context).split())}") from None
    except Exception as error:  # its readers and constructors raise of many kinds, on dates, deep nesting, odd keys
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a UsageError that says what is wrong with it."""
    try:
        values = parse(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: is not a mapping of sections")
    return values


def dump(values: dict[str, Any]) -> str:
    """A mapping as YAML, keys in their order; `parse` reads the same values back."""
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(values, stream)
    return stream.getvalue()
