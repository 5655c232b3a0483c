"""Pushes the merged model, the adapter and the GGUF files to the Hub, with a model card made from the metrics.

\b
    HF_TOKEN=... python -m jobs publish --repo OWNER/NAME
    python -m jobs publish --repo OWNER/NAME --dry-run

\b
Reads   --merged       the merged model's folder, which goes to the repository's top
        --adapter      the adapter's folder, which goes to adapter/
        --gguf         the folder of GGUF files, which go to gguf/
        --metrics-dir  what the stages measured: merge-*.json, gguf.json, compare.json, tasks.json
Writes  --card         the model card; --dry-run stops there, and lists the files with their sizes

Nothing is pushed that the metrics do not describe: a missing metrics file stops the job. The token is read from the
environment variable HF_TOKEN and goes nowhere but to the Hub. All files go up in one commit.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.answer_format import chat_prompt
from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, replace_file, sealed
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import SEALED

if TYPE_CHECKING:
    from jobs.plumbing.params import Params


def run(
    params: "Params", repo: str, merged: Path, adapter: Path, gguf: Path, metrics: Path, card_path: Path, dry_run: bool
) -> dict:
    files = collect(merged, adapter, gguf)
    measured = {name: read_json(metrics / f"{name}.json") for name in (f"merge-{adapter.name}", "gguf", "compare")}
    text = card(params, repo, adapter.name, files, measured)
    with replace_file(card_path) as partial:
        partial.write_text(sealed(text), encoding="utf-8")
    listed = {name: path.stat().st_size for name, path in files.items()}
    if not dry_run:
        push(repo, files | {"README.md": card_path})
    return {"repo": repo, "pushed": not dry_run, "card": str(card_path), "files": listed, "bytes": sum(listed.values())}


def collect(merged: Path, adapter: Path, gguf: Path) -> dict[str, Path]:
    """Every file to push by its name in the repository. Errors: JobError for a folder that lacks what it is for."""
    files: dict[str, Path] = {}
    for prefix, folder, needed in (
        ("", merged, "config.json"),
        ("adapter/", adapter, "adapter_config.json"),
        ("gguf/", gguf, "*.gguf"),
    ):
        if not list(folder.glob(needed)):
            raise JobError(f"{folder}: has no {needed}")
        files |= {
            prefix + path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "README.md" and not path.name.startswith(".")
        }
    return files


def card(params: "Params", repo: str, name: str, files: dict[str, Path], measured: dict[str, dict]) -> str:
    """The model card as Markdown with the Hub's front matter."""
    merge, gguf, compare = measured[f"merge-{name}"], measured["gguf"], measured["compare"]
    base = params.base.repo or "a toy model trained from scratch"
    front = [
        "---",
        f"license: {params.publish.license}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {params.base.repo}", "base_model_relation: finetune"] if params.base.repo else []),
        "tags: [code, grpo, lora, gguf]",
        "---",
    ]
    sft, grpo = params.sft, params.grpo
    teacher = params.distill.recorded or params.distill.model
    files_of_gguf = [(Path(file).name, path) for file, path in files.items() if file.startswith("gguf/")]
    return "\n".join(
        [
            *front,
            "",
            f"# {repo.partition('/')[2]}",
            "",
            f"Writes Python functions: {base}"
            + (f" at revision `{params.base.revision}`" if params.base.repo else "")
            + f", fine-tuned on {params.distill.examples} distilled examples at most (teacher: {teacher}), then trained "
            "with GRPO, rewarded by running its programs against tests.",
            "",
            "## Scores",
            "",
            *scores(compare),
            "",
            "Mean pass@1 over samples, with intervals; a difference is called established if a paired test says so after "
            "correction for the number of comparisons. One training run: another seed gives other weights.",
            "",
            "## Use",
            "",
            "Give it the plain text below; it answers `<START_WORKING_OUT>` reasoning `</END_WORKING_OUT>` `<SOLUTION>` "
            "code `</SOLUTION>`. The chat template in the tokenizer and in the GGUF files renders the same.",
            "",
            "```",
            chat_prompt("PROMPT").rstrip(),
            "```",
            "",
            "It writes code that nobody has read: run it in a sandbox.",
            "",
            "## Training",
            "",
            "| | SFT | GRPO |",
            "|---|---|---|",
            *(
                f"| {label} | {getattr(sft, key)} | {getattr(grpo, key)} |"
                for label, key in (
                    ("learning rate", "learning_rate"),
                    ("warm-up", "warmup_ratio"),
                    ("weight decay", "weight_decay"),
                    ("optimizer", "optimizer"),
                    ("batch size", "batch_size"),
                    ("accumulation", "gradient_accumulation"),
                )
            ),
            f"| length | {sft.epochs} epochs | {grpo.steps} steps of {grpo.generations} samples a prompt |",
            "",
            f"LoRA of rank {sft.lora.rank}, alpha {sft.lora.alpha}, on {', '.join(sft.lora.targets)}. "
            f"Loss {grpo.loss}, beta {grpo.beta}, temperature {grpo.temperature}, top-p {grpo.top_p}. Seed {params.seed}.",
            "",
            "## Precision",
            "",
            f"The adapter was added to the base once, in float64, and stored as {params.merge.dtype} "
            f"({params.merge.rounding}): {merge['retention']:.2%} of the update survived, along its direction, with a "
            f"relative error of {merge['relative_error']:.2%}. Load it in that dtype: casting it to another loses what "
            "this kept.",
            "",
            "| GGUF | size | mean KL to float32 | same first choice | pass@1 |",
            "|---|---|---|---|---|",
            *(row_of(kind, figures, files_of_gguf) for kind, figures in gguf.items() if kind != "reference"),
            f"| float32 by transformers | | | | {gguf['reference']['pass@1']:.1%} |",
            "",
            f"On {gguf['reference']['tasks']} tasks, greedily.",
            "",
            "## Licence",
            "",
            f"{params.publish.license}, as the base model's.",
            "",
        ]
    )


def row_of(kind: str, figures: dict, files: list[tuple[str, Path]]) -> str:
    name = next((name for name, _ in files if name.endswith(f"-{kind}.gguf")), None)
    if name is None:
        raise JobError(f"the metrics tell of a {kind} file, which the GGUF folder lacks")
    return (
        f"| `{name}` | {figures['bytes'] / 1e9:.2f} GB | {figures['kl']:.2g} | {figures['top1']:.1%} "
        f"| {figures['pass@1']:.1%} |"
    )


def scores(compare: dict) -> list[str]:
    """A table of every benchmark and mode: each model's pass@1 with its interval, then the differences."""
    lines = ["| benchmark | mode | model | pass@1 | interval |", "|---|---|---|---|---|"]
    differences = []
    for benchmark, modes in sorted(compare.items()):
        for mode, entries in sorted(modes.items()):
            for model, values in entries.items():
                if "pass@1" in values:
                    rate = values["pass@1"]
                    lines.append(f"| {benchmark} | {mode} | {model} | {rate['mean']:.1%} | {interval(rate)} |")
                elif "mean" in values:
                    said = "established" if values.get("established") else "not established"
                    pair = model.replace("-", " against ")
                    differences.append(
                        f"- {benchmark}, {mode}: {pair} {values['mean']:+.1%} ({interval(values)}), {said}"
                    )
    return [*lines, "", *differences]


def interval(values: dict) -> str:
    return f"{values['low']:.1%} to {values['high']:.1%}" if {"low", "high"} <= values.keys() else "none"


def push(repo: str, files: dict[str, Path]) -> None:
    """One commit with all files; creates the repository if it is not there."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UsageError("HF_TOKEN: is not set; a token that may write to the repository is needed, or --dry-run")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        api.create_commit(repo, operations, commit_message="Publish model, adapter and GGUF files")
    except (HfHubHTTPError, OSError) as error:
        raise JobError(f"{repo}: could not be published ({' '.join(str(error).split())})") from None
    log.info("published %d files to %s", len(files), repo)


@job()
@click.option("--repo", required=True, metavar="OWNER/NAME", help="The repository on the Hub.")
@reads("--merged", "models/grpo", "The merged model's folder.")
@reads("--adapter", "models/adapters/grpo", "The adapter's folder.")
@reads("--gguf", "models/gguf", "The folder of GGUF files.")
@reads("--metrics-dir", "metrics", "The stages' metrics.")
@writes("--card", "reports/model-card.md", "The model card.", SEALED)
def command(
    params: "Params", repo: str, merged: Path, adapter: Path, gguf: Path, metrics_dir: Path, card: Path, dry_run: bool
) -> None:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"--repo: {repo} is not OWNER/NAME")
    click.echo(json.dumps(run(params, repo, merged, adapter, gguf, metrics_dir, card, dry_run), indent=2))
