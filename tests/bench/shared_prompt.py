"""Whether a prompt that its group shares changes what is learned: Unsloth's own row of a group, on a CPU in float64.

    python tests/bench/shared_prompt.py UNSLOTH

Reads   UNSLOTH  the package's folder, of which utils/prefix_grouper.py and prefix_grouper_kernel.py alone are loaded: the
                 package itself wants a GPU. Its attention is compiled there; here it is torch's, by the same mask.

Prints, for a step's passes with whole groups, how far a small Qwen3's log-probabilities and the gradients of all its
weights are from those of one row at a time, the latter in parts of the largest; and for passes as they are otherwise,
whether there is a group in them.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs.grpo import batches

PAD, GROUP, PROMPTS, MOST = 0, 4, (5, 9, 7), 14


def main() -> None:
    layouts, masks = loaded(Path(sys.argv[1]) / "utils")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model, output = small_model(), step()
    for group in (GROUP, 1):
        for part in batches.passes(output, 3, "dapo", tokens_of_step=True, group=group):
            padding = (part["prompt_mask"] == 0).sum(dim=1)
            ids = moved(torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1))
            width = part["completion_ids"].shape[1]
            layout = layouts.build_group_layout(ids, width, PAD, GROUP, padding, apply_tokr_gate=False)
            if layout is None:
                print(f"{len(ids)} rows, {int((ids != PAD).sum())} tokens: no group found")
                continue
            weights = torch.randn(len(ids), layout.W)
            shared, gradient = backward(model, of_layout(model, layout, masks), weights)
            apart, expected = backward(model, by_row(model, ids, width, padding)[:, -layout.W :], weights)
            far = (gradient - expected).abs().max() / expected.abs().max()
            print(
                f"{len(ids)} rows, {int((ids != PAD).sum())} tokens as {layout.flat_ids.shape[1]}: log-probabilities "
                f"{(shared - apart).abs().max():.1e} apart, gradients {far:.1e}"
            )


def loaded(folder: Path) -> tuple[types.ModuleType, types.ModuleType]:
    for name in ("unsloth", "unsloth.utils"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("prefix_grouper_kernel", "prefix_grouper"):
        spec = importlib.util.spec_from_file_location(f"unsloth.utils.{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["unsloth.utils.prefix_grouper"], sys.modules["unsloth.utils.prefix_grouper_kernel"]


def small_model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=500, pad_token_id=PAD,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).double().eval()


def step() -> dict:
    """Twelve completions of three prompts, of unequal lengths, one without an advantage."""
    prompts = torch.tensor(PROMPTS).repeat_interleave(GROUP)[:, None]
    prompt_mask = torch.arange(max(PROMPTS)) >= max(PROMPTS) - prompts
    ids = torch.randint(1, 500, (len(PROMPTS), max(PROMPTS))).repeat_interleave(GROUP, dim=0)
    completion_mask = torch.arange(MOST) < torch.randint(1, MOST + 1, (len(ids), 1))
    advantages = torch.randn(len(ids))
    advantages[1] = 0.0
    return {
        "prompt_ids": ids.masked_fill(~prompt_mask, PAD),
        "prompt_mask": prompt_mask.long(),
        "completion_ids": torch.randint(1, 500, completion_mask.shape).masked_fill(~completion_mask, PAD),
        "completion_mask": completion_mask.long(),
        "advantages": advantages,
        "num_items_in_batch": completion_mask.sum(),
    }


def moved(ids: torch.Tensor) -> torch.Tensor:
    """Rows with their padding behind them, as Unsloth's `left_pack_padding` makes them."""
    return ids.gather(1, (ids == PAD).long().argsort(dim=1, stable=True))


def logps(hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, *_) -> torch.Tensor:
    return (hidden @ head.T).log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]


def of_layout(model, layout, masks) -> torch.Tensor:
    told = layout.prefix_seg_info
    keep = masks._make_mask_mod(told.group_of_kv, told.is_prefix, told.suffix_of_kv)
    places = torch.arange(told.T)
    mask = keep(0, 0, places[:, None], places[None, :])[None, None]
    hidden = model.model(input_ids=layout.flat_ids, position_ids=layout.position_ids, attention_mask=mask)
    return layout.extract_logps(hidden.last_hidden_state, model.lm_head.weight, logps, 1, 0, 0, 0, 1).double()


def by_row(model, ids: torch.Tensor, width: int, padding: torch.Tensor) -> torch.Tensor:
    """(rows, columns of `ids`) log-probabilities where a row's completion stands."""
    rows = []
    for row, left in zip(ids, padding.tolist(), strict=True):
        tokens, start = row[row != PAD][None], ids.shape[1] - width - left
        hidden = model.model(input_ids=tokens).last_hidden_state
        found = logps(hidden[:, start - 1 : -1], model.lm_head.weight, tokens[:, start:])[0]
        rows.append(torch.nn.functional.pad(found, (start, ids.shape[1] - tokens.shape[1])))
    return torch.stack(rows)


def backward(model, found: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradient = torch.autograd.grad((found * weights).sum(), list(model.parameters()))
    return found.detach(), torch.cat([each.flatten() for each in gradient])


if __name__ == "__main__":
    main()
