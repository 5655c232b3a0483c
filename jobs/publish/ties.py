"""Which files are pushed, and whether the records show that they belong together and that the figures are theirs.

Every output folder's mark says what it was made of and which metrics were measured with it (`common.files.set_record`);
samples say of which weights they are. Nothing here is known by a path or a name.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from jobs.common.errors import JobError, one_line
from jobs.common.files import entries, foreign, hash_of_metrics, is_plain, read_json, read_jsonl, record_of
from jobs.plumbing.cli import log
from jobs.weights.adapter import RECORD
from jobs.weights.identity import LICENCE_FILES, adapter_files, adapter_identity, model_files, model_identity


@dataclass(frozen=True)
class Published:
    """What is pushed and what is known of it.

    files: by their names in the repository. adapter: the adapter's name, as the evaluations use it. merged, gguf: what
    the folders' marks record. run: how the adapter was trained, by trainer.json, or None if that is not recorded.
    identity: the merged model's, by which evaluations name it.
    """

    files: dict[str, Path]
    adapter: str
    merged: dict
    gguf: dict
    run: dict | None
    identity: str


def collect(merged: Path, adapter: Path, gguf: Path) -> Published:
    """The files to push: weights, config, tokenizer and licence; the adapter and its record; the GGUF files.

    Errors: JobError for a folder that lacks what it is for, for a file that is not as the job left it, and for folders
    that were not made of one another.
    """
    wanted = {
        "": (merged, [*model_files(merged), *(merged / name for name in LICENCE_FILES if (merged / name).is_file())]),
        "adapter/": (adapter, [*adapter_files(adapter), adapter / RECORD]),
        "gguf/": (gguf, sorted(gguf.glob("*.gguf"))),
    }
    files: dict[str, Path] = {}
    for prefix, (folder, paths) in wanted.items():
        if not paths:
            raise JobError(f"{folder}: has no *.gguf")
        odd = set(foreign(folder))
        for path in paths:
            if not path.is_file():
                raise JobError(f"{folder}: has no {path.name}")
            if not is_plain(path) or path.name in odd:
                raise JobError(f"{path}: is not as the job wrote it; run the job that writes {folder} again")
            files[prefix + path.name] = path
        left = sorted(entries(folder).keys() - {path.name for path in paths})
        if left:
            log.info("%s: not published: %s", folder, ", ".join(left[:5]) + (" and more" if len(left) > 5 else ""))
    one, other = record_of(merged), record_of(gguf)
    identity = adapter_identity(adapter)
    for folder, record in ((merged, one), (gguf, other)):
        if record.get("adapters") != [identity]:
            what = "does not say what it was made of" if "adapters" not in record else "was not made with this adapter"
            raise JobError(f"{folder}: {what}, and is not published beside {adapter}")
    if one["base"] != other["base"]:
        raise JobError(f"{gguf}: was made from another base than {merged}")
    run = read_json(adapter / RECORD).get("run")
    if isinstance(run, dict) and run.get("base", {}).get("identity") != one["base"]:
        raise JobError(f"{merged}: was made from another base than {adapter} was trained on")
    return Published(files, adapter.name, one, other, run, model_identity(merged))


def metrics_of(folder: Path, name: str, record: dict, what: Path) -> dict:
    """metrics/NAME.json, which the run that wrote the folder `what` measured. Errors: JobError if another did."""
    file = folder / f"{name}.json"
    metrics = read_json(file)
    if hash_of_metrics(metrics) != record.get("metrics"):
        raise JobError(f"{file}: was not measured when {what} was written")
    return metrics


def check_scores(compare: dict, evaluations: Path, published: Published, where: Path) -> dict[str, str]:
    """What each model of compare.json is: "this model", "its base" or "another model", and "" where nobody recorded it.

    A model's scores are held to the results in `evaluations`/MODEL-MODE, whose settings name the weights. Errors:
    JobError for scores that are not those results', where none is of the published weights in a mode, and where the
    base's name stands before another model's scores.
    """
    roles: dict[str, str] = {}
    shown: dict[tuple[str, str], dict] = defaultdict(dict)
    try:
        for view, modes in compare.items():
            for mode, rows in modes.items():
                for model, values in rows.items():
                    if "pass@1" in values:
                        shown[model, mode][view] = float(values["pass@1"]["mean"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JobError(f"{where}: is not what compare writes ({one_line(error)})") from None
    for (model, mode), views in shown.items():
        folder = evaluations / f"{model}-{mode}"
        settings = read_json(folder / "settings.json")
        for view, mean in views.items():
            if abs(mean_of(folder, view) - mean) > 1e-6:
                raise JobError(f"{where}: its pass@1 of {model} on {view} ({mode}) is not that of {folder}")
        role = role_of(settings.get("model"), published)
        if roles.setdefault(model, role) != role:
            raise JobError(f"{evaluations}: {model} is {roles[model]} in one mode and {role} in another")
    if "this model" not in roles.values():
        raise JobError(f"{where}: none of its scores ({', '.join(roles)}) is of the weights that are to be published")
    for name, role in (("base", "its base"), (published.adapter, "this model")):
        if roles.get(name, role) != role:
            raise JobError(f"{where}: {name} is {roles[name] or 'of unknown weights'}, not {role}; evaluate it again")
    return roles


def role_of(model: dict | None, published: Published) -> str:
    if not model:
        return ""
    weights, adapter = model.get("weights"), model.get("adapter")
    if (weights, adapter) == (published.identity, None):
        return "this model"
    if weights == published.merged["base"]:
        if adapter is None:
            return "its base"
        return "this model" if [adapter] == published.merged["adapters"] else "another model"
    return "another model"


def mean_of(folder: Path, view: str) -> float:
    """Mean pass@1 over the drawn samples, task by task, of the results for a view such as humaneval+."""
    plain = view.removesuffix("+")
    file = folder / f"results-{plain}.jsonl"
    rows = read_jsonl(file)
    plus = any(row.get("base_passed") is not None for row in rows)  # there are added tests, and a view without them
    field = "base_passed" if plus and view == plain else "passed"
    tasks: dict[str, list[bool]] = defaultdict(list)
    try:
        for row in rows:
            if row["sample"]:
                tasks[row["task_id"]].append(bool(row[field]))
    except KeyError as error:
        raise JobError(f"{file}: has a row without {error}") from None
    if not tasks:
        raise JobError(f"{file}: has no drawn samples")
    return sum(sum(passes) / len(passes) for passes in tasks.values()) / len(tasks)
