"""A GRPO job with one of its steps profiled: which kernels the GPU runs in it after the rollout, and for how long.

    python tests/bench/step.py STEP PROFILE.json grpo [the job's arguments ...]

Writes {"seconds", "gpu_seconds", "kernels": {name: [seconds, launches]}} of step STEP, from the end of its rollout on.
Where `gpu_seconds` is well below `seconds`, the GPU waited for Python. Run by tests/bench/gpu.py (its grpo cases).
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from jobs import __main__
from jobs.training import loop


def main() -> None:
    step, path = int(sys.argv[1]), Path(sys.argv[2])
    del sys.argv[1:3]
    train = loop.train

    def profiled(trainer, *arguments) -> None:
        profile(trainer, step, path)
        train(trainer, *arguments)

    loop.train = profiled
    __main__.main()


def profile(trainer, step: int, path: Path) -> None:
    """Puts torch's profiler between the end of a step's rollout and the end of the step."""
    import torch
    from transformers import TrainerCallback

    generate = trainer._generate
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)
    began: list[float] = []

    def generate_then_profile(*arguments, **options):
        result = generate(*arguments, **options)
        if trainer.state.global_step + 1 == step and not began:
            torch.cuda.synchronize()
            profiler.start()
            began.append(time.perf_counter())
        return result

    class AtTheEnd(TrainerCallback):
        def on_step_end(self, args, state, control, **_) -> None:
            if state.global_step == step:
                torch.cuda.synchronize()
                seconds = time.perf_counter() - began[0]
                profiler.stop()
                path.write_text(json.dumps({"seconds": round(seconds, 3)} | kernels(profiler), indent=1))

    trainer._generate = generate_then_profile
    trainer.add_callback(AtTheEnd())


def kernels(profiler, most: int = 16) -> dict:
    events = sorted(profiler.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    return {
        "gpu_seconds": round(sum(event.self_device_time_total for event in events) / 1e6, 3),
        "launches": sum(event.count for event in events),
        "kernels": {e.key[:80]: [round(e.self_device_time_total / 1e6, 3), e.count] for e in events[:most]},
    }


if __name__ == "__main__":
    main()
