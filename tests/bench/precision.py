"""What storing a merged model keeps of its training: float16, bfloat16 by either rounding, float32, casts in between.

    python tests/bench/precision.py --models .smoke/models --tasks .smoke/data/tasks/toy.jsonl

Takes the toy pipeline's base and its real SFT and GRPO adapters (GRPO continues SFT's), and random adapters whose
update has an RMS of 2e-3, 2e-4 and 2e-5, on that base and on one of random weights ~N(0, 0.02), as a 4B model's are.
Bases are stored in bfloat16 first, as real ones are. Prints, for each way to store the sum: the share of the update
kept along its direction, the relative error, the share of weights that did not move, and, for the real adapters, GRPO's
own part of it and sampled pass@1 on the tasks, computed in float32 whatever the weights are stored in. Last, what Q4_K_M
keeps of the smallest update, quantized from the float32 sum and by way of a 16 bit file. Not a job: it makes nothing that
another stage reads.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from jobs import merge  # noqa: E402
from jobs.common.answer_format import chat_prompt  # noqa: E402
from jobs.common.files import read_json, read_jsonl  # noqa: E402
from jobs.extraction.worker import Extractor  # noqa: E402
from jobs.inference import Sampling  # noqa: E402
from jobs.weights.lora import updates_of  # noqa: E402
from jobs.weights.safetensors import tensors_of  # noqa: E402
from jobs.weights.sum import Storage, write_model  # noqa: E402

STORAGES = [Storage("F32"), Storage("F16"), Storage("BF16", True, 3407), Storage("BF16")]


def stored(base: Path, adapters: list[Path], storage: Storage, out: Path) -> Path:
    """`base` + `adapters` in folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_model(base, updates_of(base, adapters), storage, out)
    merge.copy_rest(base, out, "float32")
    return out


def weights(model: Path, names: list[str]) -> dict[str, np.ndarray]:
    return {name: tensor.values().astype(np.float64) for name, tensor in tensors_of(model).items() if name in names}


def kept(model: Path, base: Path, whole: Path) -> dict[str, float]:
    """What `model` kept of the way from `base` to `whole`, which is stored in float32."""
    ends, starts = tensors_of(whole), tensors_of(base)
    names = [name for name in starts if ends[name].values().tobytes() != starts[name].values().tobytes()]
    w, t, m = weights(base, names), weights(whole, names), weights(model, names)
    u, s = (np.concatenate([(x[name] - w[name]).ravel() for name in names]) for x in (t, m))
    return {
        "retention": u @ s / (u @ u),
        "relative error": np.linalg.norm(s - u) / np.linalg.norm(u),
        "unchanged": float((s == 0).mean()),
        "rms": float(np.sqrt((u**2).mean())),
    }


def pass_at_1(model: Path, tasks: list[dict], max_tokens: int, samples: int) -> float:
    """Mean over `samples` a task at temperature 0.8, the same seeds for every model."""
    from jobs.inference import hf
    from jobs.sandbox import Sandbox

    generate = hf.load(model, dtype="float32")
    sampling = Sampling(max_tokens=max_tokens, n=samples, temperature=0.8, top_p=0.95, seed=0)
    answers = generate([chat_prompt(task["prompt"]) for task in tasks], sampling)
    with Extractor() as extractor:
        programs = [
            (t, extractor.extract(a.text, t["prompt"], t["entry_point"], "cot", a.finish == "length").solution)
            for t, of_task in zip(tasks, answers, strict=True)
            for a in of_task
        ]
    with Sandbox(timeout=10.0) as sandbox:
        return sum(v.passed for v in sandbox.run(programs)) / len(programs)


def quantized(model: Path, adapters: list[Path], folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The float32 weights of model + adapters as GGUF names them, and what Q4_K_M makes of them."""
    import gguf

    from jobs.gguf.convert import convert
    from jobs.gguf.job import quantize

    convert(model, adapters, "F32", folder / "f32.gguf", "x")
    quantize(folder / "f32.gguf", folder / "q4.gguf", "Q4_K_M")

    def values(file: str) -> dict[str, np.ndarray]:
        tensors = gguf.GGUFReader(folder / file).tensors
        return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in tensors}

    return values("f32.gguf"), values("q4.gguf")


def kept_by_q4(model: Path, base: Path, adapter: Path, folder: Path) -> float:
    """The share of the adapter's update by which Q4_K_M of `model` differs from Q4_K_M of the base.

    Two quantizations are compared, so that the error which both have falls out.
    """
    before, q_before = quantized(base, [], folder)
    after, _ = quantized(base, [adapter], folder)
    _, q_after = quantized(model, [adapter] if model == base else [], folder)
    names = [name for name in before if (before[name] != after[name]).any()]
    u, s = (np.concatenate([(x[n] - y[n]).ravel() for n in names]) for x, y in ((after, before), (q_after, q_before)))
    return float(u @ s / (u @ u))


def scaled(adapter: Path, out: Path, factor: float) -> Path:
    """The same adapter with its update times `factor`."""
    shutil.copytree(adapter, out)
    config = read_json(out / "adapter_config.json")
    (out / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * factor}))
    return out


def row(name: str, figures: dict[str, float], own: float | None = None, passed: float | None = None) -> None:
    cells = [
        name,
        *(f"{figures[key]:.2%}" for key in ("retention", "relative error", "unchanged")),
        "" if own is None else f"{own:.2%}",
        "" if passed is None else f"{passed:.1%}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def heading(title: str) -> None:
    print(
        f"\n{title}\n\n| stored as | kept | relative error | unmoved | GRPO's own part kept | pass@1 |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / ".smoke/models")
    parser.add_argument("--tasks", type=Path, default=ROOT / ".smoke/data/tasks/toy.jsonl")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--samples", type=int, default=5, help="a task, for pass@1")
    options = parser.parse_args()
    tasks = read_jsonl(options.tasks)
    sft, grpo = (options.models / "adapters" / name for name in ("sft", "grpo"))
    from tests.toy import make_adapter, make_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = stored(options.models / "base", [], Storage("BF16"), folder / "base")
        random = make_model(folder / "random", dtype="bfloat16")
        for label, model in (("weights ~N(0, 0.02)", random), ("the toy model", base)):
            for rms in (2e-3, 2e-4, 2e-5):
                # An element of B @ A with entries ~N(0, s) has the RMS s^2 sqrt(rank); alpha / rank is 2.
                adapter = make_adapter(model, folder / f"{label}-{rms:g}", rank=32, scale=(rms / 2 / 32**0.5) ** 0.5)
                whole = stored(model, [adapter], Storage("F32"), folder / "whole")
                heading(f"Random update of {label}, RMS {kept(whole, model, whole)['rms']:.1e}")
                for storage in STORAGES:
                    row(str(storage), kept(stored(model, [adapter], storage, folder / "x"), model, whole))

        small = folder / "weights ~N(0, 0.02)-2e-05"
        print("\n| Q4_K_M of the update of RMS 2e-5 | kept |\n|---|---|")
        print(f"| from the float32 sum | {kept_by_q4(random, random, small, folder):.1%} |")
        for storage in STORAGES[1:]:
            model = stored(random, [small], storage, folder / "x")
            print(f"| from a {storage} file | {kept_by_q4(model, random, small, folder):.1%} |", flush=True)

        whole_sft = stored(base, [sft], Storage("F32"), folder / "whole-sft")
        whole = stored(base, [grpo], Storage("F32"), folder / "whole")
        rms = kept(whole, base, whole)["rms"], kept(whole, whole_sft, whole)["rms"]
        heading(f"Real SFT + GRPO, RMS {rms[0]:.1e}, GRPO's own part {rms[1]:.1e}; {len(tasks)} tasks")
        row(
            "base, bfloat16", kept(base, base, whole), None, pass_at_1(base, tasks, options.max_tokens, options.samples)
        )
        row(
            "SFT alone, float32",
            kept(whole_sft, base, whole),
            0.0,
            pass_at_1(whole_sft, tasks, options.max_tokens, options.samples),
        )
        for storage in STORAGES:
            model = stored(base, [grpo], storage, folder / "x")
            row(
                str(storage),
                kept(model, base, whole),
                kept(model, whole_sft, whole)["retention"],
                pass_at_1(model, tasks, options.max_tokens, options.samples),
            )
        # GRPO's own update is what its adapter has more than SFT's: the sum of one and of minus the other.
        minus = scaled(sft, folder / "minus", -1.0)
        for storage in (Storage("BF16"), Storage("F16"), Storage("BF16", True, 3407)):
            cast = stored(base, [sft], storage, folder / "cast")
            model = stored(cast, [grpo, minus], storage, folder / "x")
            own = kept(model, cast, stored(cast, [grpo, minus], Storage("F32"), folder / "own"))
            row(
                f"SFT as {storage}, GRPO onto it",
                kept(model, base, whole),
                own["retention"],
                pass_at_1(model, tasks, options.max_tokens, options.samples),
            )

        # The same with GRPO's own part as small as the reference's: moved to RMS 2e-5 along its own direction.
        factor = 2e-5 / rms[1]
        parts = [sft, scaled(grpo, folder / "part", factor), scaled(sft, folder / "part-minus", -factor)]
        whole = stored(base, parts, Storage("F32"), folder / "whole")
        heading(f"Real SFT, GRPO's own part scaled to RMS {kept(whole, whole_sft, whole)['rms']:.1e}")
        for storage in STORAGES:
            model = stored(base, parts, storage, folder / "x")
            row(str(storage), kept(model, base, whole), kept(model, whole_sft, whole)["retention"])
        for storage in (Storage("BF16"), Storage("F16"), Storage("BF16", True, 3407)):
            cast = stored(base, [sft], storage, folder / "cast")
            model = stored(cast, parts[1:], storage, folder / "x")
            own = kept(model, cast, stored(cast, parts[1:], Storage("F32"), folder / "own"))
            row(f"SFT as {storage}, GRPO onto it", kept(model, base, whole), own["retention"])


if __name__ == "__main__":
    main()
