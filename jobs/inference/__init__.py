"""What every engine shares: the request, the answer, and a sample's seed.

An engine module (`transformers`, `vllm`, `llama_cpp`) has one function, `load(path, ...) -> Generate`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How to draw completions.

    n: completions per prompt.
    temperature: 0 is greedy decoding; `top_p` and `seed` then have no effect.
    top_p: nucleus mass in (0, 1].
    max_tokens: tokens generated at most, an end-of-sequence token among them.
    stop: strings that end a completion; they are cut off the text.
    seed: sample i of a prompt depends on (seed, prompt, i) alone, not on what else is in the call.
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """text: without the prompt, the end-of-sequence token and the stop string.

    tokens: tokens generated, those of an end-of-sequence token or a stop string among them.
    finish: "length" when max_tokens ran out, else "stop".
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]


# A text, or a conversation's turns: after each but the last stands the end-of-text token, as the chat template has it.
Prompt = str | tuple[str, ...]
Generate = Callable[[Sequence[Prompt], Sampling], list[list[Completion]]]


def as_text(prompt: Prompt) -> str:
    """One text for a prompt, by which its seeds are drawn and a message names it."""
    return prompt if isinstance(prompt, str) else "\0".join(prompt)


def sample_seed(seed: int, prompt: str, sample: int) -> int:
    """The seed, 0 <= s < 2**63, of sample number `sample` of `prompt`."""
    digest = hashlib.sha256(f"{seed}\0{sample}\0{prompt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
