"""Sampling with vLLM: the engine on a GPU. Written for vLLM 0.25 (its V1 engine).

All prompts go to the engine in one call, a request a sample: it batches as it likes, and every sample has its own seed.
Reading a prompt n times costs little, because its keys and values are cached.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path

from jobs.common.errors import JobError, UsageError
from jobs.inference import Completion, Generate, Prompt, Sampling, as_text, sample_seed
from jobs.inference.vllm_settings import compilation, memory, prepare
from jobs.weights.adapter import check_base, check_modules, config_of
from jobs.weights.model import require_whole
from jobs.weights.tokenizer import ids_of, load_tokenizer

SEQUENCES = 512  # decoded at once, at most
ELSEWHERE = "it is in the image `train` and wants a GPU: elsewhere set evaluate.engine to transformers"
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what the engine's kernels are built for; a rank runs in the next one


def begin_import(batch_invariant: bool) -> None:
    """Imports vLLM in a thread, which takes some 15 s, while the caller reads the model's bytes for its resume key."""
    set_environment(batch_invariant)

    def work() -> None:
        with contextlib.suppress(ImportError):  # `load` will say so
            importlib.import_module("vllm.entrypoints.llm")

    threading.Thread(target=work, daemon=True).start()


def set_environment(batch_invariant: bool) -> None:
    """What vLLM reads when it is imported."""
    prepare()
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(batch_invariant))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(batch_invariant))


def load(
    path: Path,
    *,
    adapter: Path | None = None,
    dtype: str = "bfloat16",
    batch_invariant: bool = False,
    gpu_memory: float = 0.9,
    kv_cache_gib: float | None = None,
) -> Generate:
    """The model in folder `path`, with the PEFT adapter in `adapter` left unmerged, as `generate(prompts, sampling)`.

    batch_invariant: kernels whose results do not depend on the batch; slower, and greedy decoding becomes a property of
    the model alone. Without it two runs agree because the scheduling is the same, in this process and deterministic.
    gpu_memory: the fraction of the GPU that weights and caches may take; kv_cache_gib: in its place GiB of keys and
    values.
    Errors: UsageError without vLLM, or for a prompt that leaves no room for max_tokens; JobError if loading fails.
    """
    set_environment(batch_invariant)
    try:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise UsageError(f"evaluate.engine: vllm cannot be imported here ({error}); {ELSEWHERE}") from None

    options: dict = {}
    lora = None
    require_whole(path)
    if adapter is not None:
        check_base(adapter, path)
        check_modules(adapter, path)
        options = lora_options(adapter, batch_invariant)
        lora = LoRARequest(adapter.name, 1, str(adapter.resolve()))
    try:
        engine = LLM(
            str(path),
            dtype=dtype,
            seed=0,
            max_num_seqs=SEQUENCES,
            compilation_config=compilation(SEQUENCES),
            load_format="safetensors",
            trust_remote_code=False,
            **memory(gpu_memory, kv_cache_gib),
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(f"{path}: vLLM cannot load it ({' '.join(str(error).split())})") from error

    end_before_waiting(engine, batch_invariant)
    tokenizer = load_tokenizer(path)  # vLLM's own would read a special token where a prompt spells one

    def generate(prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        ids = [ids_of(tokenizer, prompt) for prompt in prompts]
        require_room(engine, prompts, ids, sampling)
        requests = [request(as_text(prompt), i, sampling) for prompt in prompts for i in range(sampling.n)]
        tokens = [{"prompt_token_ids": tokens} for tokens in ids for _ in range(sampling.n)]
        outputs = engine.generate(tokens, requests, lora_request=lora, use_tqdm=True)
        flat = [completion(output.outputs[0]) for output in outputs]
        return [flat[start : start + sampling.n] for start in range(0, len(flat), sampling.n)]

    return generate


def end_before_waiting(engine, batch_invariant: bool) -> None:
    """Has this process end the engine's own one, which there is with batch_invariant, before it waits for its children.

    vLLM ends that process as the interpreter ends. A process of a pool waits for its children before, and would for ever.
    """
    if batch_invariant:
        util.Finalize(None, engine.llm_engine.engine_core.shutdown, exitpriority=0)


def require_room(engine, prompts: Sequence[Prompt], ids: list[list[int]], sampling: Sampling) -> None:
    """Errors: UsageError for a prompt that leaves no room for max_tokens: the engine would shorten it in silence."""
    room = engine.llm_engine.model_config.max_model_len
    for prompt, tokens in zip(prompts, ids, strict=True):
        length = len(tokens)
        if length + sampling.max_tokens > room:
            raise UsageError(
                f"a prompt of {length} tokens and {sampling.max_tokens} new ones do not fit the "
                f"model's {room} positions: {as_text(prompt)[:60]!r}"
            )


def request(prompt: str, number: int, sampling: Sampling):
    """vLLM's SamplingParams for sample `number` of a prompt, which do not hang on the model's own generation config."""
    from vllm import SamplingParams

    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature else 1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop) or None,
        seed=sample_seed(sampling.seed, prompt, number) if sampling.temperature else None,
    )


def completion(output) -> Completion:
    """Errors: JobError for a request that ended in neither of the two ways, such as an abort."""
    if output.finish_reason not in ("stop", "length"):
        raise JobError(f"vLLM ended a request by {output.finish_reason!r}")
    return Completion(output.text, len(output.token_ids), output.finish_reason)


def lora_options(adapter: Path, batch_invariant: bool) -> dict:
    options: dict = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapter)}
    if batch_invariant:
        options["worker_extension_cls"] = "jobs.inference.vllm_lora.BatchInvariant"
    return options


def lora_rank(adapter: Path) -> int:
    """The smallest rank of the engine's that holds the adapter's largest."""
    config = config_of(adapter)
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    fitting = [size for size in LORA_RANKS if size >= rank]
    if not fitting:
        raise UsageError(f"{adapter}: rank {rank} is above vLLM's {LORA_RANKS[-1]}; merge the adapter first")
    return fitting[0]
