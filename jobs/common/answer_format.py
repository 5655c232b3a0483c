"""Answers: what the model is asked, what a valid answer in the tag format is, and where a function in one begins.

One prompt serves distillation's training text, SFT, GRPO, evaluation, `generate` and the GGUF's chat template; a test
renders all of them and compares.
"""

import itertools
import json
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
TAG = re.compile("|".join(map(re.escape, TAGS)), re.IGNORECASE)

# ChatML written out as plain text with the end-of-text token closing a turn: Qwen3 base models have untrained ChatML
# tokens, and this template needs none of them. A conversation without a system prompt gets the one of training: without it
# the model does not know what is wanted.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ " + json.dumps(SYSTEM_PROMPT + "\n\n") + " }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] | trim }}{{ '\\n\\n' }}{% endif %}"
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

    Exactly these tags, case-insensitive, each once, in this order, nothing but white space around or between. In time
    linear in the text, whatever it holds.
    """
    marks = list(itertools.islice(TAG.finditer(text), len(TAGS) + 1))
    if [mark[0].upper() for mark in marks] != list(TAGS):
        return None
    before, reasoning, between, code, after = (
        text[begin:end]
        for begin, end in zip([0, *(m.end() for m in marks)], [*(m.start() for m in marks), len(text)], strict=True)
    )
    if before.strip() or between.strip() or after.strip():
        return None
    return Answer(reasoning.strip(), code.strip())


def left_margin(code: str, entry_point: str) -> bool:
    """Whether a line of `code` begins the definition of `entry_point`; the code need not be complete."""
    name = re.escape(entry_point)
    found = rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*(?::[^=\n]*)?=(?!=)"
    return bool(re.search(found, code, re.MULTILINE))
