"""python3 docker/teacher.py BASE_URL MODEL [VARIABLE [ALIAS ...]]: whether the endpoint serves MODEL or an alias of it.

Sends the key that lies in the environment's VARIABLE, if one is named, and nothing else; no token is used up.
Exit codes: 0 it does, 4 it does not (the line printed says what it has), 1 it could not be asked (the line says why).
"""

import json
import os
import sys
import urllib.error
import urllib.request


def main() -> int:
    url, model = sys.argv[1].rstrip("/"), sys.argv[2]
    request = urllib.request.Request(f"{url}/models", headers={"User-Agent": "jobs"})
    if sys.argv[3:] and sys.argv[3]:
        request.add_unredirected_header("Authorization", f"Bearer {os.environ[sys.argv[3]]}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            served = sorted(str(entry["id"]) for entry in json.load(answer)["data"])
    except urllib.error.HTTPError as error:
        print(f"{url}/models says {error.code} {error.reason}")
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(" ".join(str(getattr(error, "reason", error)).split())[:200])
        return 1
    if {model, *sys.argv[4:]} & set(served):
        return 0
    print(f"{model} is not served by {url}, which has {', '.join(served[:8]) or 'none'}{', ...' if served[8:] else ''}")
    return 4


if __name__ == "__main__":
    sys.exit(main())
