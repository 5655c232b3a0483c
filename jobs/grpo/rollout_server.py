"""The rollout in a process of its own, with a card of its own where there are cards (grpo.staleness: 1).

The process has its own copy of the base with the adapter's factors, and the Rollout of grpo.rollout over it; for
`transformers` that copy samples by itself. It answers one request after the other. Each brings the adapter to sample by.
"""

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jobs.common.errors import JobError, UsageError, one_line
from jobs.grpo import rollout
from jobs.inference import sample_seed
from jobs.plumbing.cli import log_to_stderr
from jobs.plumbing.params import Params
from jobs.plumbing.supervisor import die_with_parent

CARDS = "CUDA_VISIBLE_DEVICES"
LOST = signal.SIGUSR1  # by which the reading thread breaks off what the main thread does

Told = Callable[
    [list[int], list[int]], None
]  # of a prompt's and a completion's tokens, the moment the latter has ended


@dataclass(frozen=True)
class Sampled:
    """A step's completions: their tokens, the tokens' log-probabilities, and the seconds that sampling them took."""

    ids: list[list[int]]
    logps: list[list[float]]
    seconds: float


def second_card(visible: str | None) -> str | None:
    """The card for the process, by its name in CUDA_VISIBLE_DEVICES; None on a machine without cards.

    visible: that variable as it was before the trainer kept the first card for itself (loop.prepare). Where it names
    none, the second is meant; whether there is one the process will see. Errors: UsageError where it names one alone.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    cards = visible.split(",") if visible else ["0", "1"]
    if len(cards) < 2:
        raise UsageError(
            f"grpo.staleness: 1 samples on a second card, and {CARDS} is {visible}: name two, or set staleness to 0"
        )
    return cards[1]


@contextlib.contextmanager
def started(params: Params, base: Path, adapter: Path, visible: str | None) -> "Iterator[RemoteRollout | None]":
    """The process's client, while within; None with grpo.staleness 0. visible: as of `second_card`."""
    if not params.grpo.staleness:
        yield None
        return
    remote = RemoteRollout(params, base, adapter, second_card(visible))
    try:
        yield remote
    finally:
        remote.close()


class RemoteRollout:
    """What the trainer's process knows of the other one. To be made, asked and closed by the main thread.

    If the other process ends, the main thread is broken off at once by a JobError, whatever it is doing.
    """

    def __init__(self, params: Params, base: Path, adapter: Path, card: str | None) -> None:
        """card: the value of CUDA_VISIBLE_DEVICES there; None leaves it as it is."""
        self.folder = rollout.adapter_folder("jobs-adapter-ahead")
        self.number, self.error, self.closing = 0, "", False
        self.leftover: Path | None = None  # a folder of the process's own, which cannot remove it when it is killed
        self.loaded: Future = Future()
        self.waiting: deque[tuple[Future, Told | None]] = deque([(self.loaded, None)])
        self.before = signal.signal(LOST, self.lost)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, params, base, adapter, card))
        self.process.start()
        atexit.register(self.close)
        theirs.close()
        self.reader = threading.Thread(target=self.read, name="rollout", daemon=True)
        self.reader.start()

    def ask(self, what: str, model, *arguments: Any, told: Told | None = None) -> Future:
        """Hands a request over with the adapter as it is in `model` now, None for none; returns the answer to come."""
        if self.error:
            raise JobError(self.error)
        folder = None
        if model is not None:
            self.number += 1
            folder = self.folder / str(self.number)
            model.save_pretrained(folder, selected_adapters=["default"])
        future: Future = Future()
        self.waiting.append((future, told))
        try:
            self.pipe.send((what, folder, *arguments))
        except OSError:
            self.reader.join(3)  # which knows why, and breaks this off
            raise JobError(self.error or self.ended()) from None
        return future

    def sample(self, model, prompts: list[list[int]], seed: int, ends: set[int], told: Told) -> "Future[Sampled]":
        """Completions of prompts of token ids, each repeated grpo.generations times in a row. ends: what ends one."""
        return self.ask("sample", model, prompts, seed, ends, told=told)

    def answers(self, model, prompts: list[list[int]], n: int, temperature: float) -> list[list[list[int]]]:
        """`rollout.answers` by the adapter as it is in `model` now."""
        return self.ask("answers", model, prompts, n, temperature).result()

    def fingerprint(self) -> dict[str, int]:
        """`training.fingerprint` of the bases that the process has."""
        return self.ask("fingerprint", None).result()

    def wait(self) -> None:
        """Until the process has loaded what it samples with."""
        self.leftover = self.loaded.result()

    def read(self) -> None:
        """The thread that hears what the process says, until it has ended."""
        try:
            while True:
                kind, value = self.pipe.recv()
                if kind == "failed":
                    return self.fail(value)
                future, told = self.waiting[0]
                if kind == "result":
                    self.waiting.popleft()
                    future.set_result(value)
                elif told is not None:
                    told(*value)
        except (EOFError, OSError):
            self.fail(self.ended())
        except BaseException as error:  # or the main thread would wait for ever
            self.fail(f"grpo.staleness: an answer could not be taken up ({one_line(error)})")

    def ended(self) -> str:
        self.process.join(1)
        code = self.process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return f"grpo.staleness: the process that samples has ended {how}; the checkpoints before stay"

    def fail(self, why: str) -> None:
        if self.closing:
            return
        self.error = why
        signal.pthread_kill(threading.main_thread().ident or 0, LOST)
        for future, _ in list(self.waiting):
            if not future.done():
                future.set_exception(JobError(why))

    def lost(self, number: int, frame: object) -> None:
        if not self.closing:
            self.closing = True
            raise JobError(self.error)

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        self.closing = True
        atexit.unregister(self.close)
        self.process.kill()
        self.process.join()
        signal.signal(LOST, self.before)
        for folder in filter(None, (self.folder, self.leftover)):
            shutil.rmtree(folder, ignore_errors=True)


def serve(pipe: Connection, params: Params, base: Path, adapter: Path, card: str | None) -> None:
    """The process: answers requests until nobody is there to ask."""
    if card is not None:
        os.environ[CARDS] = card
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    die_with_parent(parent.pid)
    import torch

    from jobs.training import loop

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the trainer, which ends this process
    log_to_stderr()
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            loop.prepare("transformers")
            if card is not None and not torch.cuda.is_available():
                raise JobError(f"grpo.staleness: 1 samples on a second card, and there is no card {card}")
            sampler = Sampler(params, base, adapter)
            pipe.send(("result", sampler.rollout.folder if sampler.rollout is not None else None))
            while True:
                what, folder, *arguments = pipe.recv()
                pipe.send(("result", sampler.answer(pipe, what, folder, arguments)))
        except (EOFError, ConnectionError):
            raise
        except JobError as error:
            pipe.send(("failed", str(error)))
        except Exception as error:
            traceback.print_exc()
            pipe.send(("failed", f"grpo.staleness: the process that samples has failed ({one_line(error)})"))


class Sampler:
    """What the process has: the model with the adapter's factors, and the Rollout over it; None for `transformers`."""

    def __init__(self, params: Params, base: Path, adapter: Path) -> None:
        from jobs.training import loop

        self.params, self.settings = params, params.grpo
        self.model = loop.load_model(base, params.sft.lora, adapter, params.seed).eval()
        kind = rollout.KINDS.get(self.settings.rollout)
        self.rollout = kind(params, base, self.model) if kind is not None else None

    def answer(self, pipe: Connection, what: str, folder: Path | None, arguments: list[Any]) -> Any:
        from jobs.training.loop import fingerprint, load_adapter

        if folder is not None:
            load_adapter(self.model, folder)
            shutil.rmtree(folder)
        if what == "fingerprint":
            held = self.rollout.fingerprint() if self.rollout is not None else {}
            return fingerprint(self.model) | {f"vllm {name}": bits for name, bits in held.items()}
        if what == "answers":
            prompts, n, temperature = arguments
            seed, unused = self.params.seed, Path()
            return rollout.answers(self.rollout, prompts, n, temperature, self.settings, seed, unused)
        began = time.perf_counter()
        prompts, seed, ends = arguments
        ids, logps = self.sampled(prompts, seed, ends, lambda *ended: pipe.send(("ended", ended)))
        return Sampled(ids, logps, time.perf_counter() - began)

    def sampled(
        self, prompts: list[list[int]], seed: int, ends: set[int], told: Told
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Completions and the log-probabilities of their tokens by the adapter as it is."""
        if self.rollout is not None:
            self.rollout.sync_weights()
            with rollout.watch(self.rollout.llm, told):
                ids, logps = self.rollout.generate(prompts, self.settings.generations, logps=True)
            return ids, logps or []
        seeds = [sample_seed(seed, "", i) for i in range(len(prompts))]
        ids = rollout.decoded(
            self.model, prompts, seeds, self.settings.temperature, self.settings, ends,
            lambda i, found: told(prompts[i], found),
        )  # fmt: skip
        return ids, [self.logps(*pair) for pair in zip(prompts, ids, strict=True)]

    def logps(self, prompt: list[int], completion: list[int]) -> list[float]:
        """Of a completion's tokens under the distribution that they were drawn from, by a pass of its own."""
        import torch

        given = torch.tensor([prompt + completion[:-1]], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=given, logits_to_keep=len(completion)).logits[0]
            whole = torch.log_softmax(logits.float() / self.settings.temperature, -1)
            chosen = torch.tensor(completion, device=whole.device)
            return whole.gather(1, chosen[:, None])[:, 0].tolist()
