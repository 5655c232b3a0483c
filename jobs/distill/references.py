"""Answers made of the tasks' own references, for runs without a teacher (distill.references).

The code is the reference, laid out anew. The reasoning is written by rule from the task's words and the reference's
syntax: what is asked, how the function is called, and the steps that its body takes. No model wrote any of it: the
examples name `reference` where a teacher's name stands, and the data card says so.
"""

import ast
import re
import warnings
from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import UsageError
from jobs.distill import cache

if TYPE_CHECKING:
    from jobs.common.task import Task
    from jobs.plumbing.params import Distill

NAME = "reference"  # stands where the name of a teacher would
MOST_STEPS = 6
LONGEST = 60  # characters of an expression that is quoted; a longer one is told by its kind

# What a compound statement does, by its node's name; simple statements are quoted.
KINDS = {"ListComp": "a list comprehension", "DictComp": "a dictionary comprehension", "Lambda": "a function"}


class References:
    """Stands in a teacher's place: answers a task by its reference. Nobody is asked, and nothing is stored."""

    answered = failed = 0
    closing = False

    def response(self, task: "Task", request: dict) -> dict:
        """A response such as an endpoint would give. Errors: UsageError for a task whose reference is no Python."""
        try:
            parts = answer(task["prompt"], task["entry_point"], task["reference"])
        except SyntaxError as error:
            raise UsageError(
                f"{task['task_id']}: its reference is no Python ({error}), so it gives no answer"
            ) from None
        return cache.response(request, answer_format.render(*parts))

    async def close(self) -> None:
        """Nothing is open."""


def settings(params: "Distill") -> "Distill":
    """distill's settings with references in the teacher's place: each task is answered once, at no cost."""
    changed = {"model": NAME, "base_url": "reference:", "attempts": 1, "price_in": 0.0, "price_out": 0.0}
    return params.model_copy(update=changed)


def answer(prompt: str, entry_point: str, reference: str) -> tuple[str, str]:
    """The reasoning and the code for a task.

    prompt: the task's, a docstring whose first lines say what is asked. reference: a program that defines
    `entry_point`. Errors: SyntaxError for a reference that is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in regular expressions
        tree = ast.parse(reference)
    code = ast.unparse(tree)
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == entry_point), None)
    sentences = [statement(prompt)]
    if function is not None:
        arguments = ", ".join(f"`{a.arg}`" for a in function.args.args) or "nothing"
        sentences.append(f"`{entry_point}` takes {arguments}.")
        helpers = [f"`{n.name}`" for n in tree.body if isinstance(n, ast.FunctionDef) and n.name != entry_point]
        if helpers:
            sentences.append(f"It is helped by {', '.join(helpers)}.")
        said = steps(function.body)
        sentences += said[:MOST_STEPS]
    return "\n".join(sentence for sentence in sentences if sentence), code


def statement(prompt: str) -> str:
    """What the task asks, its first sentence without "Write a function to"."""
    words = re.sub(r'^[\s"\']+', "", prompt).partition("\nassert")[0]
    sentence = " ".join(words.split()).rstrip(" .\"'")
    task = re.sub(r"^write (a |an )?(python )?(function|code|program) (to|that|which|for) ", "", sentence, flags=re.I)
    return f"The task: {task}." if task else ""


def quoted(node: ast.AST) -> str:
    text = ast.unparse(node)
    if len(text) <= LONGEST and "\n" not in text:
        return f"`{text}`"
    return KINDS.get(type(node).__name__, "an expression")


def steps(body: list[ast.stmt]) -> list[str]:
    """A sentence for each statement of a function's body, and for the first ones inside its loops and branches."""
    said = []
    for node in body:
        if isinstance(node, (ast.For, ast.AsyncFor)):
            said.append(f"For each {quoted(node.target)} in {quoted(node.iter)}:")
            said += steps(node.body)[:2]
        elif isinstance(node, ast.While):
            said.append(f"While {quoted(node.test)}:")
            said += steps(node.body)[:2]
        elif isinstance(node, ast.If):
            said.append(f"If {quoted(node.test)}:")
            said += steps(node.body)[:1]
        elif isinstance(node, ast.Return) and node.value is not None:
            said.append(f"Return {quoted(node.value)}.")
        elif isinstance(node, ast.Assign):
            said.append(f"Set {quoted(node.targets[0])} to {quoted(node.value)}.")
        elif isinstance(node, ast.AugAssign):
            said.append(f"Update {quoted(node.target)} with {quoted(node.value)}.")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            said.append(f"Call {quoted(node.value)}.")
    return said
