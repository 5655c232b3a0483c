"""llama.cpp's own converter, fed with the sum of a base and its adapters; a program for a process of its own.

    python -m jobs.gguf.converter < request.json

Its gguf-py is another version than the package `gguf`, and comes first on this process's path (see convert.py). Reads a
request {"base", "adapters", "configuration", "kind", "out", "name"} and writes the GGUF file `out`; prints, as JSON, an
object that is empty or says the "error".

One tensor is in memory at a time, in float32. What the converter takes from files beside the weights it reads in the
folder `configuration`. How text is cut into tokens it decides by the family; here the tokenizer's own files decide:

- byte-level BPE is written as such for every family. Which regular expression splits the text first llama.cpp knows by
  a name, and the converter by a hash of what a tokenizer makes of one text. For a tokenizer whose hash it has not seen,
  the name is found by trial: the first that gives the tokenizer's own ids for all the texts of jobs/gguf/texts.py.
- SentencePiece's BPE without its tokenizer.model is written from tokenizer.json: a token scores by the rank of its merge.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_json
from jobs.weights.ends import beside
from jobs.weights.lora import Update, updates_of
from jobs.weights.safetensors import Tensor, blocks, is_embedding, is_head, is_tied, tensors_of
from jobs.weights.sum import summed
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import numpy as np

# The names that most models have, before the many others that llama.cpp knows.
LIKELY = ("qwen2", "llama-bpe", "gpt-2", "gpt-4o", "qwen35", "tekken", "smollm", "deepseek-coder", "deepseek-v3")
# Their routers score experts by a sigmoid, whatever their configuration says.
SIGMOID = {"deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "glm_moe_dsa", "minimax_m2"}
TYPES = {"normal": 1, "unknown": 2, "control": 3, "user defined": 4, "unused": 5, "byte": 6}  # of tokens, llama.cpp's


def values(tensor: Tensor, updates: list[Update]) -> "np.ndarray":
    """The tensor plus its updates, rounded once to float32."""
    import numpy as np

    out = np.empty((tensor.rows, tensor.columns), np.float32)
    rows = slice(0, tensor.rows)
    if updates:
        for block, _, total, _ in summed(tensor, rows, updates):
            out[block] = total
    else:
        for block in blocks(rows, tensor.columns):
            out[block] = tensor.values(block)
    return out.reshape(tensor.shape)


def lazy(tensor: Tensor, updates: dict[str, list[Update]]) -> Any:
    """The tensor plus its updates as the converter takes it, not read yet."""
    import torch
    from conversion.base import LazyTorchTensor

    def load(found: Tensor):
        return torch.from_numpy(values(found, updates.get(found.name, [])))

    meta = LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, tensor.shape)
    return LazyTorchTensor(meta=meta, args=(tensor,), func=load)


def with_one_end(base: Path) -> dict[str, Tensor]:
    """The base's tensors by name; a tied model's one matrix is its embedding.

    Some tools store it under both names, and some under the head's alone.
    """
    tensors = tensors_of(base)
    if not is_tied(base):
        return tensors
    heads = [tensor for name, tensor in tensors.items() if is_head(name)]
    tensors = {name: tensor for name, tensor in tensors.items() if not is_head(name)}
    if heads and not any(map(is_embedding, tensors)):
        tensors["model.embed_tokens.weight"] = heads[0]
    return tensors


def model_class(base: Path, adapters: list[Path], configuration: Path) -> Any:
    """The converter's class for the base's architecture, with its tensors and its tokenizer taken as said above.

    Errors: JobError for an architecture that it does not know, and as `updates_of`.
    """
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture

    tensors, updates = with_one_end(base), updates_of(base, adapters)
    architecture = get_model_architecture(ModelBase.load_hparams(configuration, False), ModelType.TEXT)
    try:
        family: Any = get_model_class(architecture)
    except NotImplementedError:
        raise JobError(f"{base}: is a {architecture}, which llama.cpp's converter does not know") from None
    family = getattr(family, "Ministral3Model", family)  # around which that of Mistral 3 is an empty shell

    def index_tensors(model: Any, remote_hf_model_id: str | None = None) -> dict:
        named = ((name, lambda t=tensor: lazy(t, updates)) for name, tensor in sorted(tensors.items()))
        return dict(kept for item in named if (kept := model.filter_tensors(item)))

    ModelBase.index_tensors = index_tensors  # below the families' own, which count and set what their filters read

    class Summed(family):  # type: ignore[misc]
        model_arch = family.model_arch
        no_mtp = (
            True  # the layers that predict further tokens, which transformers loads none of and nothing has trained
        )
        pre: str | None = None

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.hparams |= unsaid(self.hparams, self.rope_parameters)

        def get_vocab_base_pre(self, tokenizer) -> str:
            return self.pre or super().get_vocab_base_pre(tokenizer)

        def set_vocab(self) -> None:
            check_size(configuration, self.hparams.get("vocab_size"))
            kind = bpe_of(configuration)
            if kind == "bytes":
                self._set_vocab_gpt2()
            elif kind == "pieces":
                add_pieces(self.gguf_writer, configuration, self.hparams["vocab_size"])
            else:
                super().set_vocab()
            add_special_tokens(self.gguf_writer, configuration)

    return Summed


def unsaid(config: dict, rope: dict) -> dict[str, Any]:
    """What the converter looks for in a configuration, and transformers 5 knows by itself or keeps elsewhere.

    rope: the parameters of positions.
    """
    kind = config.get("model_type")
    found: dict[str, Any] = {}
    if "rotary_pct" not in config:  # looked for by GPT-NeoX's and Cohere 2's classes
        found["rotary_pct"] = rope.get("partial_rotary_factor", 1.0)
    if kind in SIGMOID:  # without it llama.cpp takes softmax
        found["scoring_func"] = "sigmoid"
    if kind == "falcon" and config.get("multi_query", True) and not config.get("new_decoder_architecture"):
        found["num_kv_heads"] = 1  # whatever the key says, which only the new architecture reads
    return found


def check_size(folder: Path, rows: int | None) -> None:
    """Errors: JobError if the tokenizer has more tokens than the model has rows."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if rows is not None and len(tokenizer) > rows:
        raise JobError(f"its tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}")


def bpe_of(folder: Path) -> str | None:
    """How tokenizer.json cuts text: by BPE over "bytes" or, with bytes as a fallback, over SentencePiece's "pieces".

    None for any other tokenizer, and where SentencePiece's own file says more exactly what it does.
    """
    if (folder / "tokenizer.model").exists() or not (folder / "tokenizer.json").exists():
        return None
    tokenizer = read_json(folder / "tokenizer.json")
    if tokenizer["model"].get("type") != "BPE":
        return None
    before = tokenizer.get("pre_tokenizer") or {}
    steps = [before, *before.get("pretokenizers", [])]
    if any(step.get("type") == "ByteLevel" for step in steps):
        return "bytes"  # also with the byte_fallback that transformers makes of a GGUF file: all text is bytes already
    return "pieces" if tokenizer["model"].get("byte_fallback") else None


def add_pieces(writer: Any, folder: Path, size: int) -> None:
    """SentencePiece's BPE by tokenizer.json, into the writer. A piece that no merge makes scores lowest.

    llama.cpp joins the neighbours whose piece scores highest, where `tokenizers` joins those whose merge comes first.
    """
    from gguf import SpecialVocab

    tokenizer = read_json(folder / "tokenizer.json")
    pieces: dict[str, int] = tokenizer["model"]["vocab"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    tokens = [f"[PAD{i}]".encode() for i in range(size)]
    scores = [-10000.0] * size
    types = [TYPES["unused"]] * size
    for piece, i in pieces.items():
        tokens[i] = piece.encode()
        scores[i] = float(-ranks.get(piece, len(merges)))
        byte = len(piece) == 6 and piece.startswith("<0x")
        types[i] = TYPES["byte" if byte else "unknown" if piece == tokenizer["model"].get("unk_token") else "normal"]
    for added in tokenizer["added_tokens"]:
        i = added["id"]
        tokens[i] = added["content"].replace("▁", " ").encode() if not added["special"] else added["content"].encode()
        if types[i] != TYPES["unknown"]:
            types[i] = TYPES["control" if added["special"] else "user defined"]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    prefix = any('"▁"' in json.dumps(step, ensure_ascii=False) for step in prepends(tokenizer))
    writer.add_add_space_prefix(prefix)
    SpecialVocab(folder, n_vocab=size).add_to_gguf(writer)


def prepends(tokenizer: dict) -> Iterable[dict]:
    """The steps of tokenizer.json that put a space before the text."""
    for part in (tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}):
        for step in [part, *part.get("normalizers", []), *part.get("pretokenizers", [])]:
            if step.get("type") == "Prepend" or (
                step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"
            ):
                yield step


def add_special_tokens(writer: Any, folder: Path) -> None:
    """BOS and EOS, whether they are put around a text, as the tokenizer does by itself, and what else ends an answer.

    The converter takes them from files that contradict each other at times: config.json, tokenizer_config.json and the
    tokenizer's own template.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer("x")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    add_bos, add_eos = bool(ids) and ids[0] == bos, bool(ids) and ids[-1] == eos
    eot, eom = [*beside(folder, tokenizer), None, None][:2]
    for name, value, add in (
        ("bos_token_id", bos, writer.add_bos_token_id),
        ("eos_token_id", eos, writer.add_eos_token_id),
        ("add_bos_token", add_bos, writer.add_add_bos_token),
        ("add_eos_token", add_eos, writer.add_add_eos_token),
        ("eot_token_id", eot, writer.add_eot_token_id),
        ("eom_token_id", eom, writer.add_eom_token_id),
    ):
        if value is not None:
            writer.kv_data[0].pop(f"tokenizer.ggml.{name}", None)
            add(value)


def pre_tokenizer(model: Any, configuration: Path) -> str:
    """The name of the pre-tokenizer with which llama.cpp gives the tokenizer's own ids for all texts.

    model: called with a name for it and a path, writes a GGUF file of the vocabulary alone.
    Errors: JobError if there is none.
    """
    import inspect
    import re

    import llama_cpp
    from conversion.base import TextModel

    from jobs.gguf.texts import TEXTS

    known = re.findall(r'res = "([^"]+)"', inspect.getsource(TextModel.get_vocab_base_pre))
    tokenizer = load_tokenizer(configuration)
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    with tempfile.TemporaryDirectory(dir=configuration) as folder:
        file = Path(folder) / "vocabulary.gguf"
        model(LIKELY[0], file)
        for name in dict.fromkeys([*LIKELY, *known]):
            try:
                vocabulary = llama_cpp.Llama(
                    str(file), vocab_only=True, verbose=False, kv_overrides={"tokenizer.ggml.pre": name}
                )
            except ValueError:  # the converter's name is none of llama.cpp's
                continue
            same = all(
                vocabulary.tokenize(text.encode(), special=False) == ids
                for text, ids in zip(TEXTS, expected, strict=True)
            )
            vocabulary.close()
            if same:
                return name
    raise JobError("no pre-tokenizer of llama.cpp cuts text as this tokenizer does")


def write(request: dict) -> None:
    import gguf

    base, configuration = Path(request["base"]), Path(request["configuration"])
    kind = request["kind"]
    ftype = gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"]
    found = model_class(base, [Path(adapter) for adapter in request["adapters"]], configuration)

    def model(path: Path) -> Any:
        return found(configuration, ftype, path, model_name=request["name"])

    def vocabulary(pre: str, path: Path) -> None:
        found.pre = pre
        model(path).write_vocab()

    try:
        model(Path(request["out"])).write()
    except NotImplementedError as error:
        if "pre-tokenizer" not in str(error):
            raise
        found.pre = pre_tokenizer(vocabulary, configuration)
        model(Path(request["out"])).write()


def main() -> None:
    import logging

    logging.basicConfig(level=logging.WARNING)
    answer = {}
    try:
        write(json.load(sys.stdin))
    except JobError as error:
        answer = {"error": str(error)}
    except Exception as error:  # of every type, by what the converter stumbles over
        answer = {"error": f"llama.cpp's converter stops ({one_line(error)})"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
