"""What is wrong with a param, in a line: its key, its value, and what would do."""

import datetime
import difflib
import json
import math
import re
from typing import Any

# Values under such names may be secrets that were put in the wrong place; a message is no place for them.
SECRET = re.compile(r"(^|_)(key|token|secret|password|authorization)(_|$)", re.IGNORECASE)
KEY_LIKE = re.compile(r"^(sk|pk|hf|gsk|xai|nvapi)[-_]\w{6}")
FORMS = {
    r"^[\w./-]+$": "letters, digits and . _ / - alone",
    r"^[0-9a-f]{64}$": "64 hex digits, lower case",
    r"^[0-9a-f]{40}$": "40 hex digits, lower case",
    r"^[\w.-]+/[\w.-]+$": "OWNER/NAME",
    r"^v\d+\.\d+\.\d+$": "a version, such as v0.1.10",
    r"^[A-Z][A-Z0-9_]*$": "the name of an environment variable (capitals, digits, _), or null where the endpoint wants no "
    "key; the key itself never stands in params",
}


def shown(value: object, name: str = "") -> str:
    """A value as YAML would have it, in one line and cut; secrets are not shown."""
    if isinstance(value, str):
        if SECRET.search(name) or KEY_LIKE.match(value):
            return "a text (not shown: it may be a secret)"
        text = json.dumps(value, ensure_ascii=False)
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, float) and not math.isfinite(value):
        text = {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    elif isinstance(value, datetime.date):
        text = f"{value} (a date to YAML)"
    elif isinstance(value, bytes):
        text = "binary data"
    elif isinstance(value, dict):
        text = "a mapping" if value else "{}"
    elif isinstance(value, list | tuple | set | frozenset):
        text = "a list" if value else "[]"
    else:
        try:
            text = repr(value)
        except ValueError:  # an integer of thousands of digits
            text = "a number of very many digits"
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= 80 else text[:77] + "..."


def explain(error: Any, known: list[str]) -> str:
    """`key: what is wrong` of one of pydantic's errors; `known` are the keys that stand beside it in the schema."""
    loc, value, context = error["loc"], error["input"], error.get("ctx", {})
    name = str(loc[-1]) if loc else ""
    key = "".join(f"[{part}]" if isinstance(part, int) and i else f".{part}" for i, part in enumerate(loc)).lstrip(".")
    match error["type"]:
        case "missing":
            said = "is missing; the repository's params.yaml has it with an explanation"
        case "extra_forbidden":
            short = [key for key in known if "".join(part[:1] for part in key.split("_")) == name]  # lr: learning_rate
            near = short or difflib.get_close_matches(name, known, 1)
            kept = f" (did you mean {near[0]}?)" if near else ""
            said = f"is unknown{kept}; its value is {shown(value, name)}"
        case "invalid_key":
            said = "is a key that is no text; put it in quotes"
        case "value_error":
            said = str(context["error"])
        case kind:
            said = f"is {shown(value, name)}; it must be {wanted(kind, value, context)}"
    return f"{key or 'the file'}: {said}"


def wanted(kind: str, value: Any, context: dict[str, Any]) -> str:
    """What would do, by the kind of a pydantic error."""
    bounds = {"greater_than": "above {gt}", "greater_than_equal": "at least {ge}", "less_than": "below {lt}",
              "less_than_equal": "at most {le}", "multiple_of": "a multiple of {multiple_of}",
              "too_short": "a list of {min_length} or more", "too_long": "a list of {max_length} at most",
              "string_too_short": "a text of {min_length} or more characters",
              "string_too_long": "a text of {max_length} characters at most", "literal_error": "{expected}"}  # fmt: skip
    if kind in bounds:
        said = bounds[kind].format(**context)
        return said.replace("a list", "a mapping") if isinstance(value, dict) else said
    if kind in ("int_type", "int_from_float"):
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e9
        return f"a whole number: {int(value)}" if whole else "a whole number, such as 10"
    if kind == "string_type":
        plain = isinstance(value, int | float | datetime.date) and not isinstance(value, bool)
        return f'a text: in quotes, "{value}"' if plain else "a text"
    if kind == "string_pattern_mismatch":
        return FORMS.get(context["pattern"], f"of the form {context['pattern']}")
    return {
        "float_type": "a number, such as 0.5 or 2e-4",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "list_type": "a list, such as [a, b]",
        "dict_type": "a mapping, such as {a: 1}",
        "model_type": "a section of keys",
        "int_parsing_size": "a number of fewer digits",
    }.get(kind, kind.replace("_", " "))
