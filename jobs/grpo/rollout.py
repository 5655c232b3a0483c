"""GRPO's rollouts by vLLM in the place of TRL's own, which merges the adapter into the trained bfloat16 base at every step
and takes it out again: that changes the base itself.

Either vLLM holds the untouched base, and every step's adapter is written to shared memory and loaded as a new LoRA. Or it
holds the sum of base and adapter in float16, made anew for every step from the trainer's base in float32: a decode step is
then as fast as without an adapter, nothing adds up from step to step, and rounding takes next to nothing of an update.
Or it holds that sum in 8 bits (fp8.py): its weights are half as large, and what is sampled is less exactly the policy.
"""

import atexit
import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import process_folder
from jobs.grpo import fp8, turns
from jobs.inference import Sampling, hf
from jobs.inference.vllm_settings import compilation, memory, prepare
from jobs.plumbing import launch
from jobs.plumbing.params import ALL_LINEAR, Grpo, Params

if TYPE_CHECKING:
    import torch


class Rollout:
    """What TRL's trainer asks of its vLLM: `sync_weights()` after a step, `generate(...)` before the next.

    What vLLM holds, and how a step's weights get there, are the classes below.
    """

    folder: Path | None = None  # where adapters are handed over, if they are

    def __init__(self, params: Params, base: Path, model) -> None:
        prepare()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process
        from vllm import LLM

        settings = params.grpo
        self.settings, self.model = settings, model
        self.llm = LLM(
            str(base),
            **self.holding(params),
            # Within a process group, each rank has an engine of its own, on the card that is the rank's.
            distributed_executor_backend="external_launcher" if launch.is_rank() else None,
            max_model_len=room(settings),
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            load_format="safetensors",
            trust_remote_code=False,
            **engine_options(params),
        )

    def holding(self, params: Params) -> dict[str, Any]:
        """vLLM's options for what it holds."""
        raise NotImplementedError

    def sync_weights(self) -> None:
        """Has vLLM sample by the adapter as it is now."""
        raise NotImplementedError

    def lora(self) -> Any:
        """vLLM's name for the adapter that was synced last; None where it knows of none."""
        return None

    def generate(
        self, prompts: list[list[int]], num_generations: int, *, logps: bool
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Completions for prompts of token ids, each repeated `num_generations` times in a row.

        With `logps` also the log-probabilities of their tokens under the distribution they were drawn from.
        """
        from vllm import TokensPrompt

        wanted = {"logprobs": 0 if logps else None, "flat_logprobs": logps}
        sampling = sampling_params(self.settings, num_generations, self.settings.temperature, **wanted)
        requests = [TokensPrompt(prompt_token_ids=ids) for ids in prompts[::num_generations]]
        outputs = self.llm.generate(requests, sampling, lora_request=self.lora(), use_tqdm=False)
        completions = [completion for output in outputs for completion in output.outputs]
        ids = [list(completion.token_ids) for completion in completions]
        # vLLM gives one log-probability a token, the sampled one's.
        return ids, [list(completion.logprobs.logprobs) for completion in completions] if logps else None

    def fingerprint(self) -> dict[str, int]:
        """`training.fingerprint` of the base that vLLM holds."""
        from jobs.training.loop import fingerprint

        return self.llm.apply_model(fingerprint)[0]


class AdapterRollout(Rollout):
    """A Rollout whose vLLM holds the base in bfloat16, and loads every step's adapter as a new LoRA."""

    folder: Path

    def __init__(self, params: Params, base: Path, model) -> None:
        self.folder, self.version = adapter_folder("jobs-adapter"), 0
        atexit.register(self.close)
        super().__init__(params, base, model)

    def holding(self, params: Params) -> dict[str, Any]:
        rank = params.sft.lora.rank
        return {"dtype": "bfloat16", "enable_lora": True, "max_loras": 1, "max_lora_rank": rank} | lora_targets(params)

    def sync_weights(self) -> None:
        """Writes the adapter under a number that vLLM has not seen."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder / str(self.version))
        self.version += 1
        self.model.save_pretrained(self.folder / str(self.version), selected_adapters=["default"])

    def lora(self) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(f"adapter-{self.version}", self.version, str(self.folder / str(self.version)))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class MergedRollout(Rollout):
    """A Rollout whose vLLM holds the sum of the base and the adapter in float16, and knows of no adapter."""

    name, instead = "vllm_merged", "vllm"
    sums_in = "float16"
    merged: set[str]  # the names of vLLM's parameters that are such sums

    def __init__(self, params: Params, base: Path, model) -> None:
        super().__init__(params, base, model)
        self.sync_weights()

    def holding(self, params: Params) -> dict[str, Any]:
        return {"dtype": "float16"}

    def sync_weights(self) -> None:
        """Errors: JobError for weights that vLLM has no place for, or that `sums_in` cannot hold."""
        import torch

        bad = torch.zeros((), dtype=torch.bool, device=self.model.device)

        def told() -> Iterator[tuple[str, torch.Tensor]]:
            for name, whole in sums(self.model):
                weight = whole.to(getattr(torch, self.sums_in))
                bad.logical_or_(~weight.isfinite().all())
                yield name, weight

        try:
            [self.merged] = self.llm.apply_model(lambda model: self.put(model, told()))
        except (KeyError, ValueError) as error:
            raise JobError(
                f"grpo.rollout: {self.name} cannot put this model's layers into vLLM; set {self.instead} "
                f"({one_line(error)})"
            ) from error
        if bad:
            raise JobError(
                f"grpo.rollout: {self.name}: {self.sums_in} cannot hold the sum of base and adapter; set {self.instead}"
            )
        self.llm.reset_prefix_cache()  # its keys and values are those of the weights before

    def put(self, model, weights: Iterator[tuple[str, "torch.Tensor"]]) -> set[str]:
        """Puts weights, by their names in the base, into vLLM's model; returns the names that its parameters have there."""
        return set(model.load_weights(weights))

    def fingerprint(self) -> dict[str, int]:
        """Of what no step changes: the sums are made anew from the trainer's base."""
        return {name: bits for name, bits in super().fingerprint().items() if name not in self.merged}


class Fp8Rollout(MergedRollout):
    """A MergedRollout whose vLLM holds the linear layers' sums in 8 bits, and the rest in float16.

    The sum goes from float32 to 8 bits at once. What vLLM multiplies it with is rounded to 8 bits as well, by token.
    """

    name, instead = "vllm_merged_fp8", "vllm_merged"
    sums_in = "float32"

    def __init__(self, params: Params, base: Path, model) -> None:
        try:
            super().__init__(params, base, model)
        except ValueError as error:
            raise JobError(
                f"grpo.rollout: {self.name}: vLLM cannot hold this model in 8 bits on this card; set {self.instead} "
                f"({one_line(error)})"
            ) from error

    def holding(self, params: Params) -> dict[str, Any]:
        return {"dtype": "float16", "quantization": "fp8_per_channel"}

    def put(self, model, weights: Iterator[tuple[str, "torch.Tensor"]]) -> set[str]:
        return fp8.put(model, weights)


def adapter_folder(name: str) -> Path:
    """A new folder for this process to hand adapters over by, in memory where the machine has a place for that."""
    memory = Path("/dev/shm")
    return process_folder(memory if memory.is_dir() else Path(tempfile.gettempdir()), name)


# By grpo.rollout; `transformers` needs none.
KINDS: dict[str, type[Rollout]] = {"vllm": AdapterRollout, "vllm_merged": MergedRollout, "vllm_merged_fp8": Fp8Rollout}


def sums(model) -> Iterator[tuple[str, "torch.Tensor"]]:
    """The layers of a PEFT model that have a factor pair, as float32 weights under their names in the base.

    The sum is taken in float32, of the frozen weight and scaling x B A.
    """
    import torch
    from peft.tuners.lora import Linear

    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, Linear) and "default" in layer.lora_A:
                base: Any = layer.get_base_layer()
                whole = base.weight.float() + layer.get_delta_weight("default").float()
                yield f"{name.removeprefix('base_model.model.')}.weight", whole


def decoded(
    model, prompts: list[list[int]], seeds: list[int], temperature: float, settings: Grpo, ends: set[int],
    told: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:  # fmt: skip
    """A completion of each prompt of token ids by transformers, each by its own seed.

    model: a PEFT model, which is not training. ends: the tokens that end a completion. told: called with a prompt's place
    and its completion as soon as it has ended.
    """
    import torch

    numbers: dict[tuple[int, ...], int] = {}
    rows = [(ids, numbers.setdefault(tuple(ids), len(numbers))) for ids in prompts]
    most = settings.max_completion_length
    sampling = Sampling(temperature=temperature, top_p=settings.top_p, max_tokens=most)
    with torch.inference_mode():
        return hf.decode(
            model.get_base_model(), rows, seeds, sampling, partial(hf.up_to_end, ends=ends, most=most), told
        )


def room(settings: Grpo) -> int:
    """Tokens of the longest row: a prompt and its completion, or with two turns both answers and what stands between."""
    answers = settings.turns * settings.max_completion_length
    return settings.max_prompt_length + answers + (settings.turns - 1) * turns.MOST


@contextlib.contextmanager
def watch(llm, ended: Callable[[list[int], list[int]], None]) -> Iterator[None]:
    """Calls `ended(prompt's ids, completion's ids)` the moment a request of `llm`, vLLM's LLM in this process, has ended.

    `LLM.generate` itself returns when all have. Read from vLLM 0.25: an engine's step asks its core for new tokens by
    `get_output`, and only afterwards adds them to a request's state and forgets a finished one.
    """
    core, states = llm.llm_engine.engine_core, llm.llm_engine.output_processor.request_states
    original = core.get_output

    def get_output():
        outputs = original()
        for output in outputs.outputs:
            state = states.get(output.request_id)
            if output.finish_reason is not None and state is not None:
                ended(state.prompt_token_ids, [*state.detokenizer.output_token_ids, *output.new_token_ids])
        return outputs

    core.get_output = get_output
    try:
        yield
    finally:
        core.get_output = original


def answers(
    generation, prompts: list[list[int]], n: int, temperature: float, settings: Grpo, seed: int, folder: Path
) -> list[list[list[int]]]:
    """`n` completions of each prompt of token ids by the adapter as it is now; temperature 0 is greedy.

    generation: a Rollout, or TRL's VLLMGeneration as Unsloth has patched it. folder: where Unsloth may write the
    adapter's configuration.
    """
    from vllm import TokensPrompt

    if isinstance(generation, Rollout):
        generation.sync_weights()
        lora = generation.lora()
    else:
        lora = generation._unsloth_load_lora(str(folder), load_tensors=True)
    # Also greedy ones have a seed: vLLM draws one for a request without it, and training's next answers would be others.
    sampling = sampling_params(settings, n, temperature, seed=seed)
    requests = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    outputs = generation.llm.generate(requests, sampling, lora_request=lora, use_tqdm=False)
    return [[list(completion.token_ids) for completion in output.outputs] for output in outputs]


def sampling_params(settings: Grpo, n: int, temperature: float, **more: Any):
    """vLLM's SamplingParams for `n` completions, which do not hang on the model's own generation config; 0 is greedy."""
    from vllm import SamplingParams

    return SamplingParams(
        n=n,
        temperature=temperature,
        top_p=settings.top_p if temperature else 1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=settings.max_completion_length,
        detokenize=False,
        **more,
    )


def engine_options(params: Params) -> dict[str, Any]:
    """Settings of vLLM's engine that are the same here and in Unsloth."""
    sequences = math.prod(params.grpo.share)
    return {
        "seed": params.seed + launch.rank(),
        "max_num_seqs": sequences,
        "compilation_config": compilation(sequences),
        **memory(params.grpo.gpu_memory, params.grpo.kv_cache_gib),
    }


def lora_targets(params: Params) -> dict[str, list[str]]:
    """Without it: LoRA kernels in every layer, on zeros. That is right where all layers are trained."""
    targets = params.sft.lora.targets
    return {} if targets == [ALL_LINEAR] else {"lora_target_modules": list(targets)}


@contextlib.contextmanager
def unsloth_engine_options(params: Params) -> Iterator[None]:
    """Makes the engine that Unsloth builds take `engine_options`, for which it has no arguments."""
    import vllm

    original: Any = vllm.LLM

    class Engine(original):
        def __init__(self, *arguments, **options) -> None:
            prepare()  # Unsloth has switched FlashInfer's sampler on
            ours = options | engine_options(params) | lora_targets(params)
            # vLLM warms up with so many tokens, dealt out to `max_num_seqs` sequences. One that gets more than it may have
            # is read past the end of its keys and values, which ends the process. Unsloth sees to that for its own number
            # of sequences, and vLLM where it chooses the number of tokens.
            if "max_num_batched_tokens" in options:
                most = ours["max_num_seqs"] * ours["max_model_len"]
                ours["max_num_batched_tokens"] = min(options["max_num_batched_tokens"], most)
            super().__init__(*arguments, **ours)

    vllm.LLM = Engine
    try:
        yield
    finally:
        vllm.LLM = original
