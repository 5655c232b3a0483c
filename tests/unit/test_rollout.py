"""An answer is judged the moment it ends: vLLM's engine is a stand-in here, laid out as vLLM 0.25 lays it out."""

from types import SimpleNamespace

import pytest

from jobs.grpo.rollout import watch
from jobs.grpo.trainer import tasks_by_prompt


class Engine:
    """Emits one token of every running request a step; finished requests are forgotten after the step, as in vLLM."""

    def __init__(self, answers: dict[str, tuple[list[int], list[int]]]) -> None:
        self.answers, self.step = answers, 0
        self.engine_core = SimpleNamespace(get_output=self.tokens)
        states = {name: self.state(prompt) for name, (prompt, _) in answers.items()}
        self.output_processor = SimpleNamespace(request_states=states)

    def state(self, prompt):
        return SimpleNamespace(prompt_token_ids=prompt, detokenizer=SimpleNamespace(output_token_ids=[]))

    def tokens(self):
        new = []
        for name in self.output_processor.request_states:
            ids = self.answers[name][1]
            last = self.step == len(ids) - 1
            token = ids[self.step : self.step + 1]
            new.append(SimpleNamespace(request_id=name, new_token_ids=token, finish_reason="stop" if last else None))
        return SimpleNamespace(
            outputs=[*new, SimpleNamespace(request_id="gone", new_token_ids=[1], finish_reason="abort")]
        )

    def generate(self):
        states = self.output_processor.request_states
        while states:
            for output in self.engine_core.get_output().outputs:
                if output.request_id in states:
                    states[output.request_id].detokenizer.output_token_ids.extend(output.new_token_ids)
                    if output.finish_reason:
                        del states[output.request_id]
            self.step += 1


def test_every_completion_is_told_whole_at_its_own_step():
    answers = {"a": ([1, 2], [7, 8, 9]), "b": ([1, 2], [5]), "c": ([3], [4, 4])}
    engine = Engine(answers)
    seen = []
    with watch(SimpleNamespace(llm_engine=engine), lambda p, c: seen.append((engine.step, p, c))):
        engine.generate()
    assert seen == [(0, [1, 2], [5]), (1, [3], [4, 4]), (2, [1, 2], [7, 8, 9])]


def test_the_engine_is_left_as_it_was_even_after_an_error():
    engine = Engine({"a": ([1], [2])})
    original = engine.engine_core.get_output
    with pytest.raises(RuntimeError), watch(SimpleNamespace(llm_engine=engine), print):
        raise RuntimeError
    assert engine.engine_core.get_output is original


def test_prompts_that_two_tasks_share_are_known():
    found = tasks_by_prompt([[1], [1], [2], [1]], ["a", "a", "b", "c"])
    assert found == {(1,): {"a", "c"}, (2,): {"b"}}
