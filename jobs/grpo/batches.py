"""How a step's completions are laid out in forward passes: rows that teach nothing are left out, the others sorted.

A row whose advantage is zero, or whose mask is empty, has a gradient of exactly zero where there is no KL term. So it
needs no pass. The others are sorted by length, and each pass is padded to its own longest row. Where rows are shorter than
the step's longest a pass takes more of them, as long as it has no more tokens than TRL's own pass. That is as much memory
in fewer passes, and each pass starts as many kernels whatever its size.

The loss stays the one that TRL would have had: where it divides by something of a pass, the advantages of a row are scaled
by the quotient of what TRL's own pass would have divided by and what this one does. All of TRL's losses are linear in the
advantage.

The ranks of a run go through each pass together and compare what they measure there, row by row. So with several of them a
pass has as many rows on each as on the one that has most, and at least one. The further rows teach nothing. They may be
longer there than here, so no pass then has more rows than TRL's.
"""

from collections.abc import Callable

import torch

BY_TOKENS = ("bnpo",)  # divided by the tokens of a pass
BY_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")  # divided by the rows of a pass
BY_STEP = ("dapo", "cispo")  # divided by the tokens of the whole step

Rows = list[list[int]]


def passes(
    output: dict,
    count: int,
    loss: str,
    *,
    tokens_of_step: bool,
    by_rank: Callable[[list[int]], list[list[int]]] | None = None,
) -> list[dict]:
    """A step's completions as `count` passes, of which the last ones may have no row.

    output: what TRL's trainer made of a step: tensors of (completions, ...), and others that are kept as they are.
    loss: TRL's loss_type. tokens_of_step: the engine divides bnpo by the tokens of the whole step, as Unsloth does.
    by_rank: given the numbers of rows of this rank's passes, returns every rank's; None where there is one rank.
    `taught` of a pass says whether any rank has a row in it that teaches.
    """
    prompts, completions = output["prompt_mask"].sum(dim=1), output["completion_mask"].sum(dim=1)
    lengths = prompts + completions
    size = len(lengths) // count
    theirs = [rows.tolist() for rows in torch.randperm(len(lengths)).split(size)]
    teaches = taught(output)
    order = [row for row in lengths.argsort(descending=True, stable=True).tolist() if teaches[row]]
    room = size if by_rank or not can_be_trimmed(output) else len(order)
    ours = sorted_passes(order, prompts.tolist(), completions.tolist(), size, room)
    ours += [[] for _ in range(count - len(ours))]
    of_ranks = by_rank([len(rows) for rows in ours]) if by_rank else [[len(rows) for rows in ours]]
    most = [max(sizes) for sizes in zip(*of_ranks, strict=True)]
    sizes = [max(1, size) for size in most] if by_rank else most
    scale = scales(output, theirs, ours, sizes, loss, tokens_of_step)
    scaled = with_silent_row(output | {"advantages": output["advantages"] * scale}, int(lengths.argmin()))
    return [
        taken(scaled, rows + [len(lengths)] * (size - len(rows))) | {"taught": found > 0}
        for rows, size, found in zip(ours, sizes, most, strict=True)
    ]


def loss_mask(output: dict) -> torch.Tensor:
    """(completions, tokens): the tokens that are in the loss, without what was said to the model between two answers."""
    return output["completion_mask"] * output["tool_mask"] if "tool_mask" in output else output["completion_mask"]


def taught(output: dict) -> torch.Tensor:
    """(completions,) bool: whether a row has any gradient."""
    return (output["advantages"] != 0) & loss_mask(output).any(dim=1)


def sorted_passes(order: list[int], prompts: list[int], completions: list[int], size: int, room: int) -> Rows:
    """The rows of `order`, longest first so that memory runs out at once or never, dealt out to passes.

    prompts, completions: tokens of every row of the step. A pass has `size` rows, or up to `room` where its tokens, with
    their padding, stay within those of `size` rows that are as long as the step's longest prompt and completion; its
    completions alone as well, for each of their tokens has logits.
    """
    most_answers = size * max(completions)
    most = most_answers + size * max(prompts)
    passes: Rows = []
    wide = (0, 0)
    for row in order:
        prompt, answer = max(wide[0], prompts[row]), max(wide[1], completions[row])
        rows = len(passes[-1]) + 1 if passes else 0
        if 0 < rows <= room and rows * answer <= most_answers and rows * (prompt + answer) <= most:
            passes[-1].append(row)
            wide = prompt, answer
        else:
            passes.append([row])
            wide = prompts[row], completions[row]
    return passes


def with_silent_row(output: dict, row: int) -> dict:
    """`output` with one more completion, a copy of `row` that has no advantage and no token in the loss."""
    copied = {
        name: torch.cat([value, value[row : row + 1]]) if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in output.items()
    }
    for name in ("advantages", "completion_mask"):
        copied[name][-1] = 0
    return copied


def scales(output: dict, theirs: Rows, ours: Rows, sizes: list[int], loss: str, tokens_of_step: bool) -> torch.Tensor:
    """(completions,) what a row's advantage is multiplied by, so that our passes sum to the loss of TRL's.

    sizes: of our passes, with the rows that are added to them.
    """
    result = torch.ones_like(output["advantages"])
    if loss in BY_STEP or (loss in BY_TOKENS and tokens_of_step):
        return result
    if loss not in BY_TOKENS + BY_ROWS:
        raise ValueError(f"the loss {loss} is not known to sum over its rows")
    tokens = loss_mask(output).sum(dim=1).to(result.dtype)
    weights = tokens if loss in BY_TOKENS else torch.ones_like(result)
    divisor = torch.ones_like(result)  # of TRL's pass, by row
    for rows in theirs:
        divisor[rows] = weights[rows].sum().clamp(min=1)
    for rows, size in zip(ours, sizes, strict=True):
        if rows:
            whole = weights[rows].sum().clamp(min=1) if loss in BY_TOKENS else size
            result[rows] = whole / divisor[rows]
    return result


def taken(output: dict, rows: list[int]) -> dict:
    """The rows of every tensor, without the columns that are padding in all of them."""
    part = {
        name: value[rows] if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in output.items()
    }
    return trimmed(part) if rows else part


def trimmed(part: dict) -> dict:
    """Without the columns of prompts on the left and of completions on the right that no row fills.

    Tensors that are laid out in another way, as Unsloth's old log-probabilities are, stay as wide as they are, and with
    them all others.
    """
    if not can_be_trimmed(part):
        return part
    width = widths(part)
    longest = {name: max(1, int(part[f"{name}_mask"].sum(dim=1).max())) for name in width}
    result = dict(part)
    for name, value in tables(part):
        if name.startswith("prompt"):
            result[name] = value[:, -longest["prompt"] :]
        elif value.shape[1] == width["completion"]:
            result[name] = value[:, : longest["completion"]]
    return result


def can_be_trimmed(part: dict) -> bool:
    width = widths(part)
    return all(
        value.shape[1] in (1, width["prompt" if name.startswith("prompt") else "completion"])
        for name, value in tables(part)
    )


def widths(part: dict) -> dict[str, int]:
    return {name: part[f"{name}_mask"].shape[1] for name in ("prompt", "completion")}


def tables(part: dict) -> list[tuple[str, torch.Tensor]]:
    """The tensors of (rows, tokens) by name."""
    return [(name, value) for name, value in part.items() if isinstance(value, torch.Tensor) and value.dim() == 2]


def nothing(model: torch.nn.Module) -> torch.Tensor:
    """The loss of a pass without rows: zero, and so is its gradient to every weight that is trained."""
    return torch.stack([weight.flatten()[0] * 0.0 for weight in model.parameters() if weight.requires_grad]).sum()
