"""The engine that draws a model's samples, loaded by the settings of `evaluate`."""

import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.inference import Completion, Generate, Prompt, Sampling
    from jobs.plumbing.params import Evaluate


class Model:
    """A model that is loaded when it is first asked: a run that finds all its calls made never loads it."""

    def __init__(self, settings: "Evaluate", path: Path, adapter: Path | None) -> None:
        self.settings, self.path, self.adapter = settings, path, adapter
        self.load_seconds = 0.0

    @cached_property
    def generate(self) -> "Generate":
        began = time.perf_counter()
        loaded = load_engine(self.settings, self.path, self.adapter)
        self.load_seconds = time.perf_counter() - began
        return loaded

    def answers(self, calls: "Iterable[tuple[list[Prompt], Sampling]]") -> "Iterator[list[list[Completion]]]":
        """What each call (prompts, Sampling) gives, in order: for every prompt its completions."""
        for prompts, sampling in calls:
            yield self.generate(prompts, sampling)


def load_engine(settings: "Evaluate", model: Path, adapter: Path | None) -> "Generate":
    if model.suffix == ".gguf":
        from jobs.inference import llama_cpp

        return llama_cpp.load(model, adapter=adapter)
    if settings.engine == "vllm":
        from jobs.inference import vllm

        return vllm.load(
            model,
            adapter=adapter,
            dtype=settings.dtype,
            batch_invariant=settings.batch_invariant,
            gpu_memory=settings.gpu_memory,
            kv_cache_gib=settings.kv_cache_gib,
        )
    from jobs.inference import hf

    return hf.load(model, adapter=adapter, dtype=settings.dtype, batch_size=settings.batch_size)
