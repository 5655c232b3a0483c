"""python compare_locks.py ONE/dvc.lock OTHER/dvc.lock: whether two runs made the same bytes, stage by stage."""

import sys
from pathlib import Path

import yaml


def outputs(path: str) -> dict[str, str]:
    """`stage: path` to md5 of every output in a dvc.lock, with the command and the params under names of their own."""
    found = {}
    for stage, entry in yaml.safe_load(Path(path).read_text())["stages"].items():
        found[f"{stage}: its command"] = entry["cmd"]
        found[f"{stage}: its params"] = repr(entry.get("params"))
        for side in ("deps", "outs"):
            for item in entry.get(side, []):
                found[f"{stage}: {side[:-1]} {item['path']}"] = item.get("md5") or item.get("hash") or ""
    return found


def main(one: str, other: str) -> int:
    first, second = outputs(one), outputs(other)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            print(f"differs: {name}: {first.get(name)} {second.get(name)}")
    same = sum(first[name] == second.get(name) for name in first)
    print(f"{same} of {len(first.keys() | second.keys())} entries of dvc.lock are the same")
    return 0 if first == second else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
