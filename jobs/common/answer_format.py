"""The tag format: what the model is asked, what a valid answer is, and the code inside it.

One prompt serves distillation's training text, SFT, GRPO, evaluation, `generate` and the GGUF's chat template; a test
renders all of them and compares.
"""

import ast
import re
from dataclasses import dataclass

SYSTEM_PROMPT = """\
You are a code-generation engine.
You must output your response in the following exact format:
<START_WORKING_OUT>
Concise reasoning steps required to solve the problem.
</END_WORKING_OUT>
<SOLUTION>
Valid Python code only.
</SOLUTION>
Do not output anything outside these tags."""

# The closing tag of the reasoning differs from its opening one: that is the published model's format.
TAGS = ("<START_WORKING_OUT>", "</END_WORKING_OUT>", "<SOLUTION>", "</SOLUTION>")
FORMAT = re.compile(
    r"\s*" + TAGS[0] + r"(.*?)" + TAGS[1] + r"\s*" + TAGS[2] + r"(.*?)" + TAGS[3] + r"\s*", re.DOTALL | re.IGNORECASE
)
SOLUTION = re.compile(TAGS[2] + r"(.*?)(?:" + TAGS[3] + r"|\Z)", re.DOTALL | re.IGNORECASE)

# ChatML written out as plain text with the end-of-text token closing a turn: Qwen3 base models have untrained ChatML
# tokens, and this template needs none of them.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Answer:
    """A valid answer's two parts, stripped."""

    reasoning: str
    code: str


def messages(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    """The conversation for one task: system, user, and the assistant's answer if given."""
    turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt.strip()}]
    return turns + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def chat_prompt(prompt: str) -> str:
    """The text that the model continues in reasoning mode; equal to CHAT_TEMPLATE over `messages(prompt)`."""
    return "".join(turn["content"] + "\n\n" for turn in messages(prompt))


def render(reasoning: str, code: str) -> str:
    """An answer in the tag format, as distilled examples and the toy corpus write it."""
    return f"{TAGS[0]}\n{reasoning.strip()}\n{TAGS[1]}\n{TAGS[2]}\n{code.strip()}\n{TAGS[3]}"


def parse(text: str) -> Answer | None:
    """The answer in `text` if it obeys the format strictly, else None.

    Exactly these tags, case-insensitive, each once, in this order, nothing but white space around or between.
    """
    match = FORMAT.fullmatch(text)
    if not match or any(len(re.findall(re.escape(tag), text, re.IGNORECASE)) != 1 for tag in TAGS):
        return None
    return Answer(match[1].strip(), match[2].strip())


def defines(code: str, entry_point: str) -> bool:
    """Whether `code` parses and binds `entry_point` at its top level. Raises SyntaxError or ValueError as ast does."""
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == entry_point:
            return True
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == entry_point for t in node.targets):
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            (a.asname or a.name) == entry_point for a in node.names
        ):
            return True
    return False
