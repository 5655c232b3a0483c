"""The launcher in a repository without jobs, with runtimes that write down what they are told."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENGINE = r"""#!/bin/bash
printf '%s\n' "$(basename "$0") $*" >> "$LOG"
case $1 in
    version) [ -z "$NO_DAEMON" ] || exit 1; echo "$ENGINE_VERSION" ;;
    image) [ -z "$NO_IMAGE" ] || [ -e "$LOG.built" ] || exit 1; echo 1000000 ;;
    build) touch "$LOG.built" ;;
    pull) [ -n "$REGISTRY_HAS" ] ;;
    import) cat > "$LOG.tar" ;;
    info) echo "$ENGINE_INFO" ;;
    run)
        printf '%s\n' "$@" > "$LOG.run"
        env > "$LOG.env"
        [ -z "$JOB" ] || (cd "$REPO" && bash -c "$JOB")
        sleep "${JOB_SECONDS:-0}"
        exit "${JOB_STATUS:-0}"
        ;;
    kill) pkill -TERM -P "$(cat "$LOG.pid" 2> /dev/null)" sleep 2> /dev/null; true ;;
esac
"""

PARAMS = """\
distill:
  base_url: https://teacher.example/v1
  model: some-model
  api_key_env: TEACHER_KEY  # which
  recorded: null
"""


def make_repo(tmp_path: Path) -> Path:
    """A repository with the launcher, no jobs, and a bin/ with runtimes that write down their arguments."""
    root = tmp_path / "repo"
    shutil.copytree(ROOT / "docker", root / "docker")
    (root / "jobs").mkdir()
    (root / "jobs/__init__.py").write_text('__version__ = "9"\n')
    (root / "params.yaml").write_text(PARAMS)
    (root / "data/smoke").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc/config.local").write_text("password = hunter2\n")
    (tmp_path / "bin").mkdir()
    for name in ("docker", "podman"):
        (tmp_path / "bin" / name).write_text(ENGINE)
        (tmp_path / "bin" / name).chmod(0o755)
    if os.getuid() == 0:
        os.chown(root, 1234, 1234)
    return root


def launch(repo, *words, script="docker/run", **env):
    above = repo.parent
    environment = {"PATH": f"{above}/bin:{os.environ['PATH']}", "HOME": str(above), "LOG": f"{above}/log",
                   "REPO": str(repo), "MIN_DISK_GIB": "0", "SHM_GIB": "1", "CARD_LOCKS": str(above)} | env  # fmt: skip
    return subprocess.run([repo / script, *words], env=environment, cwd=above, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


def flags(repo) -> list[str]:
    return (repo.parent / "log.run").read_text().splitlines()


def values(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


NVIDIA_SMI = """#!/bin/bash
case $* in
    *--id=*index*) words=${*#*--id=}; tr , '\\n' <<< "${words%% *}" ;;
    *index*) seq 0 $((CARDS - 1)) ;;
    *) echo 'GPU 0: a card' ;;
esac
"""


def gpu(repo, cards=1):
    path = repo.parent / "bin/nvidia-smi"
    path.write_text(NVIDIA_SMI.replace("CARDS", str(cards)))
    path.chmod(0o755)
