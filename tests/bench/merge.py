"""Merge and GGUF against cp and PEFT, side by side on synthetic Qwen3-4B layers.

    python tests/bench/merge.py [--gib 3] [--rounds 1] [--no-peft] [--memory]
        [--processes 8 16 24] [--beside OTHER_CHECKOUT]

Writes a bfloat16 base of Qwen3-4B's shapes (as many layers as fit in --gib) with a rank 32 adapter of all seven projections
under a temporary folder, drops it from the page cache before each step, and prints wall time, CPU time in programs and in
the kernel, and the largest process's peak memory of each step; at the end, each step's median beside cp's. PEFT runs in the
first round only.
--memory: what all processes of a step take together, looked at twice a second, what several share counted once.
--processes: each merge by so many, whatever the cores, and one that hashes the base.
--beside: a folder with another version of the project, whose merges run by turns with this one's.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED = 2560, 32, 8, 128, 9728
RANK = 32
SYNCED = "cp and sync"
WRITTEN = ("copy", "merged", "x.gguf", "peft")
WIDTH = 52  # of a label
LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (FEED, HIDDEN),
    "mlp.up_proj": (FEED, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED),
}
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""
BY_SO_MANY = """
import os, sys
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the job does
from jobs.plumbing.supervisor import supervise
supervise()
import jobs.weights.sum
from jobs.__main__ import main
jobs.weights.sum.WORKERS = int(sys.argv[1])
os.sched_getaffinity = lambda _: range(jobs.weights.sum.WORKERS)
main(sys.argv[2:])
"""
DIRECT = """
import os, sys
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the job does
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from jobs.gguf.convert import convert
base, adapter, out = map(Path, sys.argv[1:4])
convert(base, [adapter], "F16", out, "x")
"""


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, scale: float) -> None:
    """Random normal tensors, written one by one."""
    import numpy as np

    from jobs.weights.floats import encoded
    from jobs.weights.safetensors import Tensor, encode_header

    tensors = [Tensor(path, name, dtype, shape, 0) for name, shape in shapes.items()]
    head, _ = encode_header(tensors, [dtype] * len(tensors), {"format": "pt"})
    draw = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(head)
        for tensor in tensors:
            file.write(encoded(draw.standard_normal(tensor.shape, np.float32) * np.float32(scale), dtype)[1].tobytes())


def make(folder: Path, gib: float) -> tuple[Path, Path]:
    from tests.toy import make_tokenizer

    base, adapter = folder / "base", folder / "adapter"
    adapter.mkdir(parents=True)
    make_tokenizer(base)
    vectors = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_norm": (HEAD_DIM,),
        "self_attn.k_norm": (HEAD_DIM,),
    }
    layers = round(gib * 2**30 / 2 / sum(a * b for a, b in LINEAR.values()))
    shapes = {"model.embed_tokens.weight": (512, HIDDEN), "model.norm.weight": (HIDDEN,)}
    lora = {}
    for layer in range(layers):
        for name, shape in {**LINEAR, **vectors}.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            if len(shape) == 2:
                key = f"base_model.model.model.layers.{layer}.{name}"
                lora |= {f"{key}.lora_A.weight": (RANK, shape[1]), f"{key}.lora_B.weight": (shape[0], RANK)}
    write_safetensors(base / "model.safetensors", shapes, "BF16", 0.02)
    write_safetensors(adapter / "adapter_model.safetensors", lora, "F32", 6e-3)
    (base / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "hidden_size": HIDDEN,
                "intermediate_size": FEED,
                "num_hidden_layers": layers,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "vocab_size": 512,
                "tie_word_embeddings": True,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000,
                "hidden_act": "silu",
                "attention_bias": False,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "dtype": "bfloat16",
            }
        )
    )
    (adapter / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": RANK,
                "lora_alpha": 16,
                "bias": "none",
                "target_modules": [name.rsplit(".", 1)[-1] for name in LINEAR],
                "base_model_name_or_path": str(base),
            }
        )
    )
    return base, adapter


def made(folder: Path, gib: float) -> tuple[Path, Path]:
    """By a process of its own: a child's peak memory counts what its parent held when it was forked."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(make, (folder, gib))


def cold(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def memory_of(pid: int) -> int:
    """KiB that a process and all that it has started take at this moment, their parts of what they share."""
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return 0
    return int(told.partition("\nPss:")[2].split()[0]) + sum(map(memory_of, children))


@contextlib.contextmanager
def memory_told(pid: int) -> Iterator[list[int]]:
    """The most that `memory_of` found, in MiB, once this is over."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            most[0] = max(most[0], memory_of(pid) >> 10)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def timed(label: str, command: list, folder: Path, memory: bool = False) -> float:
    """Runs `command` on a cold base; prints its wall time, CPU time and peak memory, and returns the first.

    What it has written is removed: to replace it would be a part of the next one's time.
    """
    os.sync()
    cold(folder)
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder
    )
    with memory_told(process.pid) if memory else contextlib.nullcontext() as most:
        errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"{label}: {errors.decode()[-2000:]}")
    print(
        f"{label:{WIDTH}} {wall:7.1f} s   cpu {used.ru_utime:6.1f} and {used.ru_stime:5.1f} s   "
        f"{used.ru_maxrss / 1024:6.0f} MiB{f', in all {most[0]} MiB' if most and most[0] else ''}",
        flush=True,
    )
    for name in WRITTEN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return wall


def merges(base: Path, adapter: Path, folder: Path, codes: dict[str, Path], processes: list[int]) -> dict[str, list]:
    """The commands by their labels. codes: the folders of the project's versions by what their labels end with.
    processes: by how many, or none for as each version does."""
    steps = {}
    for dtype, rounding in (("float16", "nearest"), ("bfloat16", "nearest"), ("bfloat16", "stochastic")):
        for count in processes or [None]:
            for name, code in codes.items():
                start = ["-m", "jobs"] if count is None else ["-c", BY_SO_MANY, count]
                options = {"base": base, "adapter": adapter, "params": code / "params.yaml", "out": folder / "merged",
                           "metrics": folder / "m.json", "plot": folder / "p.csv"}  # fmt: skip
                words = [word for key, value in options.items() for word in (f"--{key}", value)]
                words += ["--set", f"merge.dtype={dtype}", "--set", f"merge.rounding={rounding}"]
                label = f"jobs merge, {dtype} {rounding}{'' if count is None else f', {count} processes'}{name}"
                steps[label] = ["env", f"PYTHONPATH={code}", sys.executable, *start, "merge", *words]
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--processes", type=int, nargs="+", default=[])
    parser.add_argument("--beside", type=Path)
    options = parser.parse_args()
    codes = {", beside": options.beside.resolve(), "": ROOT} if options.beside else {"": ROOT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, adapter = made(folder, options.gib)
        print(
            f"{(base / 'model.safetensors').stat().st_size / 1e9:.2f} GB, {os.cpu_count()} cores, load "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )
        copy = f"cp {base}/model.safetensors {folder}/copy"
        steps = {"cp": ["sh", "-c", copy], SYNCED: ["sh", "-c", f"{copy} && sync {folder}/copy"]}
        steps |= merges(base, adapter, folder, codes, options.processes)
        if importlib.util.find_spec("llama_cpp"):
            steps["base + adapter to F16 GGUF"] = [sys.executable, "-c", DIRECT, base, adapter, folder / "x.gguf", ROOT]
        else:
            print("base + adapter to F16 GGUF: left out, since llama-cpp-python is not installed", flush=True)
        once = {}
        if not options.no_peft:
            once["peft merge_and_unload, bfloat16"] = [sys.executable, "-c", PEFT, base, adapter, folder / "peft"]
        seconds: dict[str, list[float]] = {}
        for i in range(options.rounds):
            for label, command in (steps | once if i == 0 else steps).items():
                seconds.setdefault(label, []).append(timed(label, command, folder, options.memory))
        for line in summary(seconds):
            print(line)


def summary(seconds: dict[str, list[float]]) -> list[str]:
    """Each step's median beside those of both copies."""
    middle = {label: statistics.median(walls) for label, walls in seconds.items()}
    return [
        f"median of {len(seconds[label])}: {label:{WIDTH}} {wall:7.1f} s, {wall / middle['cp']:.2f} x cp, "
        f"{wall / middle[SYNCED]:.2f} x cp and sync"
        for label, wall in middle.items()
    ]


if __name__ == "__main__":
    main()
