"""Reinforcement learning with verifiable rewards: GRPO continues the SFT adapter on tasks with tests.

\b
    python -m jobs grpo --base models/base --adapter models/adapters/sft --tasks data/graded.jsonl \\
        --out models/adapters/grpo

\b
Reads   --base, --adapter   the model folder and the SFT adapter, whose shape sft.lora must name
        --tasks             tasks (jobs/common/task.py); the tests decide the correctness reward. grpo.difficulty
                            chooses among them by the pass rates that `grade` wrote
        --validation        tasks that are not trained on: with grpo.validate_every, how many of them are solved
Writes  --out               the adapter (the sum of SFT and GRPO), and trainer.json: the settings really used;
                            with validation also the last or the best one, whichever grpo.keep does not name
        --metrics           rewards at the start and at the end       --curve   every curve by step, as CSV
        --completions       completions with rewards and verdicts, of every grpo.log_completions_every-th step, or
                            of the last one of a run that has fewer

A killed run resumes at its last checkpoint in .checkpoints/grpo. Times per phase go to reports/provenance/grpo.json.
"""

import os
import shutil
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import UsageError
from jobs.common.files import replace_dir, write_jsonl, write_metrics
from jobs.common.prompts import require_short
from jobs.common.task import Task, read_tasks
from jobs.grpo import difficulty, order
from jobs.plumbing import checkpoint, launch
from jobs.plumbing.cli import TRAINING_SANDBOX, job, log, reads, writes
from jobs.plumbing.outputs import FOLDER, METRICS, ROWS, TABLE
from jobs.plumbing.provenance import provenance
from jobs.weights import families
from jobs.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from jobs.grpo.rollout_server import RemoteRollout
    from jobs.grpo.trainer import Trainer
    from jobs.grpo.validation import Validation
    from jobs.plumbing.params import Grpo, Params
    from jobs.sandbox import Sandbox

VALIDATION = "data/validation.jsonl"  # as grade writes it
CURVE = {
    "reward": "reward",
    "reward_std": "reward_std",
    "rewards/format/mean": "format",
    "rewards/reasoning/mean": "reasoning",
    "rewards/correctness/mean": "correctness",
    "rewards/overlong/mean": "overlong",
    "all_tests_passed": "all_tests_passed",
    "special_cased": "special_cased",
    "base_only": "base_only",
    "infrastructure_errors": "infrastructure_errors",
    "frac_reward_zero_std": "equal_groups",
    "signal": "signal",
    "kl": "kl",
    "logp_difference": "logp_difference",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
    "clip_ratio/region_mean": "clipped",
    "validation/greedy": "validation_greedy",
    "validation/sampled": "validation_sampled",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
OF_TURNS = {"first_turn_passed": "first_turn_passed", "repaired": "repaired"}  # with grpo.turns: 2
OF_STALENESS = {  # with grpo.staleness: optimizer steps since what sampled, and what was made of that
    "staleness": "staleness",
    "sampling/sampling_logp_difference/mean": "sampling_logp_difference",
    "sampling/importance_sampling_ratio/mean": "importance_ratio",
}
LOGGED = "step", "task_id", "completion", "advantage"  # of a line of --completions, among others


@job(
    "grpo",
    "sft.lora",
    *TRAINING_SANDBOX,
    "checkpoints",
    "seed",
    "tracking",
)
@reads("--base", "models/base", "The model folder.")
@reads("--adapter", "models/adapters/sft", "The adapter to continue.")
@reads("--tasks", "data/graded.jsonl", "The tasks.")
@reads("--validation", None, f"Tasks to measure by, with grpo.validate_every.  [default: {VALIDATION}]")
@writes("--out", "models/adapters/grpo", "The adapter.", FOLDER)
@writes("--metrics", "metrics/grpo.json", "Metrics of the run.", METRICS)
@writes("--curve", "plots/grpo.csv", "Rewards, KL, entropy, lengths and more by step.", TABLE("step", "reward"))
@writes(
    "--completions",
    "data/grpo/completions.jsonl",
    "Logged completions.",
    ROWS("step", "task_id", "completion", "advantage"),
)
def command(params: "Params", tasks: Path, validation: Path | None, **paths: Path) -> None:
    if validation is None and params.grpo.validate_every:
        validation = Path(VALIDATION)
    launch.on_ranks(
        "grpo.processes",
        params.grpo.processes,
        check=lambda: rows_of(params, tasks, validation),
        work=lambda: run(params, tasks=tasks, validation=validation, **paths),
    )


def run(
    params: "Params",
    base: Path,
    adapter: Path,
    tasks: Path,
    validation: Path | None,
    out: Path,
    metrics: Path,
    curve: Path,
    completions: Path,
) -> dict | None:
    """The metrics; None on a rank that is not the first one, which writes nothing."""
    from jobs.grpo import rollout_server
    from jobs.sandbox import Sandbox
    from jobs.training import curves, loop, ranks

    given, rows, heldout = rows_of(params, tasks, validation)
    planned = order.plan(rows, params.grpo, params.seed, tasks)
    columns = CURVE | (OF_TURNS if params.grpo.turns > 1 else {}) | (OF_STALENESS if params.grpo.staleness else {})
    tracking = curves.trackers(params.tracking, "grpo")
    judging = params.sandbox.model_copy(update={"workers": launch.workers(params.sandbox.workers)})
    with Sandbox.from_params(judging) as sandbox:  # its servers start before torch does
        require_model(params, base)
        visible = os.environ.get(rollout_server.CARDS)
        loop.prepare(params.grpo.engine)
        with (
            ranks.joined("grpo.processes", params.grpo.processes),
            rollout_server.started(params, base, adapter, visible) as remote,
        ):
            inputs = [validation] if heldout else []
            trainer = make_trainer(params, base, adapter, rows, tasks, sandbox, *inputs, remote=remote)
            trainer.order = planned
            validated = validating(trainer, base, heldout, params.grpo.max_prompt_length, validation)
            loop.train(trainer, trainer.directory, params.checkpoints.keep, curves.growing(columns, curve), tracking)
        times, step_times = trainer.times(), trainer.step_times()
    if not ranks.main():
        return None
    history = trainer.state.log_history
    with replace_dir(out) as partial:
        if validated:
            keep(trainer, validated, base, adapter, partial)
        else:
            loop.save_adapter(trainer.model, base, partial)
        record = loop.run_record("grpo", params, params.grpo, base, adapter, {"tasks": tasks}, tasks=len(rows))
        loop.save_settings(trainer.args, base, partial, record)
    write_jsonl(completions, trainer.logged_completions())
    result: dict = {"tasks": {"given": len(given), "chosen": len(rows)}}
    if params.grpo.mix:
        result["mix"] = order.shares_of(rows, planned or [])
    written = curves.write_curve(history, columns, curve)
    result |= summary(written) | {"completions": trained_on(params.grpo, written)}
    tell_of_signal(result)
    if validated:
        result["validation"] = validated.summary(history)
    write_metrics(metrics, result)
    tell_of_times(params, result, times, step_times)
    return result


def require_model(params: "Params", base: Path) -> None:
    """Errors: JobError for a base that cannot be trained so, by its configuration."""
    families.require_taken("grpo", base, params.sft.lora.targets)
    longest = params.grpo.max_prompt_length + params.grpo.max_completion_length
    families.require_room(base, families.OF_GRPO, longest)
    if params.grpo.rollout in families.FLOAT16_ROLLOUTS:
        families.require_float16(base, f"grpo.rollout: {params.grpo.rollout}")


def tell_of_times(params: "Params", result: dict, times: dict, step_times: dict) -> None:
    """Into the provenance, and in the log."""
    from jobs.training import loop

    packages = loop.packages(params.grpo)
    provenance(
        "grpo",
        packages=packages,
        processes=params.grpo.processes,
        seconds_by_phase=times,
        seconds_of_a_step=step_times,
    )
    log.info(
        "grpo: reward %.3f -> %.3f; seconds of a step: %s",
        result["first"]["reward"],
        result["last"]["reward"],
        step_times,
    )


def rows_of(params: "Params", tasks: Path, validation: Path | None) -> tuple[list[Task], list[Task], list[Task]]:
    """The tasks that were given, those of them to train on, and those to measure by.

    Errors: UsageError for what a run with these params and files would stop at.
    """
    given = read_tasks(tasks)
    rows = order.chosen(difficulty.chosen(given, params.grpo.difficulty, tasks), params.grpo.mix, tasks)
    check_batches(params.grpo, len(rows), tasks)
    return given, rows, held_out(params.grpo, validation, given)


def held_out(settings: "Grpo", path: Path | None, training: list[Task]) -> list[Task]:
    """The tasks to measure by; none where nothing is measured. Errors: UsageError naming the flag or the task."""
    if not settings.validate_every:
        return []
    if path is None or not path.is_file() or not path.stat().st_size:
        raise UsageError(
            f"--validation: {path or 'no file'} holds no tasks to measure by; set grade.validation, or validate_every to 0"
        )
    rows = read_tasks(path)
    both = {row["task_id"] for row in rows} & {row["task_id"] for row in training}
    if both:
        raise UsageError(f"--validation: {path} has {min(both)}, which is trained on")
    return rows


def validating(trainer: "Trainer", base: Path, tasks: list[Task], limit: int, path: Path | None) -> "Validation | None":
    if not tasks:
        return None
    from jobs.grpo.validation import Validation

    require_short(trainer.processing_class, tasks, limit, str(path))
    callback = Validation(trainer, tasks, base)
    trainer.add_callback(callback)
    return callback


def keep(trainer: "Trainer", validated: "Validation", base: Path, given: Path, out: Path) -> None:
    """Writes the adapter that grpo.keep names to `out`, and the other into a folder in it that is named after it."""
    from jobs.training import loop

    step, _ = validated.best(trainer.state.log_history)
    best = validated.place(step) if step else given
    names = {"best": ".", "last": "last"} if trainer.grpo.keep == "best" else {"last": ".", "best": "best"}
    loop.save_adapter(trainer.model, base, out / names["last"])
    (out / names["best"]).mkdir(exist_ok=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(best / file, out / names["best"] / file)


def resume_folder(params: "Params", base: Path, adapter: Path, tasks: Path, *more: Path) -> Path:
    """Where this run's checkpoints are; other params, inputs or code have another folder."""
    from jobs.training import loop

    settings = {
        "grpo": params.grpo.model_dump(),
        "lora": params.sft.lora.model_dump(),
        "seed": params.seed,
        "checkpoints": params.checkpoints.model_dump(),
        "sandbox": params.sandbox.model_dump(exclude={"workers"}),
    }
    return checkpoint.folder("grpo", settings, base, adapter, tasks, *more, packages=loop.packages(params.grpo))


def make_trainer(
    params: "Params",
    base: Path,
    adapter: Path,
    rows: list[Task],
    tasks: Path,
    sandbox: "Sandbox",
    *more: Path | None,
    remote: "RemoteRollout | None" = None,
) -> "Trainer":
    """The trainer over `rows`, which were read from `tasks`: its model loaded, its rollout set up where it is ours.

    remote: what samples, with grpo.staleness.
    """
    from datasets import Dataset

    from jobs.grpo.rewards import Scorer
    from jobs.training import loop, ranks

    settings = params.grpo
    scorer = Scorer(sandbox, settings.rewards, {row["task_id"]: row for row in rows}, settings.max_completion_length)
    functions, weights = scorer.functions()
    tokenizer = load_tokenizer(base)
    require_short(tokenizer, rows, settings.max_prompt_length, str(tasks))
    loop.require_learning("grpo", settings, settings.steps)
    model = load_model(params, base, adapter)
    loop.check_fits(model, tokenizer, base)
    # Nothing is wrong with the inputs: others' folders may go.
    directory = ranks.from_main(lambda: resume_folder(params, base, adapter, tasks, *filter(None, more)))
    from jobs.grpo.reference import ReferenceCheck
    from jobs.grpo.rollout import KINDS
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
    if settings.beta:
        trainer.add_callback(ReferenceCheck())
    if remote is not None:
        remote.wait()
        trainer.use_rollout(remote)
    elif settings.rollout != "transformers" and not shares_weights(settings):
        trainer.use_rollout(KINDS[settings.rollout](params, base, trainer.model))
    return trainer


def shares_weights(settings: "Grpo") -> bool:
    """Whether Unsloth builds the engine of the rollouts, which then has no weights of its own."""
    return settings.engine == "unsloth" and settings.rollout == "vllm"


def load_model(params: "Params", base: Path, adapter: Path):
    """The base with the adapter to train, by the engine that params name."""
    if params.grpo.engine != "unsloth":
        from jobs.training import loop

        return loop.load_model(base, params.sft.lora, adapter, params.seed)
    from jobs.training import unsloth

    if not shares_weights(params.grpo):
        return unsloth.load(params, base, adapter, params.grpo)
    from jobs.grpo.rollout import unsloth_engine_options

    with unsloth_engine_options(params):
        return unsloth.load(params, base, adapter, params.grpo, rollout=True)


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
    if settings.importance_correction and settings.rollout != "transformers" and settings.top_p != 1:
        raise UsageError(
            "grpo.top_p must be 1 with grpo.importance_correction: a truncated distribution biases the ratio"
        )
    if settings.engine == "unsloth" and settings.rollout == "transformers":
        raise UsageError("grpo.rollout must be vllm, vllm_merged or vllm_merged_fp8 with grpo.engine unsloth")


def configuration(params: "Params", weights: list[float], directory: Path):
    """TRL's GRPOConfig with every value that matters written out; Unsloth changes what is left to a default."""
    from trl import GRPOConfig

    from jobs.training import loop

    settings = params.grpo
    vllm = shares_weights(settings)  # else the job brings its own rollout
    # Unsloth would split a batch into passes by the memory that is free at that moment, another number in every step.
    passes = {"unsloth_grpo_mini_batch": 1, "unsloth_logit_chunk_multiplier": 1}
    unsloth: dict = passes if settings.engine == "unsloth" else {}
    config = GRPOConfig(
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
        use_bias_correction_kl=True,
        entropy_coef=settings.entropy,
        use_adaptive_entropy=False,
        top_entropy_quantile=1.0,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        num_iterations=settings.iterations,
        delta=None,
        scale_rewards=settings.scale_rewards,
        importance_sampling_level=settings.ratio,
        reward_weights=weights,
        multi_objective_aggregation="sum_then_normalize",
        mask_truncated_completions=settings.mask_truncated,
        gradient_checkpointing=settings.gradient_checkpointing,
        shuffle_dataset=True,
        log_completions=False,
        use_vllm=vllm,
        vllm_mode="colocate",
        # Text is made of the tokens once, when an answer has ended, and not token by token in the engine's own loop.
        generation_kwargs={"detokenize": False, "flat_logprobs": True} if vllm else None,
        vllm_importance_sampling_correction=settings.importance_correction,
        vllm_importance_sampling_mode=settings.importance_mode,
        vllm_importance_sampling_clip_min=None,
        vllm_importance_sampling_clip_max=settings.importance_cap,
        disable_dropout=False,
        use_liger_kernel=False,
    )
    # Unsloth's config turns "group" into none for dr_grpo, so advantages would not be divided as params say.
    config.scale_rewards = settings.scale_rewards
    return config


def tell_of_signal(result: dict) -> None:
    """Says in the log what a run that learned little or nothing would otherwise end without a word on."""
    without, steps = result["steps_without_signal"], result["steps"]
    if without * 2 > steps:
        log.warning(
            "grpo: in %d of %d steps no group had a signal, so they taught nothing: their answers all earned the same",
            without,
            steps,
        )


def trained_on(settings: "Grpo", history: list[dict]) -> dict:
    """Completions of the whole run: in its batches, in groups without a signal, and of those the ones that cost no pass."""
    step = settings.batch_size * settings.gradient_accumulation
    signals = [row["signal"] for row in history if row.get("signal") is not None]
    without = sum(round(step * (1 - signal)) for signal in signals)
    return {
        "in_batches": step * len(signals),
        "without_signal": without,
        "without_a_pass": 0 if settings.beta or settings.entropy else without,
    }


def summary(history: list[dict]) -> dict:
    """Steps, those without a signal among them, and means over the first and last ten; of fewer than 20, over halves."""
    drawn = [row for row in history if "reward" in row]  # with several iterations not every step draws a batch
    window = min(10, -(-len(drawn) // 2))
    names = ("reward", "format", "reasoning", "correctness", "all_tests_passed", "length", "equal_groups", "kl")
    both = {"first": drawn[:window], "last": drawn[-window:]}
    return {
        "steps": history[-1]["step"],
        "steps_without_signal": sum(row.get("signal") == 0 for row in history),
        **{
            part: {n: mean(r[n] for r in rows if n in r) for n in (*names, *OF_TURNS) if any(n in r for r in rows)}
            for part, rows in both.items()
        },
    }
