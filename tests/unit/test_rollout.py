"""Rollouts by vLLM, for which a stand-in is here: answers are judged as they end, and base and adapter are summed."""

import copy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.common.errors import JobError
from jobs.grpo.rewards import tasks_by_prompt
from jobs.grpo.rollout import MergedRollout, watch
from jobs.plumbing.params import load

ROOT = Path(__file__).parents[2]


class Engine:
    """Emits one token of every running request a step; finished requests are forgotten after the step, as in vLLM."""

    def __init__(self, answers: dict[str, tuple[list[int], list[int]]]) -> None:
        self.answers, self.step = answers, 0
        self.engine_core = SimpleNamespace(get_output=self.tokens)
        states = {name: self.state(prompt) for name, (prompt, _) in answers.items()}
        self.output_processor = SimpleNamespace(request_states=states)

    def state(self, prompt):
        return SimpleNamespace(prompt_token_ids=prompt, detokenizer=SimpleNamespace(output_token_ids=[]))

    def tokens(self):
        new = []
        for name in self.output_processor.request_states:
            ids = self.answers[name][1]
            last = self.step == len(ids) - 1
            token = ids[self.step : self.step + 1]
            new.append(SimpleNamespace(request_id=name, new_token_ids=token, finish_reason="stop" if last else None))
        return SimpleNamespace(
            outputs=[*new, SimpleNamespace(request_id="gone", new_token_ids=[1], finish_reason="abort")]
        )

    def generate(self):
        states = self.output_processor.request_states
        while states:
            for output in self.engine_core.get_output().outputs:
                if output.request_id in states:
                    states[output.request_id].detokenizer.output_token_ids.extend(output.new_token_ids)
                    if output.finish_reason:
                        del states[output.request_id]
            self.step += 1


def test_every_completion_is_told_whole_at_its_own_step():
    answers = {"a": ([1, 2], [7, 8, 9]), "b": ([1, 2], [5]), "c": ([3], [4, 4])}
    engine = Engine(answers)
    seen = []
    with watch(SimpleNamespace(llm_engine=engine), lambda p, c: seen.append((engine.step, p, c))):
        engine.generate()
    assert seen == [(0, [1, 2], [5]), (1, [3], [4, 4]), (2, [1, 2], [7, 8, 9])]


def test_the_engine_is_left_as_it_was_even_after_an_error():
    engine = Engine({"a": ([1], [2])})
    original = engine.engine_core.get_output
    with pytest.raises(RuntimeError), watch(SimpleNamespace(llm_engine=engine), print):
        raise RuntimeError
    assert engine.engine_core.get_output is original


def test_prompts_that_two_tasks_share_are_known():
    found = tasks_by_prompt([[1], [1], [2], [1]], ["a", "a", "b", "c"])
    assert found == {(1,): {"a", "c"}, (2,): {"b"}}


class Weights(torch.nn.Module):
    """What holds a model's weights in vLLM: it knows the base's names, and refuses others."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names, self.loaded, self.head = names, {}, torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def load_weights(self, pairs):
        self.loaded = {name: weight.clone() for name, weight in pairs}
        if unknown := self.loaded.keys() - self.names:
            raise ValueError(f"There is no module or parameter named {min(unknown)!r}")
        return self.loaded.keys()


@pytest.fixture
def adapted():
    """A tiny Llama with an adapter that changes two kinds of its layers."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    shape = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM(config), shape)


@pytest.fixture
def merged(adapted, monkeypatch, tmp_path):
    """A MergedRollout over a stand-in of vLLM that has the base's names; and what vLLM was asked."""
    held = Weights({name.replace("base_layer.", "") for name in adapted.base_model.model.state_dict()})
    asked = {"forgotten": 0}

    class LLM:
        def __init__(self, *_, **options) -> None:
            asked["options"] = options

        def apply_model(self, function):
            return [function(held)]

        def reset_prefix_cache(self):
            asked["forgotten"] += 1

    package = ModuleType("vllm")
    package.LLM = LLM
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    return MergedRollout(load(ROOT / "params.yaml"), tmp_path, adapted), held, asked


def test_merged_rollouts_hold_the_sum_of_base_and_adapter(merged, adapted):
    rollout, held, asked = merged
    assert rollout.folder is None, "no adapter is handed over"
    assert asked["options"]["dtype"] == "float16"
    assert "enable_lora" not in asked["options"] and rollout.lora() is None
    whole = copy.deepcopy(adapted).merge_and_unload().state_dict()
    assert len(held.loaded) == 4
    for name, weight in held.loaded.items():
        assert weight.dtype == torch.float16
        torch.testing.assert_close(weight, whole[name].to(torch.float16))


@pytest.mark.parametrize("wanted", [False, True])
def test_log_probabilities_are_computed_where_they_are_wanted(merged, wanted):
    rollout, _, _ = merged
    asked = []

    def generate(requests, sampling, **options):
        asked.append((requests, sampling, options))
        logprobs = SimpleNamespace(logprobs=[-0.5, -0.25]) if sampling.logprobs is not None else None
        done = [SimpleNamespace(token_ids=(7, 8), logprobs=logprobs) for _ in range(sampling.n)]
        return [SimpleNamespace(outputs=done) for _ in requests]

    package = sys.modules["vllm"]
    package.SamplingParams, package.TokensPrompt = (lambda **fields: SimpleNamespace(**fields) for _ in range(2))
    rollout.llm.generate = generate
    ids, logps = rollout.generate([[1], [1], [2, 3], [2, 3]], 2, logps=wanted)
    assert ids == [[7, 8]] * 4
    assert logps == ([[-0.5, -0.25]] * 4 if wanted else None)
    [(requests, sampling, options)] = asked
    assert [request.prompt_token_ids for request in requests] == [[1], [2, 3]]
    assert sampling.flat_logprobs is wanted and options["lora_request"] is None


def test_the_sum_is_made_anew_from_the_base_and_earlier_keys_and_values_are_forgotten(merged, adapted):
    rollout, held, asked = merged
    first, forgotten = dict(held.loaded), asked["forgotten"]
    factors = {name: weight for name, weight in adapted.named_parameters() if "lora_B" in name}
    kept = {name: weight.detach().clone() for name, weight in factors.items()}
    for value in (1000.0, 0.0):
        for weight in factors.values():
            weight.data.fill_(value)
        rollout.sync_weights()
    base = adapted.base_model.model.state_dict()
    name = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(held.loaded[f"{name}.weight"], base[f"{name}.base_layer.weight"].to(torch.float16))
    for name, weight in factors.items():
        weight.data.copy_(kept[name])
    rollout.sync_weights()
    assert all(torch.equal(held.loaded[name], weight) for name, weight in first.items())
    assert asked["forgotten"] == forgotten + 3


def test_the_check_of_the_base_is_of_what_no_step_changes(merged):
    rollout, held, _ = merged
    held.register_parameter("changes", torch.nn.Parameter(torch.ones(3), requires_grad=False))
    rollout.merged = {"changes"}
    before = rollout.fingerprint()
    held.changes.data.fill_(2)
    assert rollout.fingerprint() == before
    held.head.data.fill_(2)
    assert rollout.fingerprint() != before


def test_layers_that_vllm_names_otherwise_are_refused(merged):
    rollout, held, _ = merged
    held.names.discard("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(JobError, match=r"grpo.rollout: vllm_merged cannot put.*q_proj.*set vllm|set vllm.*q_proj"):
        rollout.sync_weights()


def test_sums_that_float16_cannot_hold_are_refused(merged, adapted):
    rollout, _, _ = merged
    next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).data.fill_(1e8)
    with pytest.raises(JobError, match="float16 cannot hold"):
        rollout.sync_weights()
