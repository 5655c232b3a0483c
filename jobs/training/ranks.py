"""What the ranks of a training run ask of each other. With one process every function here is trivial.

Each rank holds the whole model, trains on its part of every step's batch, and takes the same optimizer step on the mean
gradient (PyTorch's DistributedDataParallel), so their adapters stay the same bit by bit. Only rank 0 writes.
"""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jobs.common.errors import JobError, UsageError, one_line
from jobs.plumbing import launch

T = TypeVar("T")


def count() -> int:
    return launch.ranks()


def number() -> int:
    """This process's, from 0 on."""
    return launch.rank()


def main() -> bool:
    """Whether this is the rank that writes."""
    return launch.rank() == 0


@contextlib.contextmanager
def joined(key: str, processes: int) -> Iterator[None]:
    """Within, this process is in the process group; to be entered before anything else asks for a card.

    What comes after is rank 0's alone. key: the param that says `processes`. Errors: UsageError if this process is no rank
    of so many; JobError if another rank is gone, or has not answered within the timeout: no run hangs.
    """
    if not launch.works(key, processes):
        raise UsageError(f"{key} is {processes}, and this is one process: start it as python -m jobs")
    if not launch.is_rank():
        yield
        return
    try:
        join()
        yield
        barrier()
    except RuntimeError as error:
        if not is_lost(error):
            raise
        seconds = launch.timeout()
        raise JobError(f"another rank is gone, or did not answer within {seconds:g} s ({one_line(error)})") from None
    import torch

    torch.distributed.destroy_process_group()


def is_lost(error: Exception) -> bool:
    """Whether an operation failed for want of another rank: PyTorch has a type for some of these, gloo has none."""
    import torch

    known = isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
    return launch.is_rank() and known


def join() -> None:
    """NCCL between GPUs, gloo without them."""
    import torch

    limit = datetime.timedelta(seconds=launch.timeout())
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.rank_here())
        torch.distributed.init_process_group("nccl", timeout=limit)
    else:
        # accelerate would name each rank's CPU by a number, and torch loads no optimizer's state onto "cpu:1".
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        torch.distributed.init_process_group("gloo", timeout=limit)


def barrier() -> None:
    """Waits until all ranks are here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """The value of each rank, by rank, on all of them."""
    if launch.ranks() == 1:
        return [value]
    import torch

    found: list = [None] * launch.ranks()
    torch.distributed.all_gather_object(found, value)
    return found


def from_main(function: Callable[[], T]) -> T:
    """What the function returns on rank 0, on all ranks; the others do not call it."""
    return gathered(function() if main() else None)[0]  # type: ignore[return-value]


def total(*values: float) -> list[float]:
    """Each value's sum over the ranks, added up in their order."""
    return [sum(of_all) for of_all in zip(*gathered(values), strict=True)]


def weights_hash(model: Any) -> str:
    """The hash of names and bytes of all weights that are trained."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_equal(what: str, value: object) -> None:
    """Errors: JobError naming the first rank whose value is not that of rank 0."""
    found = gathered(value)
    for number, other in enumerate(found):
        if other != found[0]:
            raise JobError(f"{what} of rank {number} is not that of rank 0")
