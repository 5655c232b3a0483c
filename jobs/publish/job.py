"""Pushes the merged model, the adapter and the GGUF files to the Hub, with a model card made from the metrics.

\b
    HF_TOKEN=... python -m jobs publish --repo OWNER/NAME
    python -m jobs publish --repo OWNER/NAME --dry-run

\b
Reads   --merged       the merged model's folder, which goes to the repository's top
        --adapter      the adapter's folder, which goes to adapter/
        --gguf         the folder of GGUF files, which go to gguf/
        --metrics-dir  what was measured: merge-NAME.json (NAME is the adapter folder's), gguf.json, compare.json
        --evaluations  the evaluations that compare.json sums up
Writes  --card         the model card; --dry-run stops there, and lists the files with their sizes

Only weights, configuration, tokenizer, licence and the adapter's record are pushed, whatever else lies in the folders, and
only as the jobs wrote them. Nothing is pushed that the metrics do not describe: model and GGUF files must have been made
with this adapter, and the scores must be those of these weights, by their hashes. The token is read from the environment
variable HF_TOKEN and goes nowhere but to the Hub. All files go up in one commit.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.common.errors import JobError, UsageError
from jobs.common.files import read_json, replace_file, sealed
from jobs.plumbing.cli import job, log, reads, writes
from jobs.plumbing.outputs import SEALED
from jobs.publish.card import card
from jobs.publish.ties import check_scores, collect, metrics_of

if TYPE_CHECKING:
    from jobs.plumbing.params import Params


def run(
    params: "Params",
    repo: str,
    merged: Path,
    adapter: Path,
    gguf: Path,
    metrics: Path,
    evaluations: Path,
    card_path: Path,
    dry_run: bool,
) -> dict:
    check_repo(repo)
    token = None if dry_run else token_of(os.environ)
    published = collect(merged, adapter, gguf)
    check_license(params.publish.license, published.merged.get("source") or {})
    measured = {
        "merge": metrics_of(metrics, f"merge-{adapter.name}", published.merged, merged),
        "gguf": metrics_of(metrics, "gguf", published.gguf, gguf),
        "compare": read_json(metrics / "compare.json"),
    }
    roles = check_scores(measured["compare"], evaluations, published, metrics / "compare.json")
    text = card(params.publish.license, repo, published, measured, roles)
    with replace_file(card_path) as partial:
        partial.write_text(sealed(text), encoding="utf-8")
    listed = {name: path.stat().st_size for name, path in published.files.items()}
    if token:
        push(repo, published.files | {"README.md": card_path}, token)
    return {"repo": repo, "pushed": bool(token), "card": str(card_path), "files": listed, "bytes": sum(listed.values())}


def check_repo(repo: str) -> None:
    """Errors: UsageError for a name that the Hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"--repo: {repo} is not OWNER/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--repo: {repo} is no name of a repository ({' '.join(str(error).split())})") from None


def check_license(license: str, source: dict) -> None:
    """Errors: UsageError for a licence that is not the one that the base's own card names."""
    named = source.get("license")
    if named and named != license:
        raise UsageError(f"publish.license: is {license}, and the base's, {source['repo']}, is {named}")


def token_of(environment) -> str:
    token = environment.get("HF_TOKEN")
    if not token:
        raise UsageError("HF_TOKEN: is not set; a token that may write to the repository is needed, or --dry-run")
    return token


def push(repo: str, files: dict[str, Path], token: str) -> None:
    """One commit with all files; creates the repository if it is not there."""
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo, exist_ok=True)
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        api.create_commit(repo, operations, commit_message="Publish model, adapter and GGUF files")
    except (httpx.HTTPError, OSError) as error:  # the first is that of a connection, and of what the Hub answers
        raise JobError(f"{repo}: could not be published ({' '.join(str(error).split())})") from None
    log.info("published %d files to %s", len(files), repo)


@job()
@click.option("--repo", required=True, metavar="OWNER/NAME", help="The repository on the Hub.")
@reads("--merged", "models/grpo", "The merged model's folder.")
@reads("--adapter", "models/adapters/grpo", "The adapter's folder.")
@reads("--gguf", "models/gguf", "The folder of GGUF files.")
@reads("--metrics-dir", "metrics", "The stages' metrics.")
@reads("--evaluations", "data/evaluations", "Folder of evaluations.")
@writes("--card", "reports/model-card.md", "The model card.", SEALED)
def command(params: "Params", repo: str, metrics_dir: Path, card: Path, dry_run: bool, **paths: Path) -> None:
    result = run(params, repo, metrics=metrics_dir, card_path=card, dry_run=dry_run, **paths)
    click.echo(json.dumps(result, indent=2))
