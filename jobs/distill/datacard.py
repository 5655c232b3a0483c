"""The data card of the distilled examples; made of their numbers alone, so it is the same from run to run."""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.plumbing.params import Distill


def origin_of_answers(examples: list[dict], settings: "Distill") -> list[str]:
    if settings.references:
        return [
            f"- Answers: {len(examples)} made of the tasks' own references, by rule: the code is the reference laid out "
            "anew, the reasoning is read off its syntax. No teacher was asked, and no model wrote any of it "
            "(`jobs/distill/references.py`)."
        ]
    teachers = Counter(row["teacher"] for row in examples)
    return [
        *(f"- Answers: {count} by `{name}` at {settings.base_url}" for name, count in sorted(teachers.items())),
        "- The teacher's terms of use hold for its answers; read them before publishing or training on these examples.",
    ]


def lengths(metrics: dict) -> list[str]:
    return [
        "| | min | median | mean | max |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {s['min']} | {s['median']} | {s['mean']:.0f} | {s['max']} |"
            for name, s in (("reasoning", metrics["reasoning_characters"]), ("code", metrics["code_characters"]))
        ),
    ]


def card(examples: list[dict], metrics: dict, reasons: dict[str, str], settings: "Distill") -> str:
    """What the examples are, where they come from, how they were chosen, and what to beware of, as Markdown.

    examples and metrics: as jobs/distill/job.py writes them; reasons: what each reason for a rejection means.
    """
    sources = Counter((row["source"], row["license"]) for row in examples)
    rejected = [f"| {reason} | {text} | {metrics['rejected'][reason]:.1%} |" for reason, text in reasons.items()]
    low, high = settings.reasoning_characters, settings.code_characters
    return "\n".join(
        [
            "# Distilled examples",
            "",
            f"{len(examples)} programming tasks, each with a short reasoning and a Python function that passes the task's "
            "tests. Written by `python -m jobs distill`; made for supervised fine-tuning in the tag format of "
            "`jobs/common/answer_format.py`.",
            "",
            "## Origin",
            "",
            *(
                f"- Tasks: {count} from {source}, licence {licence}"
                for (source, licence), count in sorted(sources.items())
            ),
            *origin_of_answers(examples, settings),
            "",
            "## Fields",
            "",
            "- `task_id`, `prompt`: the task as the model sees it; `source`, `license`: where it comes from",
            "- `answer`: the answer to train on; `reasoning` and `code`: its two parts",
            "- `thinking`: what a reasoning teacher returned beside its answer; not trained on",
            "- `teacher`, `attempt`, `request`: the model that answered, at which attempt, and the hash of the request, "
            "which is the name of the raw response's file in the response cache",
            "",
            "## Selection",
            "",
            f"Of {metrics['requests']} answers {metrics['acceptance']:.1%} were kept: one a task, in a seeded order of the "
            f"tasks, at most {settings.attempts} attempts each. Reasoning has {low[0]} to {low[1]} characters, code "
            f"{high[0]} to {high[1]}. All tests of the task pass in the sandbox. rejects.jsonl has the others:",
            "",
            "| reason | meaning | share of answers |",
            "|---|---|---|",
            *rejected,
            "",
            "## Lengths (characters)",
            "",
            *lengths(metrics),
            "",
            "## Limits",
            "",
            "- Passing a task's few tests does not prove a program right, and says nothing of its reasoning.",
            "- Tasks that overlap with a benchmark's were left out by the rules that the data card of the tasks names "
            "(`README.md` beside them); answers, if they share a run of words with a benchmark's prompt. A paraphrase that "
            "is solved by another function passes.",
            "- The tasks are short and in English; the code is Python.",
            "",
        ]
    )
