"""The transformers engine against transformers' own generation, itself in other batches, and exact odds."""

import dataclasses
import itertools

import pytest

from jobs.common.errors import JobError, UsageError
from jobs.inference import Sampling, sample_seed

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from jobs.inference import hf as engine  # noqa: E402
from jobs.weights import cache  # noqa: E402
from jobs.weights.model import require_whole  # noqa: E402
from tests.toy import make_adapter, make_model, make_tokenizer  # noqa: E402

PROMPTS = ["def add(a, b):\n", "You are", "class Stack(list):\n    pass\n\n\ndef first(items):\n    for x", "a" * 90]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with untied embeddings, and a head stretched so that tokens are not all alike."""
    from safetensors.torch import load_file, save_file

    path = make_model(tmp_path_factory.mktemp("model"), tie=False, hidden=128, layers=2)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] *= 8
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_greedy_decoding_equals_transformers_own(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model)
    answers = engine.load(model)(PROMPTS, Sampling(max_tokens=25))
    for prompt, [answer] in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        out = net.generate(**ids, max_new_tokens=25, do_sample=False, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(out, skip_special_tokens=True)
        assert answer.tokens == len(out)
        assert answer.finish == ("stop" if int(out[-1]) == tokenizer.eos_token_id else "length")


def test_a_sample_depends_on_seed_prompt_and_number_alone(model):
    sampling = Sampling(n=6, temperature=1.0, top_p=0.95, max_tokens=30, stop=("e",), seed=3)
    together = engine.load(model, batch_size=64)(PROMPTS, sampling)
    alone = engine.load(model, batch_size=1)(PROMPTS, sampling)
    assert together == alone
    assert engine.load(model)(PROMPTS[::-1], sampling) == together[::-1]
    assert engine.load(model)(PROMPTS, dataclasses.replace(sampling, n=2)) == [answers[:2] for answers in together]
    assert engine.load(model)(PROMPTS, dataclasses.replace(sampling, seed=4)) != together
    finishes = {answer.finish for answers in together for answer in answers}
    assert finishes == {"stop", "length"}, "the batch must shrink for this test to mean something"
    assert all(len({answer.text for answer in answers}) > 1 for answers in together)


def test_seeds_differ_by_seed_prompt_and_number():
    seeds = {sample_seed(s, p, i) for s, p, i in itertools.product(range(5), ("", "a", "a\0", "\ud800"), range(5))}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (0.8, 0.95), (1.0, 1e-6)])
def test_tokens_are_drawn_with_their_probabilities(temperature, top_p):
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0, -3.0, 1.5])
    odds = torch.softmax(logits / temperature, 0)
    order = odds.argsort(descending=True)
    kept = [int(t) for i, t in enumerate(order) if odds[order[:i]].sum() < top_p]
    expected = torch.zeros(6).index_fill(0, torch.tensor(kept), 1) * odds
    expected /= expected.sum()
    count = 40000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = engine.pick(logits.expand(count, -1), uniform, Sampling(temperature=temperature, top_p=top_p))
    shares = torch.bincount(drawn, minlength=6) / count
    assert torch.allclose(shares, expected, atol=2 / count)


def test_the_largest_uniform_number_draws_a_kept_token():
    logits = torch.tensor([[5.0, 4.0, -50.0, -50.0]])
    uniform = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert engine.pick(logits, uniform, Sampling(temperature=1.0, top_p=0.99)).tolist() == [1]


def test_stop_strings_are_cut_off_and_end_the_sample(model):
    [[free]] = engine.load(model)(PROMPTS[:1], Sampling(max_tokens=40))
    stop = free.text[5:8]
    cut = free.text.index(stop)
    [[stopped]] = engine.load(model)(PROMPTS[:1], Sampling(max_tokens=40, stop=("never there", stop)))
    assert (stopped.text, stopped.finish) == (free.text[:cut], "stop")
    assert 0 < stopped.tokens < free.tokens


def test_of_two_stop_strings_the_first_to_be_complete_counts():
    class Letters:
        def __call__(self, text, **options):
            return {"input_ids": [ord(letter) for letter in text]}

        def decode(self, ids, **options):
            return "".join(map(chr, ids))

    ids = [ord(c) for c in "abcdef"]
    answer = engine.finished(Letters(), ids, set(), Sampling(max_tokens=99, stop=("bcde", "cd")))
    assert (answer.text, answer.tokens) == ("ab", 4)
    assert engine.finished(Letters(), ids, {ord("d")}, Sampling(max_tokens=99, stop=("ef",))).text == "abc"
    assert engine.finished(Letters(), ids, set(), Sampling(max_tokens=99, stop=("x",))) is None
    assert engine.finished(Letters(), ids, set(), Sampling(max_tokens=6)).finish == "length"


def test_an_unmerged_adapter_equals_the_merged_model(model, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = make_adapter(model, tmp_path / "adapter", scale=0.3)
    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).merge_and_unload()
    net.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "merged")
    sampling = Sampling(max_tokens=20)
    unmerged = engine.load(model, adapter=adapter)(PROMPTS, sampling)
    assert unmerged == engine.load(tmp_path / "merged")(PROMPTS, sampling)
    assert unmerged != engine.load(model)(PROMPTS, sampling)


def test_a_prompt_that_does_not_fit_is_refused(model):
    with pytest.raises(UsageError, match="do not fit the model's 2048 positions"):
        engine.load(model)(["a b c " * 2000], Sampling(max_tokens=10))
    with pytest.raises(UsageError, match="do not fit"):
        engine.load(model)(["a"], Sampling(max_tokens=2048))


def test_what_is_not_a_model_is_named(tmp_path):
    with pytest.raises(JobError, match=str(tmp_path)):
        engine.load(tmp_path)


def test_a_model_that_names_no_end_of_its_positions_has_room(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    make_tokenizer(tmp_path)
    config = BloomConfig(vocab_size=512, hidden_size=32, n_head=2, n_layer=1)
    assert not hasattr(config, "max_position_embeddings")
    BloomForCausalLM(config).save_pretrained(tmp_path)
    [[answer]] = engine.load(tmp_path)(["def"], Sampling(max_tokens=4))
    assert answer.tokens == 4 or answer.finish == "stop"


def test_a_model_whose_logits_are_no_numbers_is_refused(model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="not finite"):
        engine.load(broken)(PROMPTS, Sampling(max_tokens=5))


RECURRENT = {
    "a state of its own": (
        "xLSTM", {"hidden_size": 256, "num_heads": 4, "head_dim": 64}, "is a xlstm, which keeps its state outside",
    ),
    "attention in one of three layers": (
        "RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 64}, "is a recurrent_gemma, which keeps its state outside",
    ),
    "no attention at all": ("Lfm2", {"layer_types": ["conv", "conv"]}, "is a lfm2, which does not go on from"),
    "a cache of its own": (
        "MiniMax", {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2}, "is a minimax, which",
    ),
    "no cache at all": ("OpenAIGPT", {"n_positions": 256}, "is a openai-gpt, which makes no use of"),
    "nothing recurrent in it": ("GraniteMoeHybrid", {"layer_types": ["full_attention"] * 2, "num_local_experts": 0}, None),
    "attention beside convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_model_is_sampled_as_alone_or_refused(tmp_path, kind):
    import transformers

    family, keys, why = RECURRENT[kind]
    size = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 256,
    }  # fmt: skip
    make_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**size | keys)
    head = "LMHeadModel" if family == "OpenAIGPT" else "ForCausalLM"
    getattr(transformers, f"{family}{head}")(config).save_pretrained(tmp_path)
    told = cache.refusal(require_whole(tmp_path))
    sampling = Sampling(n=2, temperature=1.0, max_tokens=8)
    if why is None:
        generate = engine.load(tmp_path)
        assert generate(PROMPTS, sampling)[1:2] == generate(PROMPTS[1:2], sampling)
        assert told is None
    else:
        with pytest.raises(JobError, match=why) as caught:
            engine.load(tmp_path)(PROMPTS, sampling)
        assert f"the model {told}" == str(caught.value), "what base says of it before"
