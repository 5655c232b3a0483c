"""Looks for known vulnerabilities in what the locks pin; `make audit` calls it. Asks PyPI, by pip-audit.

    python docker/audit.py

Fails on any finding that is not in KNOWN, and on any package that could not be looked up: a mirror without PyPI's
advisories finds nothing, and that is not an all-clear.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "images"
KNOWN = {
    "CVE-2025-69872": "diskcache 5.6.3 unpickles what lies in its cache folder, and there is no fixed release. It is "
                      "here for llama-cpp-python, which uses it in LlamaDiskCache alone; no job does.",
}  # fmt: skip
# Not on PyPI under this version: PyTorch's own build of it. torch 2.13.0 is looked up in its place.
LOCAL = "+cpu"


def findings(lock: Path) -> tuple[dict[str, str], list[str]]:
    """Advisories of a lock, by id, and the packages that could not be looked up."""
    text = lock.read_text().replace(LOCAL, "")
    run = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off",
           "--format", "json", "--aliases", "on", "--requirement", "/dev/stdin"]  # fmt: skip
    done = subprocess.run(run, input=text, text=True, stdout=subprocess.PIPE, check=False)
    found, unknown = {}, []
    for package in json.loads(done.stdout)["dependencies"]:
        if "skip_reason" in package:
            unknown.append(package["name"])
        for advisory in package.get("vulns", []):
            names = {advisory["id"], *advisory["aliases"]}
            if not names & KNOWN.keys():
                found[advisory["id"]] = f"{package['name']} {package['version']}, fixed in {advisory['fix_versions']}"
    return found, unknown


def main() -> int:
    failed = 0
    for lock in sorted(HERE.rglob("*.lock")):
        found, unknown = findings(lock)
        for advisory, text in found.items():
            print(f"{lock.relative_to(HERE)}: {advisory}: {text}")
        if unknown:
            print(f"{lock.relative_to(HERE)}: {len(unknown)} packages could not be looked up, {unknown[0]} for one")
        if not found and not unknown:
            print(f"{lock.relative_to(HERE)}: nothing new")
        failed |= bool(found or unknown)
    for advisory, reason in KNOWN.items():
        print(f"known: {advisory}: {reason}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
