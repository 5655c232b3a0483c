"""The typed schema of params.yaml: every key, its type, its range. Unknown, missing and odd keys stop with their path.

`load` reads a file, applies --set assignments, and checks the result; nothing else reads params.yaml.
"""

import difflib
import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from jobs.common.errors import UsageError
from jobs.plumbing.licenses import LICENSES
from jobs.plumbing.messages import SECRET, explain, shown
from jobs.plumbing.yaml12 import parse, read_yaml

Positive = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w./-]+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Engine = Literal["unsloth", "transformers"]


def distinct(names: list[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"names {shown(twice[0])} twice; once is enough")
    return names


Names = Annotated[list[Name], Field(min_length=1), AfterValidator(distinct)]


def ascending(span: list) -> list:
    if span[0] > span[1]:
        raise ValueError(f"the lower bound {span[0]} is above the upper bound {span[1]}")
    return span


Span = Annotated[list[Count], Field(min_length=2, max_length=2), AfterValidator(ascending)]
Shares = Annotated[list[Fraction], Field(min_length=2, max_length=2), AfterValidator(ascending)]


def endpoint(url: str) -> str:
    """An OpenAI-compatible endpoint's address: what comes before /chat/completions."""
    try:
        parts = urlsplit(url)
        credentials, host, _ = "@" in parts.netloc, parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is {shown(url)}, which is no address ({error})") from None
    if credentials:
        raise ValueError("has a name or password in it; the key belongs into the variable that api_key_env names")
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise ValueError(f"is {shown(url)}; it must be an address such as https://api.deepseek.com")
    for mark, part in (("?", "query"), ("#", "fragment")):
        if mark in url:
            # Its value may be a key, so it is not shown.
            raise ValueError(f"has a {part} ({mark}...), which would be lost; it must end with the path, such as /v1")
    last = re.search(r"/(chat/completions|completions|responses|messages|models|embeddings)/*$", parts.path)
    if last:
        raise ValueError(f"is {shown(url)}; it must end before {last[0]}, which is added to it")
    return url


def require_json(value: Any, key: str = "", depth: int = 0) -> None:
    """Errors: ValueError naming the first key in `value` that a JSON request cannot carry as it is."""
    if depth > 20:
        raise ValueError(f"{key[:100]} is nested too deeply, or holds itself")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{key}{shown(name)} is a key that is no text; put it in quotes")
            require_json(inner, f"{key}{name}.", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            require_json(inner, f"{key.rstrip('.')}[{index}].", depth + 1)
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"{key.rstrip('.')} is {shown(value)}; JSON has texts, numbers, lists and mappings: quote it")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key.rstrip('.')} is {shown(value)}; it must be a finite number")
    else:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except ValueError:  # half a surrogate pair, or a number of thousands of digits
            raise ValueError(f"{key.rstrip('.')} is {shown(value)}, which cannot be sent") from None


class Section(BaseModel):
    """Strict (no string is read as a number), closed (unknown keys are refused), finite and frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ToyBase(Section):
    """A Qwen3-architecture model trained from scratch on generated functions; see jobs/toy/pretrain.py.

    clean: share of the steps, the first ones, whose programs are all right.
    wrong: share of the code's lines that have another digit from then on.
    signed: share of the programs that forget the sign from then on.
    """

    hidden_size: Annotated[int, Field(ge=64, le=1024, multiple_of=64)]
    intermediate_size: Annotated[int, Field(ge=64, le=4096)]
    layers: Annotated[int, Field(ge=1, le=32)]
    heads: Annotated[int, Field(ge=1, le=16)]
    kv_heads: Annotated[int, Field(ge=1, le=16)]
    head_dim: Annotated[int, Field(ge=32, le=128)]
    vocab_size: Annotated[int, Field(ge=300, le=8192)]
    clean: Fraction
    wrong: Fraction
    signed: Fraction
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    seed: Seed


class LocalBase(Section):
    """A base model on this machine: a folder in safetensors, or a GGUF file, and the hash of its bytes."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    sha256: Sha256


class Base(Section):
    """Where the base model comes from, the first of these that is set: `toy`, `gguf`, `folder`, or the Hub."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None
    revision: str | None
    folder: LocalBase | None
    gguf: LocalBase | None
    toy: ToyBase | None

    @model_validator(mode="after")
    def one_source(self) -> "Base":
        if self.folder and self.gguf:
            raise ValueError("has a `folder` and a `gguf` file; one of them is to be null")
        local = self.toy or self.gguf or self.folder
        if local is None and (self.repo is None or not re.fullmatch(r"[0-9a-f]{40}", self.revision or "")):
            given = f"repo: {shown(self.repo)}, revision: {shown(self.revision)}"
            raise ValueError(
                f"needs `repo` and a `revision` of 40 hex digits, or `folder`, `gguf` or `toy`; it has {given}"
            )
        return self


class ToyTasks(Section):
    """How many generated tasks go to each split; see jobs/toy/world.py."""

    distill: Positive
    train: Positive
    heldout: Positive


class EvalPlus(Section):
    """A benchmark file that evalplus fetches; the hash is the unpacked jsonl's."""

    version: Annotated[str, Field(pattern=r"^v\d+\.\d+\.\d+$")]
    sha256: Sha256


class Mbpp(Section):
    """The whole of MBPP, from the Hub; the hash is of its 974 rows as jsonl, the form it was first published in."""

    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    sha256: Sha256


class Exclusion(Section):
    """A training task that is left out on every machine, and why."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    reason: Annotated[str, Field(min_length=1, max_length=200)]


class Overlap(Section):
    """When a training task overlaps with a benchmark's, beside solving it; see jobs/tasks/overlap.py."""

    likeness: Rate  # cosine of the statements' TF-IDF
    words: Annotated[int, Field(ge=2, le=64)]  # in a row, shared by the prompts


class OwnTimeout(Section):
    """A training task's own limit of time, below sandbox.timeout; see jobs/tasks/timeouts.py."""

    floor: Annotated[float, Field(ge=0.1, le=86400)]  # seconds that every task has at least
    factor: Annotated[float, Field(ge=10, le=10**6)]  # times what its reference takes


RESERVED = ("train", "distill", "humaneval", "mbpp", "toy", "toy_stdin", "benchmarks", "left_out", "contamination")


class OwnTasks(Section):
    """A file of one's own tasks, docs/tasks.md, pinned by its hash; `split` is train, distill or a benchmark's new name."""

    path: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    split: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=50)]

    @field_validator("split")
    @classmethod
    def no_other_file(cls, name: str) -> str:
        if name in RESERVED[2:]:
            raise ValueError(f"cannot be {name}: give a benchmark of your own another name")
        return name


class TaskSource(Section):
    """A file of a published data set, docs/tasks.md; see jobs/tasks/outside.py. `since` and `until` are YYYY-MM-DD."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=50)]  # before the ids of its tasks
    format: Literal["taco", "leetcode", "deepcoder", "kodcode", "livecodebench", "bigcodebench"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    file: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    split: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=50)]
    statement: Count = 0  # characters that a prompt may have; 0: any number
    tests: Count = 0  # of a task that are kept, those with the largest inputs; 0: all
    most: Count = 0  # tasks, drawn by tasks.seed; 0: all
    difficulty: list[str] = []  # the source's own words for it; empty: all
    since: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None
    until: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None

    @model_validator(mode="after")
    def fits(self) -> "TaskSource":
        if (self.repo is None) != (self.revision is None):
            raise ValueError("has repo or revision alone: a download is pinned by both")
        if self.split in RESERVED[2:]:
            raise ValueError(f"cannot be of the split {self.split}: give a benchmark another name")
        if self.split in RESERVED[:2] and self.format == "bigcodebench":
            raise ValueError("is of a benchmark's format: no reward can hang on tests in the answer's own process")
        if self.split not in RESERVED[:2] and (self.statement or self.tests or self.most):
            raise ValueError("statement, tests and most are for training: a benchmark keeps all its tasks and tests")
        return self


class Tasks(Section):
    """Task sources, splits and decontamination; see jobs/tasks/job.py."""

    humaneval_plus: EvalPlus
    mbpp_plus: EvalPlus
    mbpp: Mbpp
    seed: Seed
    train_on_distill: bool
    plus_inputs: bool  # of the tasks to train on: evalplus's added inputs decide as well
    heldout: Annotated[int, Field(ge=0, le=377)]
    exclude: list[Exclusion]
    overlap: Overlap
    timeout: OwnTimeout | None
    files: list[OwnTasks]
    sources: list[TaskSource]
    toy: ToyTasks | None
    toy_stdin: bool  # the toy's tasks want whole programs that read and write

    @field_validator("exclude")
    @classmethod
    def each_once(cls, rows: list[Exclusion]) -> list[Exclusion]:
        twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
        if twice:
            raise ValueError(f"names {twice[0]} twice")
        return rows


class Distill(Section):
    """The teacher and what is kept of its answers; see jobs/distill/job.py."""

    base_url: Annotated[str, AfterValidator(endpoint)]
    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S+$")]
    aliases: list[Annotated[str, Field(min_length=1, max_length=200)]]
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None
    recorded: str | None
    references: bool
    examples: Positive
    attempts: Annotated[int, Field(ge=1, le=100)]
    concurrency: Annotated[int, Field(ge=1, le=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    max_tokens: Positive
    extra_body: dict[str, Any]
    timeout: Seconds
    retries: Annotated[int, Field(ge=0, le=100)]
    patience: Positive
    max_requests: Positive
    max_total_tokens: Positive
    price_in: NonNegative
    price_out: NonNegative
    reasoning_characters: Span
    code_characters: Span
    similarity: Rate

    @model_validator(mode="after")
    def one_source_of_answers(self) -> "Distill":
        if self.references and self.recorded is not None:
            raise ValueError("references and recorded are both set: set references to false or recorded to null")
        return self

    @field_validator("extra_body")
    @classmethod
    def no_other_request(cls, body: dict[str, Any]) -> dict[str, Any]:
        require_json(body)
        for name in body:
            if name in ("model", "messages", "stream", "n"):
                raise ValueError(f"cannot set {name}: the job does that itself; remove it")
            if SECRET.search(name):
                raise ValueError(f"cannot set {name}: a request is stored, so no secret may be in it; see api_key_env")
        for name in ("max_tokens", "max_completion_tokens"):
            value = body.get(name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(
                    f"{name} is {shown(value)}; it must be a whole number above 0, or null to leave it out"
                )
        if "max_tokens" in body and not (body["max_tokens"] or body.get("max_completion_tokens")):
            raise ValueError("takes max_tokens away; max_completion_tokens must then say how long an answer may be")
        return body


ALL_LINEAR = "all-linear"


def as_list(targets: Any) -> Any:
    return [targets] if targets == ALL_LINEAR else targets


def alone(targets: list[str]) -> list[str]:
    if ALL_LINEAR in targets and len(targets) > 1:
        raise ValueError(f"has {ALL_LINEAR} beside other names; it stands for all linear layers but the output head")
    return targets


Targets = Annotated[Names, BeforeValidator(as_list), AfterValidator(alone)]


class Lora(Section):
    """The adapter's shape; GRPO continues the SFT adapter, so there is one."""

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive
    targets: Targets


class Optimizer(Section):
    """What SFT and GRPO share of their optimizer settings."""

    learning_rate: Rate
    schedule: Literal["cosine", "constant"]
    warmup_ratio: Fraction
    weight_decay: Fraction
    optimizer: Literal["adamw_8bit", "adamw_torch"]
    max_grad_norm: NonNegative
    batch_size: Positive
    gradient_accumulation: Positive
    processes: Annotated[int, Field(ge=1, le=1024)]

    @property
    def share(self) -> tuple[int, int]:
        """batch_size and gradient_accumulation of one of the processes. Passes are shared out first, then their rows."""
        passes = math.gcd(self.gradient_accumulation, self.processes)
        return self.batch_size * passes // self.processes, self.gradient_accumulation // passes

    @model_validator(mode="after")
    def processes_share_the_batch(self) -> "Optimizer":
        if math.prod(self.share) * self.processes != self.batch_size * self.gradient_accumulation:
            raise ValueError(
                f"processes is {self.processes}, which cannot share batch_size x gradient_accumulation "
                f"({self.batch_size} x {self.gradient_accumulation}) evenly"
            )
        return self


Trained = TypeVar("Trained", "Sft", "Grpo")


def require_transformers(settings: Trained) -> Trained:
    if settings.processes > 1 and settings.engine == "unsloth":
        raise ValueError(
            f"processes is {settings.processes}, and engine unsloth trains in one; transformers does in more"
        )
    return settings


class Sft(Optimizer):
    """Supervised fine-tuning; see jobs/sft.py."""

    engine: Engine
    lora: Lora
    epochs: Positive
    validation: Count
    keep_epochs: bool  # the adapter after each epoch lies in a folder of the last one
    group_by_length: bool
    max_length: Positive
    gradient_checkpointing: bool

    @model_validator(mode="after")
    def engine_has_ranks(self) -> "Sft":
        return require_transformers(self)


class Grade(Section):
    """How often the SFT model solves each training task; see jobs/grade.py."""

    samples: Annotated[int, Field(ge=0, le=1024)]
    validation: Count


class Rewards(Section):
    """What an answer earns; see jobs/grpo/rewards.py."""

    format: NonNegative
    reasoning: NonNegative
    reasoning_characters: Positive
    correctness: NonNegative
    all_tests_only: bool
    overlong: NonNegative
    overlong_tokens: Positive


class Grpo(Optimizer):
    """Reinforcement learning; see jobs/grpo/job.py."""

    engine: Engine
    rollout: Literal["vllm", "vllm_merged", "vllm_merged_fp8", "transformers"]
    difficulty: Shares | None
    mix: Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)] | None
    curriculum: Fraction
    turns: Annotated[int, Field(ge=1, le=2)]
    staleness: Annotated[int, Field(ge=0, le=1)]
    steps: Positive
    generations: Annotated[int, Field(ge=2, le=1024)]
    max_prompt_length: Positive
    max_completion_length: Positive
    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Rate
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
    ratio: Literal["token", "sequence"]
    iterations: Annotated[int, Field(ge=1, le=64)]
    beta: Fraction
    entropy: Fraction
    clip_low: Rate
    clip_high: Annotated[float, Field(gt=0, le=100)]
    scale_rewards: Literal["group", "batch", "none"]
    importance_correction: bool
    importance_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
    importance_cap: Annotated[float, Field(ge=1, le=100)]
    mask_truncated: bool
    equal_groups: Literal["keep", "drop", "refill"]
    gpu_memory: Annotated[float, Field(gt=0.05, le=0.95)]
    kv_cache_gib: Annotated[float, Field(gt=0, le=1024)] | None
    gradient_checkpointing: bool
    log_completions_every: Count
    patience: Count
    validate_every: Count
    validate_samples: Annotated[int, Field(ge=0, le=1024)]
    validate_patience: Count
    keep: Literal["best", "last"]
    rewards: Rewards

    @model_validator(mode="after")
    def engine_has_ranks(self) -> "Grpo":
        return require_transformers(self)

    @model_validator(mode="after")
    def groups_stay_whole(self) -> "Grpo":
        """A group's answers are sampled, judged and compared by one process."""
        completions = math.prod(self.share)
        if self.processes > 1 and completions % self.generations:
            raise ValueError(
                f"batch_size x gradient_accumulation, shared by processes ({self.processes}), is {completions} completions "
                f"for each, not a multiple of generations ({self.generations})"
            )
        return self

    @model_validator(mode="after")
    def clip_high_fits_the_loss(self) -> "Grpo":
        if self.loss == "cispo" and self.clip_high < 1:
            raise ValueError(
                f"clip_high is {self.clip_high:g}; for cispo it is the largest ratio itself: it must be 1 or more, as 5 is"
            )
        if self.loss != "cispo" and self.clip_high > 1:
            raise ValueError(
                f"clip_high is {self.clip_high:g}; it is what a ratio may lie above 1, so it must be 1 or less"
            )
        return self

    @model_validator(mode="after")
    def ranks_draw_alike(self) -> "Grpo":
        """What only some ranks would sample anew, they cannot sample in common."""
        if self.processes > 1 and self.turns > 1:
            raise ValueError(f"turns is {self.turns}, which more than one process cannot do: set processes to 1")
        if self.processes > 1 and self.mix and self.equal_groups == "refill":
            raise ValueError("equal_groups is refill, which with a mix more than one process cannot do: set it to drop")
        return self

    @model_validator(mode="after")
    def unsloth_has_one_turn(self) -> "Grpo":
        if self.turns > 1 and self.engine == "unsloth":
            raise ValueError("turns is 2, which engine unsloth cannot do: set engine to transformers")
        return self

    @model_validator(mode="after")
    def eight_bits_are_corrected(self) -> "Grpo":
        if self.rollout == "vllm_merged_fp8" and not self.importance_correction:
            raise ValueError(
                "rollout is vllm_merged_fp8, whose answers are not quite the policy's: set importance_correction to true"
            )
        return self

    @model_validator(mode="after")
    def ahead_is_corrected(self) -> "Grpo":
        """Completions of an older adapter are weighed, and only a run of one process and one turn samples ahead."""
        wanted = {
            "engine": "transformers",
            "importance_correction": True,
            "top_p": 1,
            "iterations": 1,
            "processes": 1,
            "turns": 1,
        }
        found = [f"{name} to {str(value).lower()}" for name, value in wanted.items() if getattr(self, name) != value]
        found += ["equal_groups to drop or keep"] if self.equal_groups == "refill" else []
        if self.staleness and found:
            raise ValueError(f"staleness is 1, which needs other settings: set {', '.join(found)}")
        return self

    @model_validator(mode="after")
    def best_needs_a_measure(self) -> "Grpo":
        if self.keep == "best" and not self.validate_every:
            raise ValueError("keep is best, and with validate_every 0 nothing says which adapter that is")
        return self


class Merge(Section):
    """How the sum of base and adapter is stored; see jobs/merge.py."""

    dtype: Literal["float16", "bfloat16", "float32"]
    rounding: Literal["nearest", "stochastic"]
    min_retention: Fraction

    @model_validator(mode="after")
    def rounding_fits_dtype(self) -> "Merge":
        if self.rounding == "stochastic" and self.dtype != "bfloat16":
            raise ValueError(f"rounding can be stochastic for dtype bfloat16 only, and dtype is {self.dtype}")
        return self


class Sampled(Section):
    """Samples per task beside the greedy one; with n: 0 there is the greedy one alone."""

    n: Annotated[int, Field(ge=0, le=10**9)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    top_p: Rate


class Evaluate(Section):
    """Sampling and scoring on the benchmarks; see jobs/evaluate.py."""

    engine: Literal["vllm", "transformers"]
    dtype: Literal["float16", "bfloat16", "float32"]
    benchmarks: Names
    seed: Seed
    max_tokens: Positive
    batch_size: Positive
    batch_invariant: bool
    gpu_memory: Annotated[float, Field(gt=0.05, le=0.95)]
    kv_cache_gib: Annotated[float, Field(gt=0, le=1024)] | None
    sampled: Sampled


class Compare(Section):
    """The statistics' resampling and level; see jobs/compare/job.py."""

    seed: Seed
    resamples: Positive
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class GgufLimits(Section):
    """How far a GGUF file may be from the model in float32; `drop` is of pass@1."""

    kl: NonNegative
    top1: Fraction
    drop: Fraction


class Gguf(Section):
    """The GGUF files to write, the tasks to check them on and what they must keep; see jobs/gguf/job.py."""

    benchmark: Name
    types: Names
    tasks: Positive
    max_tokens: Positive
    limits: dict[str, GgufLimits]

    @model_validator(mode="after")
    def every_type_has_limits(self) -> "Gguf":
        missing = [kind for kind in self.types if kind not in self.limits]
        if missing:
            raise ValueError(f"limits has none for {', '.join(missing)}")
        return self


class Publish(Section):
    """What the model card says beside the metrics; see jobs/publish/card.py."""

    license: Name

    @field_validator("license")
    @classmethod
    def known_to_the_hub(cls, name: str) -> str:
        if name not in LICENSES:
            near = difflib.get_close_matches(name.lower(), LICENSES, 1, 0.5)
            raise ValueError(
                f"is {shown(name)}, which the Hub does not know as a licence"
                + (f"; did you mean {near[0]}?" if near else "; `other` stands for one that is not in its list")
            )
        return name


class Sandbox(Section):
    """Limits for code that a model wrote: what may be set of a sandbox (jobs/sandbox/settings.py)."""

    workers: Count  # judges beside each other; 0 for as many as there are cores
    timeout: Seconds  # of wall time that a submission has in training
    memory_mib: Positive  # address space that a submission may take beyond the interpreter's
    limit_factor: Annotated[
        float, Field(ge=1, le=1000)
    ]  # times what the reference took: an input's limit in a benchmark
    min_limit: Seconds  # the least that such a limit can be
    require: list[Literal["seccomp", "landlock", "unprivileged"]]  # layers without which the sandbox does not start
    packages: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]]  # beyond the standard library


class Checkpoints(Section):
    """Training checkpoints: saved every `every` steps, the last `keep` kept."""

    every: Positive
    keep: Positive


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed  # of training alone, see docs/seeds.md
    tracking: Annotated[list[Literal["tensorboard", "wandb", "trackio", "dvclive"]], AfterValidator(distinct)]
    base: Base
    tasks: Tasks
    distill: Distill
    sft: Sft
    grade: Grade
    grpo: Grpo
    merge: Merge
    evaluate: Evaluate
    compare: Compare
    gguf: Gguf
    publish: Publish
    sandbox: Sandbox
    checkpoints: Checkpoints


def load(path: Path, assignments: Sequence[str] = ()) -> Params:
    """The checked params of `path` with `section.key=value` assignments applied.

    Errors: UsageError naming the file, or the assignment, and the key, the value and what would do, for every key that
    is unknown, missing, mistyped or out of range.
    """
    values = read_yaml(path)
    assigned = {assign(values, assignment): assignment for assignment in assignments}
    return validate(values, str(path), assigned)


def assign(values: dict[str, Any], assignment: str) -> str:
    """Applies one `section.key=value`; the value is YAML. Returns the key."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {assignment}: not of the form section.key=value")
    *parents, last = key.split(".")
    inner = values
    for name in parents:
        nested = inner.get(name)
        if not isinstance(nested, dict):
            raise UsageError(f"--set {assignment}: there is no section {name!r} in the params")
        inner = nested
    try:
        inner[last] = parse(text)
    except ValueError as error:
        raise UsageError(f"--set {assignment}: not a YAML value ({error})") from None
    return key


def validate(values: dict[str, Any], where: str, assigned: Mapping[str, str] = MappingProxyType({})) -> Params:
    """The Params of these values. assigned: the keys that did not come from `where`, each with its assignment."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = []
        for found in error.errors():
            key = ".".join(map(str, found["loc"]))
            by_hand = any(f"{key}.".startswith(f"{name}.") for name in assigned)
            # Keys of one section that do not go together. Never the values, of which one may be a secret.
            inside = [name for name in assigned if not key or name.startswith(f"{key}.")]
            place = "--set" if by_hand else f"{where} with --set {', '.join(inside)}" if inside else where
            lines.append(f"{place}: {explain(found, siblings(found['loc']))}")
        raise UsageError("\n       ".join(lines)) from None
    except RecursionError:
        raise UsageError(f"{where}: is nested too deeply") from None


def siblings(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that the last of `loc` lies in."""
    section: Any = Params
    for part in loc[:-1]:
        field = (
            section.model_fields.get(str(part)) if isinstance(section, type) and issubclass(section, Section) else None
        )
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    return list(section.model_fields) if section else []


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping: how data/smoke/params.yaml makes the run small."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def read_merged(paths: Iterable[Path]) -> dict[str, Any]:
    """The mappings of YAML files, each laid over those before it. Errors: as `read_yaml`."""
    return functools.reduce(merged, map(read_yaml, paths))
