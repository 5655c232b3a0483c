"""The clock of tests/bench/grpo_peers.py: seconds of each step, and completions forced to the lengths of the case."""

import argparse
import cProfile
import json
import pstats
import random
import time

STEPS = 5  # of a case
SHAPES = {"flat": (4, 512), "reference": (4, 512), "own": (16, 320)}  # prompts a step, tokens a completion at most
GROUP = 16


class Clock:
    """Seconds of each step, and of the calls of vLLM's generate in it. Forces the lengths of the case."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.cases, self.step, self.ended, self.generated, self.tokens = options.cases, 0, 0.0, 0.0, 0
        self.profiler = cProfile.Profile() if options.profile else None
        self.profile = options.out / f"{options.one}-{options.cases[0]}.profile"

    @property
    def case(self) -> str:
        return self.cases[min(self.step // STEPS, len(self.cases) - 1)]

    def watch_engine(self) -> None:
        import vllm

        original = vllm.LLM.generate

        def generate(engine, prompts, sampling_params=None, **options):
            began = time.perf_counter()
            if self.case == "own":
                outputs = original(engine, prompts, sampling_params, **options)
            else:
                outputs = self.forced(original, engine, prompts, sampling_params, options)
            self.generated += time.perf_counter() - began
            self.tokens += sum(len(one.token_ids) for output in outputs for one in output.outputs)
            return outputs

        vllm.LLM.generate = generate

    def forced(self, original, engine, prompts, sampling, options) -> list:
        """A request a completion, each with its own max_tokens, given back as vLLM gives n completions of a prompt."""
        sampling = sampling[0] if isinstance(sampling, list) else sampling
        count = sampling.n
        each = []
        for number in range(len(prompts) * count):
            one = sampling.clone()
            one.n, one.max_tokens, one.ignore_eos, one.stop = 1, lengths(self.case)[number], True, []
            each.append(one)
        rows = [prompt for prompt in prompts for _ in range(count)]
        outputs = original(engine, rows, each, **options)
        for start in range(0, len(outputs), count):
            outputs[start].outputs = [output.outputs[0] for output in outputs[start : start + count]]
        return outputs[::count]

    def callback(self):
        from transformers import TrainerCallback

        clock = self

        class AtTheEnd(TrainerCallback):
            def on_step_end(self, args, state, control, **_) -> None:
                import torch

                torch.cuda.synchronize()
                now = time.perf_counter()
                seconds = round(now - clock.ended, 3) if clock.ended else 0.0
                row = {"case": clock.case, "seconds": seconds, "generate": round(clock.generated, 3)}
                print("STEP", json.dumps(row | {"tokens": clock.tokens}), flush=True)
                clock.ended, clock.generated, clock.tokens = now, 0.0, 0
                clock.step += 1
                if clock.profiler and clock.step == STEPS - 2:
                    clock.profiler.enable()
                if clock.profiler and clock.step == STEPS:
                    clock.write_profile()

        return AtTheEnd()

    def write_profile(self) -> None:
        self.profiler.disable()
        with open(self.profile, "w") as file:
            found = pstats.Stats(self.profiler, stream=file)
            found.sort_stats("cumulative").print_stats(90)
            found.sort_stats("tottime").print_stats(45)


def lengths(case: str) -> list[int]:
    """Tokens of the 64 completions of a step: 512 each, or log-normal ones that are 270 on average."""
    prompts, most = SHAPES[case]
    if case == "flat":
        return [most] * (prompts * GROUP)
    rng = random.Random("lengths of the reference")
    return [max(60, min(most, round(rng.lognormvariate(5.58, 0.45)))) for _ in range(prompts * GROUP)]
