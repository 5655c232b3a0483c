"""How long prompts are in a model's own tokens."""

from typing import TYPE_CHECKING

from jobs.common import answer_format
from jobs.common.errors import JobError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jobs.common.task import Task

NAMED = 5  # tasks that a message lists


def too_long(tokenizer: "PreTrainedTokenizerBase", tasks: "list[Task]", limit: int) -> list[tuple[str, int]]:
    """(task id, tokens) of each task whose prompt, with the instructions of the tag format, has over `limit` tokens."""
    lengths = [
        (task["task_id"], len(tokenizer(answer_format.chat_prompt(task["prompt"]))["input_ids"])) for task in tasks
    ]
    return [(name, tokens) for name, tokens in lengths if tokens > limit]


def require_short(tokenizer: "PreTrainedTokenizerBase", tasks: "list[Task]", limit: int, where: str) -> None:
    """Errors: JobError naming the tasks whose prompts do not fit, and the param."""
    found = too_long(tokenizer, tasks, limit)
    if found:
        named = ", ".join(f"{name} has {tokens}" for name, tokens in found[:NAMED])
        more = f", and {len(found) - NAMED} more have too many" if len(found) > NAMED else ""
        raise JobError(f"{where}: {named} tokens in the prompt{more}; grpo.max_prompt_length is {limit}")
