"""Batched sampling with transformers: the engine on a CPU, and on any GPU where vLLM is not installed.

Each prompt is read once, its keys and values are copied to its samples, and rows that have ended leave the batch. Every
sample has its own stream of uniform numbers, so it does not depend on its neighbours, as far as arithmetic allows: the
order of additions in a matrix product may change with the batch, and a token changes if a number falls between.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jobs.common.errors import JobError, UsageError
from jobs.inference import Completion, Generate, Prompt, Sampling, as_text, sample_seed
from jobs.weights.adapter import attach
from jobs.weights.cache import first_pass
from jobs.weights.model import load_model
from jobs.weights.tokenizer import continuation, end_tokens, ids_of

T = TypeVar("T")

CHECK_EVERY = 8  # steps between looks for stop strings and finished rows: each look decodes every row's text


def load(path: Path, *, adapter: Path | None = None, dtype: str = "float32", batch_size: int = 256) -> Generate:
    """The model in folder `path`, with the PEFT adapter in `adapter` left unmerged, as `generate(prompts, sampling)`.

    dtype: "float32", "bfloat16" or "float16": what weights are cast to and products are computed in.
    batch_size: sequences decoded at once.
    Errors: JobError naming the folder that is not a model, or the prompt that leaves no room for max_tokens.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = load_model(path, getattr(torch, dtype), attention())
    if adapter is not None:
        model = attach(model, adapter, path).get_base_model()
    model = model.to(device).eval()
    ends = end_tokens(tokenizer, model)
    # Mamba and Bloom name no end of their positions.
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf

    def generate(prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        ids = [ids_of(tokenizer, prompt) for prompt in prompts]
        for prompt, tokens in zip(prompts, ids, strict=True):
            if not tokens or len(tokens) + sampling.max_tokens > room:
                raise UsageError(
                    f"a prompt of {len(tokens)} tokens and {sampling.max_tokens} new ones do not fit the "
                    f"model's {room} positions: {as_text(prompt)[:60]!r}"
                )
        rows = sorted(((p, s) for p in range(len(prompts)) for s in range(sampling.n)), key=lambda r: len(ids[r[0]]))
        answers: list[list[Completion]] = [[None] * sampling.n for _ in prompts]  # type: ignore[list-item]
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                seeds = [sample_seed(sampling.seed, as_text(prompts[p]), s) for p, s in batch]
                ended = partial(finished, tokenizer, ends=ends, sampling=sampling)
                decoded = decode(model, [(ids[p], p) for p, _ in batch], seeds, sampling, ended)
                for (p, s), completion in zip(batch, decoded, strict=True):
                    answers[p][s] = completion
        return answers

    return generate


def decode(
    model,
    rows: list[tuple[list[int], int]],
    seeds: list[int],
    sampling: Sampling,
    ended: Callable[[list[int]], T | None],
    told: Callable[[int, T], None] | None = None,
) -> list[T]:
    """One batch from prompts to completions, in order.

    rows: a prompt's token ids and its number. Rows of one number are samples of one prompt, which is read once.
    seeds: of every row's own stream of uniform numbers.
    ended: called with the ids that a row has so far, at times more than it needs: the completion, or None to go on. It
        must not be None at `sampling.max_tokens` ids.
    told: called with a row's number and its completion as soon as it has ended, while others go on.
    """
    import torch

    most = sampling.max_tokens
    logits, position, mask, cache = read_prompts(model, rows, most)
    width = mask.shape[1] - most
    noise = uniform(seeds, most, model.device) if sampling.temperature else None
    numbers = list(range(len(rows)))  # which of `rows` each row of the batch is
    written: list[list[int]] = [[] for _ in rows]
    pending: list[torch.Tensor] = []
    done: dict[int, T] = {}
    for step in range(most):
        chosen = logits.argmax(-1) if noise is None else pick(logits, noise[:, step], sampling)
        pending.append(chosen)
        position = position + 1
        if len(pending) == CHECK_EVERY or step + 1 == most:
            for number, more in zip(numbers, torch.stack(pending, 1).tolist(), strict=True):
                written[number] += more
            pending.clear()
            over = {number: end for number in numbers if (end := ended(written[number])) is not None}
            done |= over
            if told is not None:
                for number, completion in over.items():
                    told(number, completion)
            keep = [row for row, number in enumerate(numbers) if number not in over]
            if not keep:
                break
            if over:
                left = torch.tensor(keep, device=model.device)
                numbers = [numbers[row] for row in keep]
                chosen, position, mask = chosen[left], position[left], mask[left]
                noise = noise if noise is None else noise[left]
                cache.reorder_cache(left)
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=mask[:, : width + step + 1],
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return [done[number] for number in range(len(rows))]


def read_prompts(model, rows: list[tuple[list[int], int]], most: int) -> tuple[Any, Any, Any, Any]:
    """Reads each distinct prompt of `rows` once, padded on the left, and copies what it left to each of its rows.

    Returns the logits [rows, vocabulary] and the position [rows] of each row's last token, the mask [rows, width + most]
    of what attention sees, with room for `most` new tokens, and the key-value cache.
    Errors: JobError if the logits are not finite, and as `first_pass`.
    """
    import torch

    device = model.device
    distinct = list({number: ids for ids, number in rows}.items())
    width = max(len(ids) for _, ids in distinct)
    tokens = torch.zeros(len(distinct), width, dtype=torch.long)
    mask = torch.zeros(len(distinct), width, dtype=torch.long)
    for i, (_, ids) in enumerate(distinct):
        tokens[i, width - len(ids) :] = torch.tensor(ids)
        mask[i, width - len(ids) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    cache = growing_cache(model.config, width + most)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = first_pass(model, cache, input_ids=tokens, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    logits = out.logits[:, -1]
    if not logits.isfinite().all():
        raise JobError("the model's logits are not finite: its weights are broken, or too large for its dtype")
    place = {number: i for i, (number, _) in enumerate(distinct)}
    copies = torch.tensor([place[number] for _, number in rows], device=device)
    cache.reorder_cache(copies)
    mask = torch.cat([mask[copies], mask.new_ones(len(rows), most)], dim=1)
    return logits[copies], positions[copies, -1], mask, cache


def uniform(seeds: list[int], count: int, device) -> Any:
    """Numbers in [0, 1), float64 [seeds, count]: a row of its own for each seed."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.random.default_rng(seed).random(count) for seed in seeds])).to(device)


def pick(logits, uniform, sampling: Sampling):
    """Tokens [rows] drawn from logits [rows, vocabulary] by the uniform numbers [rows]: inverse of the cumulative sum.

    top_p keeps the smallest set of most probable tokens whose mass reaches it (and tokens that tie with the last one).
    """
    import torch

    probabilities = torch.softmax(logits.float() / sampling.temperature, -1)
    if sampling.top_p < 1:
        ordered = probabilities.sort(-1, descending=True).values
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        least = ordered.masked_fill(outside, 2.0).amin(-1, keepdim=True)
        probabilities = probabilities.where(probabilities >= least, 0.0)
    cumulative = probabilities.double().cumsum(-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]


def up_to_end(ids: list[int], ends: set[int], most: int) -> list[int] | None:
    """The ids up to the first end-of-sequence token, that one included, or all once there are `most`; else None."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    if end is not None:
        return ids[: end + 1]
    return ids if len(ids) >= most else None


def finished(tokenizer, ids: list[int], ends: set[int], sampling: Sampling) -> Completion | None:
    """The completion if `ids` hold its end (end-of-sequence, stop string, or max_tokens of them), else None."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    if end is None and not sampling.stop and len(ids) < sampling.max_tokens:
        return None
    text = continuation(tokenizer, ids[:end])
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in sampling.stop if stop in text]
    if found:
        whole, cut = min(found)
        return Completion(text[:cut], tokens_until(tokenizer, ids[:end], text[:whole]), "stop")
    if end is not None:
        return Completion(text, end + 1, "stop")
    return Completion(text, len(ids), "length") if len(ids) >= sampling.max_tokens else None


def tokens_until(tokenizer, ids: list[int], text: str) -> int:
    """How many of `ids` it takes to write `text`."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(continuation(tokenizer, ids[:middle])) >= len(text) else (middle + 1, high)
    return low


def growing_cache(config, length: int):
    """A key-value cache with room for `length` tokens, filled in place: the stock one copies itself at every token."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Layer(DynamicLayer):
        used = 0

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
                self.store = [
                    states.new_empty(*states.shape[:2], length, states.shape[3])
                    for states in (key_states, value_states)
                ]
            end = self.used + key_states.shape[2]
            self.store[0][:, :, self.used : end] = key_states
            self.store[1][:, :, self.used : end] = value_states
            self.used = end
            self.keys, self.values = (tensor[:, :, :end] for tensor in self.store)
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.used

        def reorder_cache(self, rows):
            self.store = [tensor.index_select(0, rows) for tensor in self.store]

    cache = DynamicCache(config=config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return cache  # sliding windows and recurrent states keep their own layers, which are right, only slower
    cache.layers = [Layer() for _ in cache.layers]
    return cache


def attention() -> str:
    """The name of an SDPA attention that does not copy keys and values for every head of a group when decoding."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def grouped(module, query, key, value, attention_mask, scaling=None, **kwargs):
        rows, heads, length, size = query.shape
        if length > 1 or heads == key.shape[1]:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        # One query a head: the heads of a group take the place of the sequence, and share its keys and its mask.
        query = query.view(rows, key.shape[1], heads // key.shape[1], size)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return out.reshape(rows, 1, heads, size), None

    AttentionInterface.register("sdpa_grouped", grouped)
    AttentionMaskInterface.register("sdpa_grouped", sdpa_mask)
    return "sdpa_grouped"
