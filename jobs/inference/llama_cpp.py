"""Sampling from a GGUF file by llama.cpp, one sequence at a time."""

import codecs
import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, UsageError, one_line
from jobs.inference import Completion, Generate, Prompt, Sampling, as_text, sample_seed

if TYPE_CHECKING:
    import numpy as np

Stream = Iterator[tuple[str, int, str | None]]


def load(path: Path, *, adapter: Path | None = None, dtype: str | None = None) -> Generate:
    """The GGUF file `path` as `generate(prompts, sampling)`, on the GPU where this llama.cpp was built for one.

    Its context is what the prompts at hand need, up to what the model was made for.
    Errors: UsageError for an adapter or a dtype, which the file settles; JobError if it cannot be loaded.
    """
    if adapter is not None or dtype is not None:
        raise UsageError(f"{path}: a GGUF file holds its adapters and its dtype already")
    file = File(path)

    def generate(prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        file.make_room(prompts, sampling.max_tokens)
        return [[whole(stream(file, prompt, sampling, sample)) for sample in range(sampling.n)] for prompt in prompts]

    return generate


class File:
    """A GGUF file: its vocabulary is loaded at once, and its weights with a context when a request says how long.

    room: the most tokens of prompt and completion together, which the model was made for.
    """

    def __init__(self, path: Path) -> None:
        """Errors: JobError if llama.cpp cannot load the file, and for one that says to end every text, prompts too."""
        self.path = path
        self.vocabulary = vocabulary(path)
        if self.tokenize("a")[-1] == self.vocabulary.token_eos():
            raise JobError(f"{path}: ends every text with its end of text, prompts too (tokenizer.ggml.add_eos_token)")
        facts = self.vocabulary.metadata()
        self.room = int(facts.get(f"{facts.get('general.architecture')}.context_length", 0))
        self.model: Any = None

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids, with what the file says to put around a text, such as a token for its begin.

        A special token that the text spells is text, as in training and for the other engines. The end of text stands
        after each turn of a conversation but the last.
        """
        first, *others = (prompt,) if isinstance(prompt, str) else prompt
        ids = self.vocabulary.tokenize(first.encode(), True, False)
        for turn in others:
            ids += [self.vocabulary.token_eos(), *self.vocabulary.tokenize(turn.encode(), False, False)]
        return ids

    def make_room(self, prompts: Sequence[Prompt], max_tokens: int) -> None:
        """Errors: UsageError for a prompt with which `max_tokens` new ones are more than the model was made for."""
        need = 0
        for prompt in prompts:
            tokens = len(self.tokenize(prompt))
            if self.room and tokens + max_tokens > self.room:
                raise UsageError(
                    f"a prompt of {tokens} tokens and {max_tokens} new ones do not fit the model's {self.room} "
                    f"positions: {as_text(prompt)[:60]!r}"
                )
            need = max(need, tokens + max_tokens)
        if self.model is None or need > self.model.n_ctx():
            if self.model is not None:
                need = max(need, 2 * self.model.n_ctx())  # every new context loads the weights again
                self.model.close()
            self.model = opened(self.path, n_ctx=min(need, self.room or need))


OPEN: list[Path] = []  # the file that llama.cpp works on, named where it stops
SAID: list[str] = []  # the errors that it has logged since
ERROR = 4  # llama.cpp's level of a message (ggml.h)


@functools.cache
def library():
    """The module `llama_cpp`, which logs nothing, and ends the process in one line where one of its assertions fails.

    By itself it would print where in its C++ it stands, or, while it loads a file, nothing at all, and end by SIGABRT.
    """
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # read as the library is loaded
    import llama_cpp
    from llama_cpp import _internals, llama

    llama_cpp.llama_log_set(hear, None)
    ctypes.CDLL("libggml-base.so.0").ggml_set_abort_callback(say_and_end)
    for module in (_internals, llama):  # it sends to /dev/null what an abort says; there is nothing else to hide
        setattr(module, "suppress_stdout_stderr", lambda disable: contextlib.nullcontext())  # noqa: B010
    return llama_cpp


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def hear(level: int, text: bytes, _data: object) -> None:
    if level == ERROR:
        SAID.append(text.decode(errors="replace").strip())


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def say_and_end(message: bytes) -> None:
    """Nothing of Python's can be unwound from here: the C++ that calls this never goes on."""
    where, _, what = message.decode(errors="replace").strip().partition(": ")
    about = f"{OPEN[-1]}: " if OPEN else ""
    sys.stdout.flush()
    print(f"error: {about}llama.cpp stops: {what} ({Path(where).name})", file=sys.stderr, flush=True)
    os._exit(1)


def begin(path: Path):
    """The module `llama_cpp`, to be used for `path`."""
    OPEN[:], SAID[:] = [path], []
    return library()


def unloadable(path: Path, error: Exception) -> JobError:
    """Why the file was not loaded, by the first error that llama.cpp logged."""
    why = SAID[0].rpartition("error loading model")[2].strip(" :") if SAID else ""
    return JobError(f"{path}: cannot be loaded by llama.cpp ({why or one_line(error)})")


def opened(path: Path, **options: Any):
    """The file in llama.cpp. Keys and values are kept in float32, not in float16 as by default: that rounding is not the
    file's, and changes an answer wherever two tokens are nearly as likely.

    Errors: JobError if it cannot be loaded.
    """
    llama_cpp = begin(path)
    float32: dict[str, Any] = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    try:
        return llama_cpp.Llama(str(path), n_gpu_layers=-1, verbose=False, **float32, **options)
    except (ValueError, RuntimeError) as error:
        raise unloadable(path, error) from error


def vocabulary(path: Path):
    """A GGUF file without its weights: tokenize(text, add_special, parse_special), token_bos(), token_eos(), metadata().

    Errors: JobError if llama.cpp cannot load it.
    """
    llama_cpp = begin(path)
    from llama_cpp._internals import LlamaModel

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    try:
        return LlamaModel(path_model=str(path), params=settings, verbose=False)
    except (ValueError, RuntimeError) as error:
        raise unloadable(path, error) from error


def stream(file: File, prompt: Prompt, sampling: Sampling, sample: int = 0) -> Stream:
    """Pieces of one completion as they come: (text, tokens so far, None, or why it ended).

    Text that may turn out to begin a stop string is held back until it is clear.
    """
    llama_cpp = library()
    file.make_room([prompt], sampling.max_tokens)
    tokens, model = file.tokenize(prompt), file.model
    model.reset()  # a sample does not depend on what the last one left in the cache
    model.set_seed(sample_seed(sampling.seed, as_text(prompt), sample) % 2**32)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    hold = max((len(stop) for stop in sampling.stop), default=1) - 1
    text, shown = "", 0
    drawn = model.generate(
        tokens,
        temp=1.0 if sampling.temperature else 0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        logits_processor=[lambda _, logits: nucleus(logits, sampling.temperature, sampling.top_p)]
        if sampling.temperature
        else None,
    )
    for count, token in enumerate(drawn, 1):
        ended = llama_cpp.llama_vocab_is_eog(model._model.vocab, token)
        text += decoder.decode(b"" if ended else model.detokenize([token]), ended or count == sampling.max_tokens)
        cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
        finish = "stop" if ended or cut is not None else "length" if count == sampling.max_tokens else None
        until = cut if cut is not None else len(text) if finish else max(shown, len(text) - hold)
        if finish or until > shown:
            yield text[shown:until], count, finish
        if finish:
            return
        shown = until


def nucleus(logits: "np.ndarray", temperature: float, top_p: float) -> "np.ndarray":
    """(vocabulary,) logits at `temperature`, -inf outside the smallest set of tokens whose probabilities reach `top_p`.

    As transformers and vLLM do it. llama.cpp's own chain cuts at `top_p` before it applies the temperature, which below
    1 leaves more of the tail: on the toy model two points of pass@1.
    """
    import numpy as np

    logits = logits / temperature
    order = np.argsort(-logits)
    likely = np.exp(logits[order] - logits[order[0]], dtype=np.float64)
    likely /= likely.sum()
    logits[order[np.cumsum(likely) - likely >= top_p]] = -np.inf
    return logits


def whole(pieces: Stream) -> Completion:
    texts, counts, ends = zip(*pieces, strict=True)
    return Completion("".join(texts), counts[-1], "length" if ends[-1] == "length" else "stop")
