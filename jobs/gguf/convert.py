"""A base and its adapters as one GGUF file in float32, float16 or bfloat16, by llama.cpp's converter in a process."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from jobs.common.answer_format import CHAT_TEMPLATE
from jobs.common.errors import JobError
from jobs.common.files import read_json, write_json
from jobs.gguf import converter
from jobs.plumbing.supervisor import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}
TEMPLATES = {"chat_template.jinja", "chat_template.json"}


def convert(base: Path, adapters: list[Path], kind: str, path: Path, name: str) -> None:
    """Writes base + adapters as `kind` (F32, F16 or BF16; vectors and norms always F32) to `path`.

    name: the model's, in the file's metadata. The chat template is the project's own, whatever the base's is.
    Errors: JobError in one line for what the converter does not take.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        configuration = Path(folder) / name
        configuration.mkdir()
        copy_configuration(base, configuration)
        request = {
            "base": str(base.resolve()),
            "adapters": [str(adapter.resolve()) for adapter in adapters],
            "configuration": str(configuration.resolve()),
            "kind": kind,
            "out": str(path.resolve()),
            "name": name,
        }
        done = subprocess.run(
            [sys.executable, "-m", converter.__name__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment(),
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise JobError(f"{base}: llama.cpp's converter failed ({last})")
    if error := json.loads(lines[-1]).get("error"):
        raise JobError(error if error.startswith(str(base.resolve())) else f"{base}: {error}")


def copy_configuration(base: Path, out: Path) -> None:
    """The base's files but for weights, model card and chat templates, and the project's chat template."""
    for file in sorted(base.iterdir()):
        if file.is_file() and file.suffix not in WEIGHTS | {".md"} and file.name not in TEMPLATES:
            shutil.copyfile(file, out / file.name)
    settings = out / "tokenizer_config.json"
    if settings.exists():
        write_json(settings, {key: value for key, value in read_json(settings).items() if key != "chat_template"})
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def environment() -> dict[str, str]:
    """The converter and its gguf-py first on the path, and nothing looked up on the Hub."""
    import llama_cpp

    home = Path(llama_cpp.__file__).parent / "converter"
    if not home.is_dir():
        raise JobError(f"{home}: is missing; llama-cpp-python must be built with docker/images/llama.cmake")
    paths = [str(home), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "NO_LOCAL_GGUF": "1",
        "GGML_NO_BACKTRACE": "1",  # where llama.cpp stops by itself, its last line is why
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", "1"),
    }
