"""The model that a GGUF file must be: base and adapters in float32 by transformers and PEFT.

Independent of the sum in jobs/weights and of llama.cpp's converter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.weights.adapter import attach
from jobs.weights.model import load_model

if TYPE_CHECKING:
    import numpy as np

LONG = 4096  # tokens of text that every model must stand, if it was made for so many
BEYOND = 256  # tokens after a bound within the model's positions, where it first shows


@dataclass(frozen=True)
class Reference:
    model: Any
    tokenizer: Any

    @property
    def end(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def far(self) -> int:
        """How long a text must be to come to where positions are computed otherwise than at the begin.

        That is beyond a window of attention and beyond the context from which rotary positions are scaled.
        """
        config = self.model.config.get_text_config()
        scaled = getattr(config, "rope_parameters", None) or {}
        kinds = [scaled, *(part for part in scaled.values() if isinstance(part, dict))]
        bounds = [getattr(config, "sliding_window", None), getattr(config, "original_max_position_embeddings", None)]
        bounds += [part.get("original_max_position_embeddings") for part in kinds]
        longest = max([LONG, *(bound for bound in bounds if bound)]) + BEYOND
        return min(longest, getattr(config, "max_position_embeddings", None) or longest)

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def answer(self, prompts: list[list[int]], max_tokens: int) -> list[tuple[list[int], str]]:
        """Each prompt's greedy answer: its tokens, the end token among them, and its text."""
        padded = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        batch = padded.to(self.model.device)
        written = self.model.generate(**batch, max_new_tokens=max_tokens)[:, batch["input_ids"].shape[1] :]
        answers = []
        for row in written.tolist():
            end = row.index(self.end) + 1 if self.end in row else len(row)
            answers.append((row[:end], str(self.tokenizer.decode(row[:end], skip_special_tokens=True))))
        return answers

    def logits(self, tokens: list[int], first: int) -> "np.ndarray":
        """(positions from `first`, vocabulary) float32."""
        import torch

        with torch.inference_mode():
            out = self.model(
                torch.tensor([tokens], device=self.model.device), logits_to_keep=len(tokens) - first, use_cache=False
            )
        return out.logits[0].float().cpu().numpy()


def load_reference(base: Path, adapters: list[Path]) -> Reference:
    """Errors: JobError naming the folder that is no model, or whose tokenizer has no end or more tokens than the model."""
    import torch
    from transformers import GenerationConfig

    tokenizer, model = load_model(base, torch.float32, None)
    for adapter in adapters:
        model = attach(model, adapter, base).merge_and_unload()
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    # Not the model's own settings: a repetition penalty there would choose other tokens than the likeliest.
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return Reference(model, tokenizer)
