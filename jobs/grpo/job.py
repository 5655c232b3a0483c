"""Reinforcement learning with verifiable rewards: GRPO continues the SFT adapter on tasks with tests.

\b
    python -m jobs grpo --base models/base --adapter models/adapters/sft --tasks data/graded.jsonl \\
        --out models/adapters/grpo

\b
Reads   --base, --adapter   the model folder and the SFT adapter, whose shape sft.lora must name
        --tasks             tasks (jobs/common/task.py); the tests decide the correctness reward. grpo.difficulty
                            chooses among them by the pass rates that `grade` wrote
Writes  --out               the adapter (the sum of SFT and GRPO), and trainer.json: the settings really used
        --metrics           rewards at the start and at the end       --curve   every curve by step, as CSV
        --completions       completions with rewards and verdicts, every grpo.log_completions_every steps

A killed run resumes at its last checkpoint in .checkpoints/grpo. Times per phase go to reports/provenance/grpo.json.
"""

import json
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import click

from jobs.common import answer_format
from jobs.common.errors import JobError, UsageError
from jobs.common.files import replace_dir, write_jsonl, write_metrics
from jobs.common.prompts import require_short
from jobs.common.task import Task, read_tasks
from jobs.grpo import difficulty
from jobs.plumbing import checkpoint
from jobs.plumbing.cli import TRAINING_SANDBOX, job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS, ROWS, TABLE
from jobs.plumbing.provenance import provenance
from jobs.weights import families

if TYPE_CHECKING:
    from jobs.grpo.trainer import Trainer
    from jobs.plumbing.params import Grpo, Params
    from jobs.sandbox import Sandbox

CURVE = {
    "reward": "reward",
    "reward_std": "reward_std",
    "rewards/format/mean": "format",
    "rewards/reasoning/mean": "reasoning",
    "rewards/correctness/mean": "correctness",
    "all_tests_passed": "all_tests_passed",
    "infrastructure_errors": "infrastructure_errors",
    "frac_reward_zero_std": "equal_groups",
    "kl": "kl",
    "logp_difference": "logp_difference",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "clip_ratio/region_mean": "clipped",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
LOGGED = "step", "task_id", "completion", "advantage"  # of a line of --completions, among others


@job(
    "grpo",
    "sft.lora",
    *TRAINING_SANDBOX,
    "checkpoints",
    "seed",
)
@reads("--base", "models/base", "The model folder.")
@reads("--adapter", "models/adapters/sft", "The adapter to continue.")
@reads("--tasks", "data/graded.jsonl", "The tasks.")
@writes("--out", "models/adapters/grpo", "The adapter.", FOLDER)
@writes("--metrics", "metrics/grpo.json", "Metrics of the run.", METRICS)
@writes("--curve", "plots/grpo.csv", "Rewards, KL, entropy, lengths and more by step.", TABLE("step", "reward"))
@writes(
    "--completions",
    "data/grpo/completions.jsonl",
    "Logged completions.",
    ROWS("step", "task_id", "completion", "advantage"),
)
def command(params: "Params", **paths: Path) -> None:
    click.echo(json.dumps(run(params, **paths)))


def run(
    params: "Params", base: Path, adapter: Path, tasks: Path, out: Path, metrics: Path, curve: Path, completions: Path
) -> dict:
    from jobs.sandbox import Sandbox
    from jobs.training import loop

    given = read_tasks(tasks)
    rows = difficulty.chosen(given, params.grpo.difficulty, tasks)
    check_batches(params.grpo, len(rows), tasks)
    with Sandbox.from_params(params.sandbox) as sandbox:  # its servers start before torch does
        families.require_taken("grpo", base, params.sft.lora.targets)
        loop.prepare(params.grpo.engine)
        trainer = make_trainer(params, base, adapter, rows, tasks, sandbox)
        before = trainer.base_fingerprints()
        loop.train(trainer, trainer.directory, params.checkpoints.keep)
        if trainer.base_fingerprints() != before:
            raise JobError("grpo: the base weights changed during training; the adapter would not fit the base")
        times, step_times = trainer.times(), trainer.step_times()
    with replace_dir(out) as partial:
        loop.save_adapter(trainer.model, partial)
        loop.save_settings(trainer.args, base, partial)
    write_jsonl(completions, trainer.logged_completions())
    result = {"tasks": {"given": len(given), "chosen": len(rows)}}
    result |= summary(loop.write_curve(trainer.state.log_history, CURVE, curve))
    write_metrics(metrics, result)
    packages = loop.packages(params.grpo)
    provenance("grpo", packages=packages, seconds_by_phase=times, seconds_of_a_step=step_times)
    log.info(
        "grpo: reward %.3f -> %.3f; seconds of a step: %s",
        result["first"]["reward"],
        result["last"]["reward"],
        step_times,
    )
    return result


def resume_folder(params: "Params", base: Path, adapter: Path, tasks: Path) -> Path:
    """Where this run's checkpoints are; other params, inputs or code have another folder."""
    from jobs.training import loop

    settings = {
        "grpo": params.grpo.model_dump(),
        "lora": params.sft.lora.model_dump(),
        "seed": params.seed,
        "checkpoints": params.checkpoints.model_dump(),
        "sandbox": params.sandbox.model_dump(exclude={"workers"}),
    }
    return checkpoint.folder("grpo", settings, base, adapter, tasks, packages=loop.packages(params.grpo))


def make_trainer(
    params: "Params", base: Path, adapter: Path, rows: list[Task], tasks: Path, sandbox: "Sandbox"
) -> "Trainer":
    """The trainer over `rows`, which were read from `tasks`: its model loaded, its rollout set up where it is ours."""
    from datasets import Dataset

    from jobs.grpo.rewards import Scorer
    from jobs.training import loop

    settings = params.grpo
    scorer = Scorer(sandbox, settings.rewards, {row["task_id"]: row for row in rows})
    functions, weights = scorer.functions()
    tokenizer = loop.load_tokenizer(base)
    require_short(tokenizer, rows, settings.max_prompt_length, str(tasks))
    model = load_model(params, base, adapter)
    loop.check_fits(model, tokenizer, base)
    directory = resume_folder(params, base, adapter, tasks)  # nothing is wrong with the inputs: others' may go
    from jobs.grpo.trainer import Trainer  # imports TRL, which Unsloth wants to patch first

    prompts = [{"prompt": answer_format.chat_prompt(r["prompt"]), "task_id": r["task_id"]} for r in rows]
    trainer = Trainer(
        scorer=scorer,
        grpo=settings,
        directory=directory,
        weights=[difficulty.signal(row, settings.generations) for row in rows],
        model=model,
        processing_class=tokenizer,
        reward_funcs=functions,
        train_dataset=Dataset.from_list(prompts),
        args=configuration(params, weights, directory),
    )
    if settings.engine == "transformers" and settings.rollout == "vllm":
        from jobs.grpo.rollout import Rollout

        trainer.use_rollout(Rollout(params, base, trainer.model))
    return trainer


def load_model(params: "Params", base: Path, adapter: Path):
    """The base with the adapter to train, by the engine that params name."""
    if params.grpo.engine != "unsloth":
        from jobs.training import loop

        return loop.load_model(base, params.sft.lora, adapter, params.seed)
    from jobs.grpo.rollout import unsloth_engine_options
    from jobs.training import unsloth

    with unsloth_engine_options(params):
        return unsloth.load(params, base, adapter, rollout=True)


def check_batches(settings: "Grpo", tasks: int, path: Path) -> None:
    """Batch shapes that TRL would refuse, or an engine change silently, are refused here with the keys to change."""
    completions = settings.batch_size * settings.gradient_accumulation
    if completions % settings.generations:
        raise UsageError(
            f"grpo.batch_size x grpo.gradient_accumulation is {completions}, "
            f"not a multiple of grpo.generations ({settings.generations})"
        )
    if completions // settings.generations > tasks:
        raise UsageError(
            f"{path}: has {tasks} tasks{' in grpo.difficulty' if settings.difficulty else ''}, "
            f"a step needs {completions // settings.generations}"
        )
    if settings.importance_correction and settings.rollout == "vllm" and settings.top_p != 1:
        raise UsageError(
            "grpo.top_p must be 1 with grpo.importance_correction: a truncated distribution biases the ratio"
        )
    if settings.engine == "unsloth" and settings.rollout != "vllm":
        raise UsageError("grpo.rollout must be vllm with grpo.engine unsloth")


def configuration(params: "Params", weights: list[float], directory: Path):
    """TRL's GRPOConfig with every value that matters written out; Unsloth changes what is left to a default."""
    from trl import GRPOConfig

    from jobs.training import loop

    settings = params.grpo
    vllm = settings.engine == "unsloth"  # with transformers the job brings its own rollout
    # Unsloth would split a batch into passes by the memory that is free at that moment, another number in every step.
    unsloth: dict = {"unsloth_grpo_mini_batch": 1, "unsloth_logit_chunk_multiplier": 1} if vllm else {}
    return GRPOConfig(
        **unsloth,
        **loop.arguments(settings, params.checkpoints, directory, params.seed),
        max_steps=settings.steps,
        num_generations=settings.generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        loss_type=settings.loss,
        beta=settings.beta,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        num_iterations=1,
        delta=None,
        scale_rewards=settings.scale_rewards,
        importance_sampling_level="token",
        reward_weights=weights,
        multi_objective_aggregation="sum_then_normalize",
        mask_truncated_completions=settings.mask_truncated,
        gradient_checkpointing=settings.gradient_checkpointing,
        shuffle_dataset=True,
        log_completions=False,
        use_vllm=vllm,
        vllm_mode="colocate",
        vllm_importance_sampling_correction=settings.importance_correction,
        disable_dropout=False,
        use_liger_kernel=False,
    )


def summary(history: list[dict], window: int = 10) -> dict:
    """Means over the first and the last `window` steps."""
    names = ("reward", "format", "reasoning", "correctness", "all_tests_passed", "length", "equal_groups", "kl")
    both = {"first": history[:window], "last": history[-window:]}
    return {
        "steps": history[-1]["step"],
        **{
            part: {n: mean(r[n] for r in rows if n in r) for n in names if any(n in r for r in rows)}
            for part, rows in both.items()
        },
    }
