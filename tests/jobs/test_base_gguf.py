"""A base out of a GGUF file computes what llama.cpp computes with the file, whatever its family says beside the sizes."""

import pytest

from jobs.common.errors import JobError
from jobs.weights import dequantize
from tests import families, toy

LENGTH = 300  # tokens, beyond the positions from which on these models scale them, and beyond their windows


def rope(**said):
    return {"rope_parameters": {"rope_theta": 10000.0, **said}}


SCALED = {"factor": 8.0, "original_max_position_embeddings": 128}
OWN = {  # class, and what the family's defaults are not
    "positions scaled as Llama 3's": (
        "Llama", rope(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, **SCALED)),
    "positions scaled by YaRN": ("Qwen3", rope(rope_type="yarn", **SCALED) | {"head_dim": 64}),
    "positions of another base": ("Starcoder2", rope(rope_theta=999999.0) | {"sliding_window": None}),
    "a part of each head turned": (
        "Phi3", rope(rope_type="default", partial_rotary_factor=0.5) | {"sliding_window": 64}),
    "caps and a scale of its own": ("Gemma2", {
        "head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "positions scaled in some layers": ("Gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}},
        "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
FOREIGN = {
    "biases where the family has none": ("Llama", {"attention_bias": True}, "holds [0-9,]+ numbers, of which"),
    "positions scaled by long factors": (
        "Phi3", rope(rope_type="longrope", short_factor=[1.0] * 16, long_factor=[2.0] * 16,
                     original_max_position_embeddings=128), r"says .*rope_factors_long\.weight"),
}  # fmt: skip


def file_of(folder, family, keys):
    """The GGUF file of a random model."""
    import torch
    import transformers

    from jobs.gguf.convert import convert

    own = folder / "own"
    own.mkdir()
    if family.startswith("Gemma"):
        toy.make_pieces_tokenizer(own, prepend=False)
    else:
        toy.make_tokenizer(own)
    size = families.SIZE | {"hidden_size": 128, "num_hidden_layers": 2, "pad_token_id": None}
    config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))(**size | keys)
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(own)
    convert(own, [], "F32", folder / "mine.gguf", "mine")
    return folder / "mine.gguf"


@pytest.mark.parametrize("what", OWN)
def test_what_the_file_says_beside_the_sizes_is_obeyed(tmp_path, what):
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.gguf.check import kl, logits
    from jobs.inference.llama_cpp import opened

    file = file_of(tmp_path, *OWN[what])
    dequantize.to_folder(file, tmp_path / "out", "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.randint(5, 300, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = opened(file, n_ctx=LENGTH)
    try:
        expected = logits(engine, tokens, 1)
    finally:
        engine.close()
    with torch.inference_mode():
        found = model(torch.tensor([tokens]), use_cache=False).logits[0, 1:].numpy()
    assert kl(expected, found).max() < 1e-5


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_read_of_a_file_is_refused_in_one_line(tmp_path, what):
    family, keys, says = FOREIGN[what]
    file = file_of(tmp_path, family, keys)
    with pytest.raises(JobError, match=rf"mine\.gguf: {says}") as caught:
        dequantize.to_folder(file, tmp_path / "out")
    assert "\n" not in str(caught.value)
