"""Each loss, on fixed log-probabilities, has the value and the gradient that its paper gives it."""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOTrainer

from jobs.common.errors import UsageError
from jobs.plumbing.params import load
from tests import toy
from tests.program import ROOT

CPU = [
    "grpo.engine=transformers", "grpo.rollout=transformers", "grpo.optimizer=adamw_torch", "grpo.generations=2",
    "grpo.batch_size=4", "grpo.gradient_accumulation=1", "grpo.max_completion_length=5", "grpo.beta=0", "sft.lora.rank=4",
]  # fmt: skip
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -1.5])
RATIOS = torch.tensor([[1.5, 0.5, 1.0, 1.25, 0.9], [1.5, 0.5, 1, 1, 1], [0.7, 1.4, 1.1, 1, 1], [2.0, 1, 1, 1, 1]])
OLD = torch.log(torch.full((4, 5), 0.25))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toy.make_trained(tmp_path_factory.mktemp("losses"))


@pytest.fixture
def loss_of(base, tmp_path):
    """(params) -> the loss of the fixed completions and its gradient to the log-probabilities [4, 5]."""

    def loss_of(*settings, **given):
        trainer = toy.grpo_trainer(base, tmp_path, load(ROOT / "params.yaml", [*CPU, *settings]))
        new = (OLD + RATIOS.log()).requires_grad_()
        entropies = torch.arange(20.0).view(4, 5)
        trainer._get_per_token_logps_and_entropies = lambda *a, **o: (new, entropies * new.exp() * 4 / RATIOS, None)
        inputs = {
            "prompt_ids": torch.ones(4, 2, dtype=torch.long),
            "prompt_mask": torch.ones(4, 2, dtype=torch.long),
            "completion_ids": torch.ones(4, 5, dtype=torch.long),
            "completion_mask": MASK,
            "advantages": ADVANTAGES,
            "old_per_token_logps": OLD,
            "num_items_in_batch": MASK.sum(),
            **given,
        }
        value = trainer._compute_loss(trainer.model, inputs)
        value.backward()
        return value.item(), new.grad

    return loss_of


def clipped(ratio, low=0.2, high=0.2):
    """PPO's objective by token, and its derivative by the logarithm of the ratio."""
    a = ADVANTAGES[:, None]
    inside, outside = ratio * a, ratio.clamp(1 - low, 1 + high) * a
    return torch.minimum(inside, outside), torch.where(inside <= outside, inside, torch.zeros_like(inside))


def assert_is(found, objective, slope, weights):
    """The loss is minus the weighted sum of the objective over the tokens of the mask."""
    value, gradient = found
    assert value == pytest.approx(-(objective * weights * MASK).sum().item(), rel=1e-5)
    torch.testing.assert_close(gradient, -(slope * weights * MASK).expand(4, 5), rtol=1e-5, atol=1e-7)


TOKENS, ROWS, LENGTH = MASK.sum(), 4, 5
WEIGHTS = {
    "grpo": 1 / (ROWS * MASK.sum(1, keepdim=True)),  # the mean over completions of the mean over their tokens
    "bnpo": 1 / TOKENS.view(1, 1),  # the mean over all tokens of a pass
    "dapo": 1 / TOKENS.view(1, 1),  # ... of the step
    "dr_grpo": torch.tensor([[1 / (ROWS * LENGTH)]]),  # Dr. GRPO: a constant, so that long wrong answers are not spared
}


@pytest.mark.parametrize("loss", WEIGHTS)
def test_what_a_token_counts(loss_of, loss):
    assert_is(loss_of(f"grpo.loss={loss}"), *clipped(RATIOS), WEIGHTS[loss])


def test_clip_higher_lets_a_ratio_grow_further(loss_of):
    """DAPO: 1.25 is clipped at 0.2 and not at 0.28."""
    settings = "grpo.loss=dapo", "grpo.clip_high=0.28"
    assert_is(loss_of(*settings), *clipped(RATIOS, high=0.28), WEIGHTS["dapo"])
    assert not torch.equal(clipped(RATIOS)[1], clipped(RATIOS, high=0.28)[1])


def test_gspo_has_one_ratio_a_completion(loss_of):
    """GSPO (arXiv 2507.18071): the geometric mean of the tokens' ratios; a token's slope is its equal part of it."""
    lengths = MASK.sum(1, keepdim=True)
    ratio = ((RATIOS.log() * MASK).sum(1, keepdim=True) / lengths).exp()
    objective, slope = clipped(ratio)
    value, gradient = loss_of("grpo.loss=grpo", "grpo.ratio=sequence")
    assert value == pytest.approx(-objective.mean().item(), rel=1e-5)
    torch.testing.assert_close(gradient, -(slope / lengths / ROWS) * MASK, rtol=1e-5, atol=1e-7)


def test_cispo_clips_the_weight_and_no_tokens_gradient(loss_of):
    """CISPO (arXiv 2506.13585): the ratio, cut at its largest value, is a constant before the log-probability."""
    weight = RATIOS.clamp(max=1.3) * ADVANTAGES[:, None]
    found = loss_of("grpo.loss=cispo", "grpo.clip_high=1.3")
    assert_is(found, weight * (OLD + RATIOS.log()), weight, 1 / TOKENS.view(1, 1))


def test_the_kl_term_is_the_low_variance_estimate_times_the_ratio(loss_of):
    """As DeepSeek-V3.2 (arXiv 2512.02556): its gradient is then that of the reverse KL."""
    reference = OLD - 0.5
    gap = reference - (OLD + RATIOS.log())
    objective, slope = clipped(RATIOS)
    estimate = gap.exp() - gap - 1
    kl, kl_slope = RATIOS * estimate, RATIOS * (estimate + 1 - gap.exp())
    found = loss_of("grpo.loss=dapo", "grpo.beta=0.1", ref_per_token_logps=reference)
    assert_is(found, objective - 0.1 * kl, slope - 0.1 * kl_slope, WEIGHTS["dapo"])


def test_the_entropy_bonus_is_the_mean_entropy(loss_of):
    value, _ = loss_of("grpo.loss=dapo", "grpo.entropy=0.01")
    plain, _ = loss_of("grpo.loss=dapo")
    entropy = (torch.arange(20.0).view(4, 5) * MASK).sum() / TOKENS
    assert value == pytest.approx(plain - 0.01 * entropy.item(), rel=1e-4)


def test_overlong_answers_are_punished_softly_and_never_for_the_sandboxs_failure():
    """DAPO, equation 13: nothing up to 60 tokens, -1 at 100, -0.5 half way."""
    from jobs.grpo.rewards import Scorer

    rewards = load(ROOT / "params.yaml", ["grpo.rewards.overlong=0.5", "grpo.rewards.overlong_tokens=40"]).grpo.rewards
    scorer = Scorer(None, rewards, {}, 100)
    functions, weights = scorer.functions()
    assert [function.__name__ for function in functions] == ["format", "reasoning", "correctness", "overlong"]
    assert weights == [0.1, 0.2, 1.0, 0.5]
    scorer.scores = lambda completions, tasks: [SimpleNamespace(correctness=c) for c in (1.0, 0.0, 1.0, None)]
    ids = [[1] * length for length in (60, 80, 100, 100)]
    assert functions[3](completions=[""] * 4, completion_ids=ids, task_id=[""] * 4) == [0, -0.5, -1, None]


def test_a_group_of_equal_rewards_has_no_advantage_at_all(monkeypatch):
    """In float32 the mean of eight times 1.3 is not 1.3 on every machine: what TRL makes of that is no signal."""
    from trl import GRPOTrainer

    from jobs.grpo.trainer import Trainer

    mean = torch.tensor(1.3) + 1.2e-7
    noise = ((1.3 - mean) / 1e-4).item()
    assert noise != 0
    advantages = [noise, noise, 1.0, -1.0, 0.0, noise, 0.0, 0.0]  # groups of two

    def trls(self, inputs):
        first = 4 * (self is second)
        self._metrics["train"]["frac_reward_zero_std"].append(0.0)
        self._logs["advantages"].extend(advantages)
        return {"advantages": torch.tensor(advantages[first : first + 4])}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", trls)
    right, broken = [1.0, 1.0], [torch.nan, torch.nan]
    trainer, second = object.__new__(Trainer), object.__new__(Trainer)
    for rank, one in enumerate((trainer, second)):
        monkeypatch.setattr("jobs.training.ranks.number", lambda rank=rank: rank)
        one.num_generations, one.reward_weights, one.use_vllm = 2, torch.tensor([1.0, 0.3]), False
        one.rewards = torch.tensor([right, right, right, [0.0, 1.0], broken, right, broken, broken])
        one._metrics, one._logs = {"train": {"frac_reward_zero_std": []}}, {"advantages": deque(maxlen=8)}
        found = one.scored([{}] * 4)["advantages"].tolist()
        assert found == [[0.0, 0.0, 1.0, -1.0], [0.0] * 4][rank]
        assert one._metrics["train"]["frac_reward_zero_std"] == [0.75]
        assert [*one._logs["advantages"]] == [0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


def test_what_is_set_is_what_trl_is_told(tmp_path):
    from jobs.grpo.job import configuration

    settings = ["grpo.iterations=3", "grpo.importance_correction=true", "grpo.importance_mode=sequence_mask",
                "grpo.importance_cap=3", "grpo.top_p=1", "grpo.schedule=constant", "grpo.entropy=0.02"]  # fmt: skip
    used = configuration(load(ROOT / "params.yaml", [*CPU, *settings]), [1.0], tmp_path)
    assert (used.num_iterations, used.entropy_coef, used.lr_scheduler_type) == (3, 0.02, "constant_with_warmup")
    assert used.vllm_importance_sampling_correction is True
    assert (used.vllm_importance_sampling_mode, used.vllm_importance_sampling_clip_max) == ("sequence_mask", 3)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_rewards_are_scaled_as_params_say_whatever_the_engines_config_makes_of_it(tmp_path, monkeypatch, scale):
    """Unsloth's GRPOConfig leaves rewards unscaled with dr_grpo, where it was told to scale them by group."""
    import trl

    from jobs.grpo.job import configuration

    class Config(trl.GRPOConfig):
        def __init__(self, loss_type=None, scale_rewards=None, **options):
            if loss_type == "dr_grpo" and scale_rewards == "group":
                scale_rewards = False
            super().__init__(loss_type=loss_type, scale_rewards=scale_rewards, **options)

    monkeypatch.setattr(trl, "GRPOConfig", Config)
    params = load(ROOT / "params.yaml", [*CPU, "grpo.loss=dr_grpo", f"grpo.scale_rewards={scale}"])
    assert configuration(params, [1.0], tmp_path).scale_rewards == scale


def test_clip_high_has_the_sense_of_its_loss():
    for settings, said in (
        (["grpo.loss=cispo"], "for cispo it is the largest ratio itself"),
        (["grpo.clip_high=5"], "above 1"),
    ):
        with pytest.raises(UsageError, match=said):
            load(ROOT / "params.yaml", settings)


def test_the_reference_trains_all_seven_projections():
    """66,060,288, as its log says: rank x (inputs + outputs) of each, in the 36 layers of Qwen3-4B."""
    hidden, heads, kv, inner = 2560, 32 * 128, 8 * 128, 9728
    shapes = {
        "q_proj": (hidden, heads), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (heads, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip
    lora = load(ROOT / "params.yaml").sft.lora
    assert sum(lora.rank * sum(shapes[name]) for name in lora.targets) * 36 == 66_060_288


@pytest.mark.parametrize(
    ("engine", "bonus", "left"),
    [("unsloth", 0, [1.25]), ("unsloth", 0.01, [1.25, 0.0]), ("transformers", 0, [1.25, 0.0])],
)
def test_the_entropy_of_zero_that_unsloth_logs_where_it_computes_none_is_left_out(
    base, tmp_path, monkeypatch, engine, bonus, left
):
    trainer = toy.grpo_trainer(base, tmp_path, load(ROOT / "params.yaml", CPU))

    def loss(self, *_, **__):
        self._metrics["train"]["entropy"].append(0.0)
        return 0.5

    monkeypatch.setattr(GRPOTrainer, "compute_loss", loss)
    params = load(ROOT / "params.yaml", [f"grpo.engine={engine}", f"grpo.entropy={bonus}"])
    monkeypatch.setattr(trainer, "grpo", params.grpo)
    trainer._metrics["train"]["entropy"].append(1.25)  # by the sampler's log-probabilities
    trainer.compute_loss(trainer.model, {"advantages": [1.0]})
    assert trainer._metrics["train"]["entropy"] == left
    trainer._metrics["train"].clear()
    trainer.compute_loss(trainer.model, {"advantages": [1.0]})
    assert trainer._metrics["train"].get("entropy", []) == left[1:], "a step without a value has no column of nothing"


@pytest.mark.parametrize(
    ("engine", "rows", "passes"), [("unsloth", 64, 16), ("unsloth", 6, 2), ("unsloth", 3, 1), ("transformers", 64, 1)]
)
def test_unsloth_scores_no_more_completions_at_once_than_a_batch_has(base, tmp_path, monkeypatch, engine, rows, passes):
    """It makes as many passes as this setting of its says, whatever batch size it is called with."""
    trainer = toy.grpo_trainer(base, tmp_path, load(ROOT / "params.yaml", CPU))
    monkeypatch.setattr(trainer, "grpo", load(ROOT / "params.yaml", [f"grpo.engine={engine}", *CPU[2:]]).grpo)
    trainer.args.unsloth_grpo_mini_batch = 1  # as the job sets it for passes with a gradient
    seen = []

    def scored(self, *_, **__):
        seen.append(self.args.unsloth_grpo_mini_batch)
        return torch.zeros(rows, 5), None, None

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", scored)
    ids = torch.ones(rows, 7, dtype=torch.long)
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, ids, 5, batch_size=4)
    assert (seen, trainer.args.unsloth_grpo_mini_batch) == ([passes], 1)


def test_the_samplers_log_probabilities_give_the_entropy_of_what_was_sampled(base, tmp_path, monkeypatch):
    trainer = toy.grpo_trainer(base, tmp_path, load(ROOT / "params.yaml", CPU))
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -6.0, -5.0]])
    monkeypatch.setattr(
        GRPOTrainer, "_get_per_token_logps_and_entropies", lambda *_, **__: (logps, torch.zeros_like(logps))
    )
    trainer.sampled_logps = [[-1.0, -2.0, -2.0], [-4.0]]
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [1, 0, 0]])
    trainer.measure_logp_difference(
        {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask}
    )
    measured = trainer._metrics["train"]
    assert (measured["logp_difference"], measured["entropy"]) == ([0.25], [2.25])
