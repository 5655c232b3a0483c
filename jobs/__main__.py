"""`python -m jobs JOB`: one command a job, each loaded only when it is called, so that --help is instant."""

import importlib
import sys

import click

from jobs import __version__
from jobs.plumbing.supervisor import supervise

JOBS = {
    "base": "build the toy base model, or fetch the pinned one from the Hub",
    "tasks": "collect, check and split the tasks and benchmarks",
    "distill": "ask a teacher for chain-of-thought examples and keep those that pass",
    "sft": "supervised fine-tuning of a LoRA adapter",
    "grade": "how often the SFT model solves each training task",
    "grpo": "reinforcement learning of that adapter with verifiable rewards",
    "merge": "add an adapter into the base, measuring what survives",
    "sample": "sample a model on the benchmarks",
    "evaluate": "score a model's samples on the benchmarks",
    "compare": "intervals, paired tests and the report over all evaluations",
    "gguf": "write, quantize and verify GGUF files",
    "check-tasks": "check a file of your own tasks",
    "overlap-pairs": "pin which training tasks solve a benchmark's task",
    "score": "run samples against tasks in the sandbox",
    "generate": "answer one prompt with any of the models",
    "publish": "push models and a model card to the Hub",
    "watch": "watch a training run in the terminal",
    "repro": "run what has changed of the pipeline here, several stages at once",
    "run": "run the whole pipeline with a recipe's params, in a folder of its own",
    "smoke": "run the whole pipeline at toy size",
}

ELSEWHERE = {
    "check-tasks": "tasks.check_file",
    "overlap-pairs": "tasks.pairs",
}  # commands that lie in another job's folder

PIPELINES = ("repro", "run", "smoke")  # commands that start stages


class Jobs(click.Group):
    """Imports jobs/NAME.py, or jobs/NAME/job.py, when NAME is called; listing the jobs imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(JOBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in JOBS:
            return None
        found = importlib.import_module(f"jobs.{ELSEWHERE.get(cmd_name, cmd_name)}")
        job = importlib.import_module(f"jobs.{cmd_name}.job") if hasattr(found, "__path__") else found
        return job.command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Jobs"):
            formatter.write_dl(list(JOBS.items()))


@click.group(cls=Jobs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="jobs")
def main() -> None:
    """Post-training of code models with verifiable rewards. `python -m jobs JOB --help` explains a job."""


if __name__ == "__main__":
    supervise(stages=sys.argv[1:2] in [[name] for name in PIPELINES])
    try:
        main(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
