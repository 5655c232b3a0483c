"""What is established, and what is not, in words."""

from jobs.common.stats import least_tasks
from jobs.compare.load import PRECISION, Evaluation, methods

ONE_RUN = (
    "Each model is one training run. What is said holds for these weights, not for the methods that made them: "
    "another seed gives other weights. Give `compare` the evaluations of three seeds or more to speak of methods."
)
SEVERAL = (
    "What is said over seeds holds for the methods with these settings, on tasks like these: another seed and another task "
    "are reckoned with. The runs of a method are taken to differ in their seed alone."
)


def statements(entries: list[dict], evaluations: list[Evaluation], confidence: float) -> list[str]:
    pairs = [pair for entry in entries for pair in entry["pairs"]]
    number = sum(pair["over"] in ("weights", "methods") for pair in pairs)
    said = [statement(entry, pair, number, confidence) for entry in entries for pair in entry["pairs"]]
    for key in PRECISION:
        values = {str(e): e.settings.get(key) for e in evaluations}
        if len(set(values.values())) > 1:
            said.append(
                f"Not like for like: `{key}` differs between the evaluations "
                f"({', '.join(f'{name}: {value}' for name, value in values.items())})."
            )
    said += equal_runs(evaluations)
    several = any(pair["over"] in ("methods", "two") for pair in pairs)
    return [*said, SEVERAL if several else ONE_RUN]


def equal_runs(evaluations: list[Evaluation]) -> list[str]:
    """Runs of the same weights, which count once."""
    said = []
    for method in methods(evaluations):
        for group in method.alike:
            if len(group) > 1:
                where = ", ".join(str(one.folder) for one in group)
                said.append(
                    f"{method.name} ({method.mode}) is the same model in {len(group)} runs, counted as one: {where}."
                )
    return said


def statement(entry: dict, pair: dict, comparisons: int, confidence: float) -> str:
    """What is known about a pair."""
    told = {"few": too_few, "two": two_runs}.get(pair["over"])
    if told:
        return told(entry, pair, confidence)
    if pair["established"]:
        word = "better" if pair["difference"]["mean"] > 0 else "worse"
        rates, rest = numbers(entry, pair, comparisons, confidence)
        return (
            f"Established: {where(entry, pair)}, {pair['new']} is {word} than {pair['old']} by "
            f"{100 * abs(pair['difference']['mean']):.1f} points: {rates}, {rest}."
            f"{agreement(entry, pair)}{of_one_run(pair)}"
        )
    rates, rest = numbers(entry, pair, comparisons, confidence)
    return (
        f"Not established: {where(entry, pair)}, whether {pair['new']} or {pair['old']} is better: {rates}, "
        f"difference {points(pair['difference']['mean'])}, {rest}. {outlook(entry, pair)}{of_one_run(pair)}"
    )


def where(entry: dict, pair: dict) -> str:
    place = f"on {entry['view']} ({entry['tasks']} tasks, {entry['mode']})"
    if pair["over"] != "methods":
        return f"On {entry['view']} ({entry['tasks']} tasks, {entry['mode']})"
    old, new = pair["runs"]["old"], pair["runs"]["new"]
    if old == new or 1 in (old, new):
        return f"over {max(old, new)} seeds, {place}"
    return f"over {new} seeds of {pair['new']} and {old} of {pair['old']}, {place}"


def of_one_run(pair: dict) -> str:
    """Which side is one set of weights, where the other has several."""
    if pair["over"] != "methods":
        return ""
    single = [pair[side] for side in ("old", "new") if pair["runs"][side] == 1]
    return f" Of {single[0]} there is one set of weights." if single else ""


def numbers(entry: dict, pair: dict, comparisons: int, confidence: float) -> tuple[str, str]:
    difference = pair["difference"]
    low, high = (f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
    over = " over seeds and tasks" if pair["over"] == "methods" else ""
    return (
        rates(entry, pair),
        f"{100 * confidence:g} % interval{over} {low} to {high}, p {p_text(pair['p_holm'])}"
        + (f" after Holm's correction for {comparisons} comparisons" if comparisons > 1 else ""),
    )


def rates(entry: dict, pair: dict) -> str:
    old, new = (100 * entry["models"][pair[side]]["pass@1"]["mean"] for side in ("old", "new"))
    return f"mean pass@1 {old:.1f} % and {new:.1f} %"


def outlook(entry: dict, pair: dict) -> str:
    """What as many tasks and seeds could have shown; nothing, where the tasks tell nothing of the scatter."""
    if pair["agree"]:
        return agreement(entry, pair).strip()
    seeds = " and seeds" if pair["over"] == "methods" else ""
    said = (
        f"So many tasks{seeds} show a difference of {100 * pair['detectable']:.1f} points four times in five, a smaller "
        "one less often."
    )
    return said + (f" {plan(pair['needed'])}" if pair["over"] == "methods" and pair["needed"] else "")


def agreement(entry: dict, pair: dict) -> str:
    """Why the interval has a width where the differences have no scatter."""
    if not pair["agree"]:
        return ""
    return (
        f" All {entry['tasks']} tasks show the same difference, so nothing is known of how tasks scatter: the interval is "
        "what tasks that were not seen could add."
    )


def plan(needed: dict, difference: str = "2") -> str:
    """What a difference of so many points would need, of one kind more and the others as they are."""
    names = {"seeds": "seeds", "samples": "samples a task", "tasks": "tasks"}
    ways = [f"{count} {names[kind]}" for kind, count in needed[difference].items() if count is not None]
    if not ways:
        return f"{difference} points would need more of everything."
    return f"{difference} points would need {' or '.join(ways)}."


def too_few(entry: dict, pair: dict, confidence: float) -> str:
    return (
        f"Nothing can be established: {where(entry, pair)}, with fewer than {least_tasks(confidence)} tasks no result is "
        f"beyond chance, not even if all tasks agree. {pair['old']} and {pair['new']}: {rates(entry, pair)}, "
        f"difference {points(pair['difference']['mean'])}."
    )


def two_runs(entry: dict, pair: dict, confidence: float) -> str:
    low, high = (f"{100 * pair['difference'][end]:+.1f}" for end in ("low", "high"))
    by_run = f" ({' and '.join(points(d) for d in pair['by_run'])} by seed)" if len(pair["by_run"]) == 2 else ""
    return (
        f"Not established: {where(entry, pair)}, whether {pair['new']} or {pair['old']} is the better method: two seeds do "
        f"not tell how far seeds scatter, and a third is needed. These weights: {rates(entry, pair)}, difference "
        f"{points(pair['difference']['mean'])}{by_run}, {100 * confidence:g} % interval over tasks alone {low} to {high}."
    )


def points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"
