"""In which order SFT's examples come: by seed and epoch alone.

So it is the same for any number of ranks, and after a resume.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class Order(Sampler[int]):
    """The numbers of all examples, shuffled anew in every epoch.

    by_length: such that the examples of a batch are of about one length. filled: with the number after the last one, which
    is to be an example that teaches nothing, as often as the last batch lacks examples. Ranks need whole batches to share,
    and accelerate would take examples of the epoch's beginning a second time.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int, *, by_length: bool, filled: bool) -> None:
        """lengths: tokens of each example. batch: examples of an optimizer step, over all ranks."""
        self.lengths, self.batch, self.by_length, self.seed = lengths, batch, by_length, seed
        self.missing = -len(lengths) % batch if filled else 0
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths) + self.missing

    def __iter__(self) -> Iterator[int]:
        count, generator = len(self.lengths), torch.Generator().manual_seed(self.seed + self.epoch)
        if self.by_length:
            yield from get_length_grouped_indices(self.lengths, self.batch, generator=generator)
        else:
            yield from torch.randperm(count, generator=generator).tolist()
        yield from [count] * self.missing

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
