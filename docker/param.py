"""python docker/param.py KEY [KEY ...] [-- ARGUMENTS]: what a job with these ARGUMENTS reads for each KEY, a line each.

The launcher's own reader of params.yaml: it asks before there is an image, on a machine that may have DVC and nothing
else, so it needs no package but the YAML reader that DVC itself has, or else PyYAML (exit code 3: neither is here).
`--params` and `--set` among ARGUMENTS count as they do for the job. A list's items stand side by side. Null, and a key
that is not there, is an empty line. The job checks types and names for itself, with better messages.
"""

import argparse
import sys

try:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    read = YAML(typ="safe", pure=True).load
except ImportError:
    try:
        from yaml import YAMLError
        from yaml import safe_load as read
    except ImportError:
        sys.exit(3)


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--set", action="append", default=[])
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    job, _ = parser.parse_known_args(words[end + 1 :])
    where = job.params
    try:
        with open(where, encoding="utf-8") as file:
            values = read(file)
        for where in job.set:
            key, _, text = where.partition("=")
            *parents, last = key.split(".")
            inner = values
            for name in parents:
                inner = inner[name]
            inner[last] = read(text)
    except (OSError, ValueError, KeyError, TypeError, YAMLError) as error:
        print(f"error: {where}: cannot be read as params ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        sys.exit(2)
    for key in words[:end]:
        value = values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        words = map(str, value) if isinstance(value, list) else [] if value is None else [str(value)]
        print(" ".join(" ".join(words).split()))


if __name__ == "__main__":
    main()
