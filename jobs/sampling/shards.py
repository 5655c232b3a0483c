"""Several processes draw one model's samples, each on a card of its own. SHARDS in the environment says how many.

It is no param, because it changes no sample. A sample's seed hangs on its prompt and number alone. transformers and
llama.cpp get the same calls whoever makes them, so the same sums are added up in the same order, bit for bit. vLLM gets
a share of the tasks in each process, so it must be told to compute alike in any batch (evaluate.batch_invariant).
"""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.common.errors import JobError, UsageError
from jobs.plumbing.cli import log_to_stderr
from jobs.sampling.engine import Model

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from jobs.inference import Completion, Prompt, Sampling
    from jobs.plumbing.params import Evaluate

VARIABLE = "SHARDS"
CARDS = "CUDA_VISIBLE_DEVICES"
MOST = 64

Call = tuple[list["Prompt"], "Sampling"]
Answers = Callable[[Iterable[Call]], Iterator["list[list[Completion]]"]]


def number_of_shards(engine: str, batch_invariant: bool) -> int:
    """SHARDS, 1 without it. engine: "vllm", "transformers" or "llama_cpp".

    Errors: UsageError where it is no such number, where there are fewer cards, or where samples would change with it.
    """
    text = os.environ.get(VARIABLE) or "1"
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise UsageError(f"{VARIABLE}={text}: must be a number of processes from 1 to {MOST}")
    shards = int(text)
    if shards > 1 and engine == "vllm" and not batch_invariant:
        raise UsageError(
            f"{VARIABLE}={shards}: vLLM's samples would change with it; set evaluate.batch_invariant: true, or unset it"
        )
    cards = os.environ.get(CARDS)
    if cards and len(cards.split(",")) < shards:
        raise UsageError(f"{VARIABLE}={shards}: {CARDS}={cards} names fewer cards than that")
    return shards


@contextlib.contextmanager
def drawn_by(shards: int, settings: "Evaluate", model: Path, adapter: Path | None) -> Iterator["Model | Shards"]:
    """What answers calls with this model: this process, or `shards` others that end with the context."""
    if shards == 1:
        yield Model(settings, model, adapter)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    cards = context.Queue()
    visible = os.environ.get(CARDS)
    for card in visible.split(",")[:shards] if visible else map(str, range(shards)):
        cards.put(card)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(shards, context, begin, (cards, settings, model, adapter))
    try:
        yield Shards(pool)
        pool.shutdown()
    except BaseException:
        workers = set(multiprocessing.active_children()) - before
        for worker in workers:  # shutdown would wait for what they are at
            worker.kill()
        for worker in workers:
            worker.join()
        raise


class Shards:
    """The same as a `Model`, by a pool of processes that have one each.

    load_seconds: of the process that took longest to load it.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self.pool = pool
        self.load_seconds = 0.0

    def answers(self, calls: Iterable[Call]) -> "Iterator[list[list[Completion]]]":
        """What each call gives, in order, whichever process has answered it. Errors: JobError if one of them died."""
        # Not by the pool's `map`: where it is broken off it cancels what waits, and the pool's thread then ends with a
        # traceback of its own, since it cannot say of those that their process was killed.
        asked = deque(self.pool.submit(answer, call) for call in calls)
        try:
            while asked:
                completions, load_seconds = asked.popleft().result()
                self.load_seconds = max(self.load_seconds, load_seconds)
                yield completions
        except BrokenProcessPool:
            raise JobError(
                f"{VARIABLE}: a process that drew samples was killed (is there memory for as many models?); what was "
                "finished is kept, and the same command goes on from there"
            ) from None


own: Model  # of a process of the pool


def begin(cards: "Queue[str]", settings: "Evaluate", path: Path, adapter: Path | None) -> None:
    """The start of a process of the pool: it takes a card, and will load the model at its first call."""
    global own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the job, which ends its processes
    log_to_stderr()
    os.environ[CARDS] = cards.get()
    own = Model(settings, path, adapter)


def answer(call: Call) -> "tuple[list[list[Completion]], float]":
    prompts, sampling = call
    return own.generate(prompts, sampling), own.load_seconds
