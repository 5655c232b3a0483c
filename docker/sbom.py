"""A software bill of materials of an image, as CycloneDX 1.6 JSON: what its lock pins, and what dpkg says is in it.

    python docker/sbom.py IMAGE [TAG] > reports/images/IMAGE.cdx.json

IMAGE is train, gguf or cpu; without TAG (what `docker/build IMAGE` prints) only the Python packages are listed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from packaging.requirements import Requirement

HERE = Path(__file__).parent
LINUX = [{"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux", "platform_machine": "x86_64",
          "implementation_name": "cpython", "platform_python_implementation": "CPython",
          "python_full_version": python} for python in ("3.11.0", "3.12.0")]  # fmt: skip


def locked(text: str) -> list[dict]:
    """The components of a lock that Linux installs, with all the hashes that an installer would accept."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        if not hashes:
            continue
        wanted = Requirement(requirement)
        if wanted.marker and not any(wanted.marker.evaluate(linux) for linux in LINUX):
            continue
        version = str(wanted.specifier).removeprefix("==")
        found.append({"type": "library", "name": wanted.name, "version": version,
                      "purl": f"pkg:pypi/{wanted.name}@{quote(version)}",
                      "hashes": [{"alg": "SHA-256", "content": digest} for digest in hashes]})  # fmt: skip
    return found


def installed(tag: str) -> list[dict]:
    """The Debian or Ubuntu packages in an image, and its distribution."""
    runtime = os.environ.get("RUNTIME", "docker")
    script = "cat /etc/os-release; echo; dpkg-query --show --showformat '${Package} ${Version} ${Architecture}\\n'"
    run = [runtime, "run", "--rm", "--network", "none", "--entrypoint", "sh", tag, "-c", script]
    release, _, packages = subprocess.run(run, check=True, text=True, stdout=subprocess.PIPE).stdout.partition("\n\n")
    facts = dict(re.findall(r'^(\w+)="?([^"\n]*)', release, re.MULTILINE))
    found = [{"type": "operating-system", "name": facts["ID"], "version": facts.get("VERSION_ID", "")}]
    for line in packages.splitlines():
        name, version, architecture = line.split()
        found.append({"type": "library", "name": name, "version": version,
                      "purl": f"pkg:deb/{facts['ID']}/{name}@{quote(version)}?arch={architecture}"})  # fmt: skip
    return found


def bill(image: str, tag: str | None) -> dict:
    """The whole document; the same image gives the same bytes (no time, no serial number)."""
    components = locked((HERE / "images/tools.lock").read_text()) + locked(
        (HERE / f"images/{image}/packages.lock").read_text()
    )
    unique = {(part["name"], part["version"]): part for part in components}
    parts = sorted(unique.values(), key=lambda part: (part["name"], part["version"]))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
            "metadata": {"component": {"type": "container", "name": tag or image}},
            "components": parts + (installed(tag) if tag else [])}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    print(json.dumps(bill(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else None), indent=1))
