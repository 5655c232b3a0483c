"""What every job's command line shares: params, dry runs, error messages, exit codes.

Exit codes: 0 done, 1 failed, 2 bad usage or params, 130/143 on SIGINT/SIGTERM. Logs go to stderr, results to stdout.
"""

import contextlib
import functools
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from jobs.common.errors import JobError, UsageError
from jobs.plumbing import launch
from jobs.plumbing.outputs import Kind, require_outputs

log = logging.getLogger("jobs")


def reads(flag: str, default: str | None, text: str, **options) -> Callable:
    """An option naming an input; checked to exist before the job starts."""
    return click.option(
        flag, type=click.Path(path_type=Path), show_default=True, help=text, metavar="IN", **start(default), **options
    )


def start(default: str | None) -> dict[str, Any]:
    """A default as an option has it. To click None is a value as well, and an option that has one is never missing."""
    return {} if default is None else {"default": default}


class Output(click.Option):
    """An option naming an output of a kind (`plumbing.outputs`), which says what it may take the place of.

    place: gives its default of the command's other options. It is called in any case, and raises UsageError for options
    that do not go together.
    """

    def __init__(
        self, param_decls: Sequence[str], *, kind: Kind, place: Callable[..., Path] | None = None, **options
    ) -> None:
        super().__init__(param_decls, metavar="OUT", **options)
        self.kind, self.place = kind, place


def writes(
    flag: str, default: str | None, text: str, kind: Kind, place: Callable[..., Path] | None = None, **options
) -> Callable:
    """An option naming an output; its place is checked before the job starts."""
    return click.option(
        flag,
        cls=Output,
        kind=kind,
        place=place,
        type=click.Path(path_type=Path),
        show_default=True,
        help=text,
        **start(default),
        **options,
    )


COMMON = (
    click.option("--print-params", is_flag=True, help="Print the resolved params this job reads, and stop."),
    click.option("--dry-run", is_flag=True, help="Check params and inputs, print what would be read and written."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one param; checked like the file. Repeatable.",
    ),
    click.option(
        "--params", type=click.Path(path_type=Path), default="params.yaml", show_default=True, help="The params file."
    ),
)


AFTER_THE_FIRST = 1.0  # seconds

# The keys that a sandbox goes by which judges training tasks: what bears on benchmarks alone is not among them.
TRAINING_SANDBOX = tuple(f"sandbox.{key}" for key in ("memory_mib", "packages", "require", "timeout", "workers"))


def log_to_stderr() -> None:
    """Of several ranks (plumbing/launch.py) the first one tells how the work goes, and the others only what stops them."""
    level = logging.ERROR if launch.rank() else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns the ways that a job stops on purpose, and Ctrl-C, into one line and an exit code."""
    try:
        yield
    except UsageError as error:
        tell(error)
        sys.exit(2)
    except JobError as error:
        tell(error)
        sys.exit(1)
    except KeyboardInterrupt:
        if not launch.rank():
            click.echo("interrupted", err=True)
        sys.exit(130)


def tell(error: Exception) -> None:
    """Says why the job ends. Another rank than the first waits a moment: where all fail alike, the first one says it, and
    they are ended meanwhile."""
    if launch.rank():
        time.sleep(AFTER_THE_FIRST)
    click.echo(f"error: {f'rank {launch.rank()}: ' if launch.rank() else ''}{error}", err=True)


def job(*sections: str) -> Callable:
    """Turns `def command(params, **paths)` into a click command with the options that all jobs share.

    `sections` are the sections and keys ("sft.lora") of params.yaml that the job reads: what --print-params prints, and,
    but for what is speed alone, what its stage lists in dvc.yaml. The function is called with `params`, a
    `plumbing.params.Params`, and its own options. JobError and UsageError become one line and an exit code.
    """

    def decorate(function: Callable) -> click.Command:
        name = function.__module__.removesuffix(".job").rpartition(".")[2]

        @functools.wraps(function)
        def command(params: Path, assignments: tuple[str, ...], dry_run: bool, print_params: bool, **options) -> None:
            log_to_stderr()
            with exit_codes():
                from jobs.plumbing.params import load

                loaded = load(params, assignments)
                if print_params:
                    click.echo(json.dumps(loaded.model_dump(include=included(sections)), indent=2, sort_keys=True))
                    return
                for option in click.get_current_context().command.params:
                    if isinstance(option, Output) and option.place:
                        default = option.place(**options)
                        options[option.name or ""] = options[option.name or ""] or default
                inputs, outputs = checked_paths(click.get_current_context(), options, params)
                if "dry_run" in inspect.signature(function).parameters:
                    options["dry_run"] = dry_run  # a job with a dry run of its own
                elif dry_run:
                    shown = {
                        "job": name,
                        "reads": {flag: str(path) for flag, path in inputs.items()},
                        "writes": {flag: str(path) for flag, path in outputs.items()},
                        "params": loaded.model_dump(include=included(sections)),
                    }
                    click.echo(json.dumps(shown, indent=2, sort_keys=True))
                    return
                function(loaded, **options)

        for option in COMMON:
            command = option(command)
        return click.command(name=name, help=sys.modules[function.__module__].__doc__)(command)

    return decorate


def included(sections: Sequence[str]) -> dict[str, Any] | None:
    """The sections and keys ("sft.lora") as pydantic's `include`; None, which is everything, for none."""
    found: dict[str, Any] = {}
    for name in sections:
        *above, last = name.split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = True
    return found or None


def checked_paths(context: click.Context, options: dict, params: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The given input and output paths by flag. Errors: UsageError for an absent input, or an output's place."""
    inputs, outputs = paths_of(context, options)
    for flag, path in inputs.items():
        if not path.exists():
            raise UsageError(f"{flag}: {path} does not exist")
    kinds = {option.opts[0]: option.kind for option in context.command.params if isinstance(option, Output)}
    require_outputs(inputs | {"--params": params}, {flag: (path, kinds[flag]) for flag, path in outputs.items()})
    return inputs, outputs


def paths_of(context: click.Context, options: dict) -> tuple[dict[str, Path], dict[str, Path]]:
    """The given input and output paths by flag."""
    inputs: dict[str, Path] = {}
    outputs: dict[str, Path] = {}
    for option in context.command.params:
        side = {"IN": inputs, "OUT": outputs}.get(option.metavar or "") if isinstance(option, click.Option) else None
        if side is None:
            continue
        value = options[option.name or ""]
        values = value if isinstance(value, tuple) else [value]
        side.update({option.opts[0] if i == 0 else f"{option.opts[0]}[{i}]": v for i, v in enumerate(values) if v})
    return inputs, outputs


def progress(items=None, *, total: int | None = None, label: str = ""):
    """A tqdm bar on a terminal; elsewhere a plain line now and then."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        disable=launch.rank() > 0,
        total=total,
        desc=label,
        file=sys.stderr,
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 15.0,
        ascii=not terminal,
        bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}\n",
    )
