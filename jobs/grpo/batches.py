"""How a step's completions are laid out in forward passes: rows that teach nothing are left out, the others sorted.

A row whose advantage is zero has a gradient of exactly zero where there is no KL term, and one whose mask is empty always.
So it needs no pass. The others are sorted by length, and each pass is padded to its own longest row. Where rows are shorter
than the step's longest a pass takes more of them, as long as it has no more tokens than TRL's own pass. That is as much
memory in fewer passes, and each pass starts as many kernels whatever its size.

The loss stays the one that TRL would have had. Where it divides by the rows of a pass, it is multiplied by the quotient of
this pass's rows and those of TRL's. Where it divides by the tokens of a pass, which are others in each of TRL's, the
advantages of a row are: all of TRL's losses are linear in the advantage. The KL term is not, so with one such a loss keeps
TRL's own passes.

The ranks of a run go through each pass together and compare what they measure there, row by row. So with several of them a
pass has as many rows on each as on the one that has most, and at least one. The further rows teach nothing. They may be
longer there than here, so no pass then has more rows than TRL's.
"""

from collections.abc import Callable

import torch

BY_TOKENS = ("bnpo",)  # divided by the tokens of a pass
BY_ROWS = ("grpo", "dr_grpo", "luspo", "sapo")  # divided by the rows of a pass
BY_STEP = ("dapo", "cispo")  # divided by the tokens of the whole step

# Where a token's column is counted from the step's shortest prompt on, as Unsloth packs rows to the left.
PACKED = ("old_per_token_logps", "ref_per_token_logps")

Rows = list[list[int]]


def passes(
    output: dict,
    count: int,
    loss: str,
    *,
    tokens_of_step: bool,
    kl: bool = False,
    by_rank: Callable[[list[int]], list[list[int]]] | None = None,
) -> list[dict]:
    """A step's completions as `count` passes, of which the last ones may have no row.

    output: what TRL's trainer made of a step: tensors of (completions, ...), and others that are kept as they are.
    loss: TRL's loss_type. tokens_of_step: the engine divides bnpo by the tokens of the whole step, as Unsloth does.
    kl: there is a KL term, by which a row without an advantage teaches too.
    by_rank: given the numbers of rows of this rank's passes, returns every rank's; None where there is one rank.
    `taught` of a pass says whether any rank has a row in it that teaches; `share` is what its loss is to be multiplied by.
    Errors: ValueError for a loss that is not known to sum over its rows.
    """
    if not sums(loss, tokens_of_step=tokens_of_step, kl=kl):
        raise ValueError(f"the loss {loss}{' with a KL term' if kl else ''} is not known to sum over its rows")
    prompts, completions = output["prompt_mask"].sum(dim=1), output["completion_mask"].sum(dim=1)
    lengths = prompts + completions
    size = len(lengths) // count
    theirs = [rows.tolist() for rows in torch.randperm(len(lengths)).split(size)]
    teaches = loss_mask(output).any(dim=1) if kl else taught(output)
    order = [row for row in lengths.argsort(descending=True, stable=True).tolist() if teaches[row]]
    trim = can_be_trimmed(output)
    room = len(order) if trim and not by_rank else size
    ours = sorted_passes(order, prompts.tolist(), completions.tolist(), size, room)
    ours += [[] for _ in range(count - len(ours))]
    of_ranks = by_rank([len(rows) for rows in ours]) if by_rank else [[len(rows) for rows in ours]]
    most = [max(sizes) for sizes in zip(*of_ranks, strict=True)]
    sizes = [max(1, size) for size in most] if by_rank else most
    if loss in BY_TOKENS and not tokens_of_step:
        output = output | {"advantages": output["advantages"] * scales(output, theirs, ours)}
    whole = with_silent_row(output, int(lengths.argmin()))
    return [
        taken(whole, rows + [len(lengths)] * (wanted - len(rows)), trim)
        | {"taught": found > 0, "share": wanted / size if loss in BY_ROWS else 1.0}
        for rows, wanted, found in zip(ours, sizes, most, strict=True)
    ]


def sums(loss: str, *, tokens_of_step: bool, kl: bool) -> bool:
    """Whether a step's loss can be laid out in other passes than TRL's."""
    return loss in BY_STEP + BY_ROWS or (loss in BY_TOKENS and (tokens_of_step or not kl))


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


def scales(output: dict, theirs: Rows, ours: Rows) -> torch.Tensor:
    """(completions,) what a row's advantage is multiplied by, so that means over our passes' tokens sum to TRL's."""
    tokens = loss_mask(output).sum(dim=1).to(output["advantages"].dtype)
    result = torch.ones_like(output["advantages"])
    for rows in theirs:
        result[rows] /= tokens[rows].sum().clamp(min=1)
    for rows in ours:
        result[rows] *= tokens[rows].sum().clamp(min=1)
    return result


def taken(output: dict, rows: list[int], trim: bool = True) -> dict:
    """The rows of every tensor; with `trim` without the columns that are padding in all of them."""
    part = {
        name: value[rows] if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in output.items()
    }
    return trimmed(part) if rows and trim else part


def trimmed(part: dict) -> dict:
    """Without the columns of prompts on the left and of completions on the right that no row fills."""
    width = widths(part)
    longest = {name: max(1, int(part[f"{name}_mask"].sum(dim=1).max())) for name in width}
    result = dict(part)
    for name, value in tables(part):
        if name.startswith("prompt"):
            result[name] = value[:, -longest["prompt"] :]
        elif value.shape[1] == width["completion"]:
            result[name] = value[:, : longest["completion"]]
        elif name in PACKED:
            result[name] = value[:, : value.shape[1] - sum(width.values()) + sum(longest.values())]
    return result


def can_be_trimmed(output: dict) -> bool:
    """Whether the layout of each tensor of a whole step is known."""
    width, shortest = widths(output), int(output["prompt_mask"].sum(dim=1).min())
    for name, value in tables(output):
        known = {1, width["prompt" if name.startswith("prompt") else "completion"]}
        if name in PACKED:
            known.add(sum(width.values()) - shortest)
        if value.shape[1] not in known:
            return False
    return True


def widths(part: dict) -> dict[str, int]:
    return {name: part[f"{name}_mask"].shape[1] for name in ("prompt", "completion")}


def tables(part: dict) -> list[tuple[str, torch.Tensor]]:
    """The tensors of (rows, tokens) by name."""
    return [(name, value) for name, value in part.items() if isinstance(value, torch.Tensor) and value.dim() == 2]


def nothing(model: torch.nn.Module) -> torch.Tensor:
    """The loss of a pass without rows: zero, and so is its gradient to every weight that is trained."""
    return torch.stack([weight.flatten()[0] * 0.0 for weight in model.parameters() if weight.requires_grad]).sum()
