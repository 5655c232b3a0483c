"""What the vLLM engine asks of vLLM: a stand-in for the package records it. The package itself needs a GPU."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jobs.common.errors import JobError, UsageError
from jobs.grpo.rollout import engine_options, lora_targets, unsloth_engine_options
from jobs.inference import Completion, Sampling, sample_seed
from jobs.inference import vllm as engine
from jobs.inference.vllm_settings import compilation
from jobs.plumbing.params import load

ENVIRONMENT = ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_BATCH_INVARIANT", "VLLM_ENABLE_V1_MULTIPROCESSING")


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Puts a vllm package in place whose LLM answers every request with its prompt's last character and its seed."""
    seen: dict = {"generate": [], "held": []}
    monkeypatch.setattr(engine, "require_whole", seen["held"].append)

    class LLM:
        llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=100), engine_core=SimpleNamespace(shutdown=lambda: None)
        )

        def __init__(self, model, **options):
            if "broken" in model:
                raise ValueError("no such\nmodel")
            seen["options"] = options

        def generate(self, prompts, params, lora_request=None, use_tqdm=True):
            seen["generate"].append((prompts, params, lora_request))
            reason = seen.get("reason", "stop")
            texts = [f"{p['prompt_token_ids'][-1]} {param.seed}" for p, param in zip(prompts, params, strict=True)]
            return [SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=[1, 2], finish_reason=reason)])
                    for text in texts]  # fmt: skip

    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams = LLM, lambda **fields: SimpleNamespace(**fields)
    request.LoRARequest = lambda *fields: fields
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "unset")
    monkeypatch.setattr(engine, "load_tokenizer", lambda path: lambda text: {"input_ids": text.split()})
    return seen


def test_an_import_begun_early_has_the_environment_of_the_load(calls):
    engine.begin_import(batch_invariant=True)
    assert {name: os.environ[name] for name in ENVIRONMENT} == dict(zip(ENVIRONMENT, "011", strict=True))


def test_all_samples_are_requests_of_one_call_with_their_own_seeds(calls, tmp_path):
    sampling = Sampling(n=3, temperature=0.8, top_p=0.95, max_tokens=20, stop=("\ndef",), seed=7)
    answers = engine.load(tmp_path)(["a", "b"], sampling)
    [(prompts, params, lora)] = calls["generate"]
    assert prompts == [{"prompt_token_ids": [p]} for p in "aaabbb"], "tokens of the same tokenizer as training's"
    assert [param.seed for param in params] == [sample_seed(7, p, i) for p in "ab" for i in range(3)]
    assert {(p.n, p.temperature, p.top_p, p.max_tokens, *p.stop) for p in params} == {(1, 0.8, 0.95, 20, "\ndef")}
    assert lora is None
    assert answers == [[Completion(f"{p} {sample_seed(7, p, i)}", 2, "stop") for i in range(3)] for p in "ab"]


def test_greedy_has_no_seed_and_no_nucleus(calls, tmp_path):
    engine.load(tmp_path)(["a"], Sampling(top_p=0.5, max_tokens=20))
    [(_, [param], _)] = calls["generate"]
    assert (param.temperature, param.top_p, param.seed, param.stop) == (0, 1.0, None, None)


@pytest.mark.parametrize(("rank", "fitting"), [(1, 8), (8, 8), (9, 16), (32, 32), (48, 64), (512, 512)])
def test_an_adapter_is_a_lora_request_of_a_fitting_rank(calls, tmp_path, monkeypatch, rank, fitting):
    held = []
    for name in ("check_base", "check_modules"):
        monkeypatch.setattr(engine, name, lambda adapter, base: held.append((adapter, base)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "rank_pattern": {}}))
    engine.load(tmp_path, adapter=tmp_path)(["a"], Sampling(max_tokens=5))
    assert held == [(tmp_path, tmp_path)] * 2, "it is held against the base first"
    assert calls["options"]["enable_lora"] is True
    assert calls["options"]["max_lora_rank"] == fitting
    assert calls["generate"][0][2] == (tmp_path.name, 1, str(tmp_path))


def test_an_adapters_kernels_add_up_alike_in_every_batch_where_that_is_asked(calls, tmp_path, monkeypatch):
    for name in ("check_base", "check_modules"):
        monkeypatch.setattr(engine, name, lambda adapter, base: None)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {}}))
    engine.load(tmp_path, adapter=tmp_path)
    assert "worker_extension_cls" not in calls["options"]
    engine.load(tmp_path, adapter=tmp_path, batch_invariant=True)

    kernels = ModuleType("kernels")  # vLLM's, as far as it goes
    kernels.get_lora_op_configs = lambda op_type, *, max_loras, batch: {
        "block_k": 256 if batch < 128 else 32,
        "loras": max_loras,
    }
    monkeypatch.setitem(sys.modules, "vllm.lora.ops.triton_ops.lora_shrink_op", kernels)
    module, _, name = calls["options"]["worker_extension_cls"].rpartition(".")
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert isinstance(getattr(importlib.import_module(module), name), type)
    once = kernels.get_lora_op_configs
    sys.modules[module].fix()
    assert kernels.get_lora_op_configs is once, "they are fixed once"
    chosen = [once("shrink", max_loras=1, batch=batch) for batch in (1, 127, 128, 4096)]
    assert chosen == [{"block_k": 32, "loras": 1}] * 4


def test_the_largest_of_several_ranks_counts(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"q_proj": 64}}))
    assert engine.lora_rank(tmp_path) == 64
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    with pytest.raises(UsageError, match="rank 1024"):
        engine.lora_rank(tmp_path)


@pytest.mark.parametrize(("invariant", "switches"), [(False, "000"), (True, "011")])
def test_switches_are_set_before_the_import(calls, tmp_path, monkeypatch, invariant, switches):
    import os

    engine.load(tmp_path, batch_invariant=invariant)
    assert calls["held"] == [tmp_path], "it is a whole model"
    names = ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_BATCH_INVARIANT", "VLLM_ENABLE_V1_MULTIPROCESSING")
    assert "".join(os.environ[name] for name in names) == switches


def test_errors(calls, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="do not fit"):
        engine.load(tmp_path)(["word " * 90], Sampling(max_tokens=11))
    with pytest.raises(JobError, match=r"broken.*no such model"):
        engine.load(tmp_path / "broken")
    calls["reason"] = "abort"
    with pytest.raises(JobError, match="abort"):
        engine.load(tmp_path)(["a"], Sampling(max_tokens=5))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        UsageError, match=r"evaluate\.engine: vllm cannot be imported.*set evaluate\.engine to transformers"
    ):
        engine.load(tmp_path)


@pytest.mark.parametrize("sequences", [1, 3, 60, 64, 512])
def test_every_batch_up_to_the_largest_has_a_graph_that_is_little_larger(calls, tmp_path, sequences):
    sizes = compilation(sequences)["cudagraph_capture_sizes"]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == sequences
    for batch in range(1, sequences + 1):
        padded = min(size for size in sizes if size >= batch)
        assert padded - batch < max(8, 32 * (sequences > 64)), (batch, padded)


def test_an_engine_with_a_cache_of_its_own_size_asks_for_no_share_of_the_card(calls, tmp_path):
    """vLLM would refuse to start where the share is not free, as beside another engine on the card."""
    engine.load(tmp_path, gpu_memory=0.7)
    assert calls["options"]["gpu_memory_utilization"] == 0.7 and "kv_cache_memory_bytes" not in calls["options"]
    engine.load(tmp_path, gpu_memory=0.7, kv_cache_gib=1.5)
    assert calls["options"]["gpu_memory_utilization"] <= 0.01
    assert calls["options"]["kv_cache_memory_bytes"] == 3 << 29
    params = load(Path(__file__).parents[2] / "params.yaml", ["grpo.kv_cache_gib=2"])
    options = engine_options(params)
    assert options["gpu_memory_utilization"] <= 0.01 and options["kv_cache_memory_bytes"] == 2 << 30


def test_the_engine_that_unsloth_builds_gets_the_options_of_ours(calls):
    """As Unsloth does it: `from vllm import LLM` in the function that builds the engine, its own options given."""
    params = load(Path(__file__).parents[2] / "params.yaml", ["seed=5"])
    original = sys.modules["vllm"].LLM
    with unsloth_engine_options(params):
        from vllm import LLM

        assert isinstance(LLM("base", seed=0, max_num_seqs=256, dtype="bfloat16"), original)
    assert sys.modules["vllm"].LLM is original
    assert calls["options"] == {"dtype": "bfloat16", **engine_options(params), **lora_targets(params)}
    assert (calls["options"]["seed"], calls["options"]["max_num_seqs"]) == (5, 64)
    assert calls["options"]["lora_target_modules"] == list(params.sft.lora.targets)


@pytest.mark.parametrize(("batched", "taken"), [(8192, 1536), (1024, 1024)])
def test_no_sequence_of_the_engines_warm_up_is_longer_than_one_may_be(calls, batched, taken):
    """Unsloth counts on its own number of sequences, which is larger than ours."""
    params = load(Path(__file__).parents[2] / "params.yaml", ["grpo.batch_size=4", "grpo.gradient_accumulation=1",
                                                              "grpo.generations=4"])  # fmt: skip
    with unsloth_engine_options(params):
        sys.modules["vllm"].LLM("base", max_num_seqs=256, max_model_len=384, max_num_batched_tokens=batched)
    assert calls["options"]["max_num_seqs"] == 4
    assert calls["options"]["max_num_batched_tokens"] == taken
