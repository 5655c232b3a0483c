"""Memory of a GRPO step on a smaller model or card, estimated from what was measured on Qwen3-4B's shape: docs/recipes.md.

    python tests/bench/memory.py

By Unsloth and vLLM the base's weights lie in vLLM's share of the card, once. The rest grows with `grpo.batch_size`, the
rows of a pass. Two cases of tests/bench/gpu.py (docs/performance.md) give what a row takes: with gradients checkpointed it
is the logits and what else grows with the vocabulary, and what is saved by checkpointing are activations, which grow with
layers x (hidden + intermediate size). An estimate: nobody measured these models.
"""

from dataclasses import dataclass
from pathlib import Path

from yaml import safe_load

RECIPES = Path(__file__).parents[2] / "recipes"
CARD = 24  # GiB
TOKENS = 1024  # of a prompt and a completion, at most: max_prompt_length + max_completion_length
# GiB a row: peak less vLLM's share, by the rows of a pass. The share is of the memory that is free, 139 GiB and 40.
PLAIN = (87.4 - 0.3 * 139) / 16  # grpo-unsloth
CHECKPOINTED = (31.5 - 0.5 * 40) / 8  # grpo-40gb


@dataclass(frozen=True)
class Shape:
    """A model by its config.json; parameters in billions."""

    parameters: float
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def width(self) -> int:
        return self.layers * (self.hidden + self.intermediate)

    @property
    def engine(self) -> float:
        """GiB of weights in bfloat16."""
        return self.parameters * 1e9 * 2 / 2**30

    def cache(self, sequences: int) -> float:
        """GiB of keys and values in bfloat16 of so many whole sequences."""
        return sequences * TOKENS * self.layers * 2 * self.kv_heads * self.head_dim * 2 / 2**30


MEASURED = Shape(4.02, 36, 2560, 9728, 8, 128, 151936)
SHAPES = {
    "qwen3-0.6b": Shape(0.596, 28, 1024, 3072, 8, 128, 151936),
    "qwen2.5-coder-1.5b": Shape(1.544, 28, 1536, 8960, 2, 128, 151936),
    "smollm2-1.7b": Shape(1.711, 24, 2048, 8192, 32, 64, 49152),
}


def a_row(shape: Shape) -> float:
    """GiB that one row of a pass takes, gradients not checkpointed."""
    activations = (PLAIN - CHECKPOINTED) * shape.width / MEASURED.width
    return activations + CHECKPOINTED * shape.vocabulary / MEASURED.vocabulary


def line(name: str, shape: Shape) -> str:
    grpo = safe_load((RECIPES / f"{name}.yaml").read_text())["grpo"]
    share, rows = grpo["gpu_memory"] * CARD, grpo["batch_size"]
    sequences = grpo["batch_size"] * grpo["gradient_accumulation"]
    return (
        f"| `{name}.yaml` | {a_row(shape):.1f} x {rows} | {share:.1f} | {share + rows * a_row(shape):.0f} "
        f"| {shape.engine:.1f} + {shape.cache(sequences):.1f} |"
    )


def table() -> str:
    return "\n".join(
        [
            "| recipe | a row x rows, GiB | vLLM's share | together | what the share is for: weights + keys and values |",
            "|---|---|---|---|---|",
            *(line(name, shape) for name, shape in SHAPES.items()),
        ]
    )


if __name__ == "__main__":
    print(table())
