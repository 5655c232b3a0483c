"""A step of GRPO on one GPU by this pipeline, by TRL and by Unsloth: the same model, prompts, lengths and batch.

    python tests/bench/grpo_peers.py MODEL ADAPTER TASKS --out DIR [--cases flat reference | own] [--systems NAME ...]

Reads   MODEL    a model folder      ADAPTER  an SFT adapter on all linear layers, which `ours` continues; the peers begin
                 new ones of its rank and alpha
        TASKS    tasks with prompts (jobs/common/task.py); those of more than 1,000 characters are left out
Writes  --out    steps.json: seconds of every step by system and case; SYSTEM-CASE.log; with --profile also the Python
                 functions that take most of a step's time, which itself takes longer then: SYSTEM-CASE.profile

Cases: `flat` forces every completion to 512 tokens, `reference` to lengths as the reference run had them (270 on average,
a long tail), 64 completions a step; both in one process, by each request's own max_tokens. `own` lets a real small model
end its 256 completions itself, 320 tokens at most. Rewards are drawn from the texts' hashes, so that no group is without a
signal and no system waits for a verdict. All sample with temperature 1 and without top-p, train all linear layers without a
KL term, and begin from the prompts that jobs/common/answer_format.py lays out.

The peers are set up as their own documents do: TRL's GRPOTrainer with vLLM in the same process ("colocate") and PEFT,
Unsloth as in its GRPO notebooks (fast_inference, gradient checkpointing "unsloth"). Systems run one after the other.
A step's seconds are those from the end of the one before to its own end; the first of a case compiles and is left out.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from tests.bench.gpu_jobs import ENVIRONMENT, SECONDS, Memory, draw_rewards, drawn  # noqa: E402

OURS = {
    "ours": ["grpo.engine=unsloth", "grpo.rollout=vllm_merged"],
    "ours-apart": ["grpo.engine=unsloth", "grpo.rollout=vllm"],
    "ours-fp8": ["grpo.engine=unsloth", "grpo.rollout=vllm_merged_fp8", "grpo.importance_correction=true"],
    "ours-plain": ["grpo.engine=transformers", "grpo.rollout=vllm_merged"],
    "ours-packed": ["grpo.engine=unsloth", "grpo.rollout=vllm_merged"],
}
# Unsloth's rows packed into one. Set by hand: no param does it.
SWITCHES = {"ours-packed": {"UNSLOTH_GRPO_SEQ_PACKING": "1"}}
SYSTEMS = [*OURS, "trl", "unsloth"]
STEPS = 5  # of a case
SHAPES = {"flat": (4, 512), "reference": (4, 512), "own": (16, 320)}  # prompts a step, tokens a completion at most
GROUP = 16
PASSES = {
    "flat": (16, 4),
    "reference": (16, 4),
    "own": (64, 4),
}  # rows x passes of `ours`; the peers' rows are in PEERS
PEERS = {"flat": 8, "reference": 8, "own": 32}  # with 16 rows plain TRL keeps more logits than a card of 80 GB holds
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LONGEST = 1000  # characters of a prompt, which are then at most 512 tokens with what is laid around it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=SHAPES, default=["flat", "reference"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for `ours`")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("model", "adapter", "tasks", "out"):
        setattr(options, name, getattr(options, name).resolve())
    if options.one:
        return run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "steps.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for system in options.systems:
        found[f"{system} {' '.join(options.cases)}"] = result = alone(system, options)
        kept.write_text(json.dumps(found, indent=1))
        print(system, json.dumps(result), flush=True)
    return None


def alone(system: str, options: argparse.Namespace) -> dict:
    """One system in a process of its own: the median seconds of its steps by case, and the card's peak memory."""
    folder, log = options.out / "work" / system, options.out / f"{system}-{options.cases[0]}.log"
    folder.mkdir(parents=True, exist_ok=True)
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    with open(log, "w") as file:
        code = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--one", system], cwd=folder, stdout=file,
            stderr=subprocess.STDOUT, env=ENVIRONMENT | SWITCHES.get(system, {}), timeout=SECONDS,
        ).returncode  # fmt: skip
    memory.stopped.set()
    said = log.read_text(errors="replace")  # a progress bar may stand before it on its line
    steps = [json.loads(found) for found in re.findall(r"STEP (\{.*?\})", said)]
    result: dict = {"code": code, "wall": round(time.perf_counter() - began, 1), "peak_gib": memory.peak}
    for case in options.cases:
        of_case = [step for step in steps if step["case"] == case][1:]
        if of_case:
            result[case] = {
                name: round(statistics.median(step[name] for step in of_case), 2) for name in ("seconds", "generate")
            } | {"steps": [step["seconds"] for step in of_case], "tokens": of_case[-1]["tokens"]}
    return result


def run(options: argparse.Namespace) -> None:
    """One system, in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")  # a first step of GRPO else never ends with these versions
    if options.one in OURS:
        ours(options)
    elif options.one == "trl":
        trl(options)
    else:
        unsloth(options)


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


def reward(completions: list, **_) -> list[float]:
    """A reward function as TRL and Unsloth take it."""
    return [drawn(each if isinstance(each, str) else each[0]["content"]) for each in completions]


def lora(options: argparse.Namespace) -> tuple[int, int]:
    """Rank and alpha of the adapter."""
    config = json.loads((options.adapter / "adapter_config.json").read_text())
    return config["r"], config["lora_alpha"]


def short(tasks: Path) -> list[dict]:
    from jobs.common.task import read_tasks

    return [task for task in read_tasks(tasks) if len(task["prompt"]) <= LONGEST]


def ours(options: argparse.Namespace) -> None:
    from jobs import __main__
    from jobs.common.files import write_jsonl
    from jobs.training import loop

    clock = Clock(options)
    case = options.cases[0]
    train = loop.train

    def watched(trainer, *arguments) -> None:
        clock.watch_engine()
        trainer.add_callback(clock.callback())
        train(trainer, *arguments)

    loop.train = watched
    draw_rewards()
    rows, passes = PASSES[case]
    rank, alpha = lora(options)
    settings = [
        f"sft.lora.rank={rank}", f"sft.lora.alpha={alpha}", f"sft.lora.targets=[{', '.join(LORA_TARGETS)}]",
        f"grpo.batch_size={rows}",
        f"grpo.gradient_accumulation={passes}", f"grpo.generations={GROUP}", f"grpo.steps={STEPS * len(options.cases)}",
        f"grpo.max_completion_length={SHAPES[case][1]}", "grpo.temperature=1.0", "grpo.top_p=1.0", "grpo.beta=0.0",
        "grpo.loss=dr_grpo", "grpo.scale_rewards=none", "grpo.log_completions_every=0", "checkpoints.every=1000",
        *(["sandbox.timeout=0.5"] if case == "own" else []),  # recipes/small.yaml's: an answer that never ends takes it
        *OURS[options.one], *options.set,
    ]  # fmt: skip
    tasks = Path("tasks.jsonl")
    write_jsonl(tasks, short(options.tasks))
    paths = ["--base", options.model, "--adapter", options.adapter, "--tasks", tasks.resolve()]
    sets = [word for setting in settings for word in ("--set", setting)]
    __main__.main(["grpo", "--params", str(REPO / "params.yaml"), *map(str, paths), *sets])


def configuration(options: argparse.Namespace, config, **more):
    """TRL's GRPOConfig, its defaults left alone but for the shape of the batch and what must be equal."""
    case = options.cases[0]
    prompts, most = SHAPES[case]
    return config(
        output_dir="out",
        per_device_train_batch_size=PEERS[case],
        gradient_accumulation_steps=prompts * GROUP // PEERS[case],
        num_generations=GROUP,
        max_completion_length=most,
        temperature=1.0,
        beta=0.0,
        bf16=True,
        max_steps=STEPS * len(options.cases),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **more,
    )


def dataset(options: argparse.Namespace):
    from datasets import Dataset

    from jobs.common import answer_format

    return Dataset.from_list([{"prompt": answer_format.chat_prompt(row["prompt"])} for row in short(options.tasks)])


def trl(options: argparse.Namespace) -> None:
    import torch
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    clock = Clock(options)
    args = configuration(
        options, GRPOConfig, use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=1024, model_init_kwargs={"dtype": torch.bfloat16},
    )  # fmt: skip
    rank, alpha = lora(options)
    trainer = GRPOTrainer(
        model=str(options.model), reward_funcs=reward, args=args, train_dataset=dataset(options),
        peft_config=LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"),
    )  # fmt: skip
    clock.watch_engine()
    trainer.add_callback(clock.callback())
    trainer.train()


def unsloth(options: argparse.Namespace) -> None:
    from unsloth import FastLanguageModel  # isort: skip  (before trl, which it patches)
    from trl import GRPOConfig, GRPOTrainer
    from vllm import SamplingParams

    clock = Clock(options)
    rank, alpha = lora(options)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(options.model), max_seq_length=1024, load_in_4bit=False, fast_inference=True, max_lora_rank=rank,
        gpu_memory_utilization=0.6,
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model,
        r=rank,
        target_modules=LORA_TARGETS,
        lora_alpha=alpha,
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    )
    sampling = SamplingParams(min_p=0.1, top_p=1.0, top_k=-1, seed=3407, stop=[tokenizer.eos_token],
                              include_stop_str_in_output=True)  # fmt: skip
    args = configuration(
        options, GRPOConfig, vllm_sampling_params=sampling, learning_rate=5e-6, weight_decay=0.001, warmup_ratio=0.1,
        lr_scheduler_type="linear", optim="adamw_8bit",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=[reward], args=args, train_dataset=dataset(options)
    )
    clock.watch_engine()
    trainer.add_callback(clock.callback())
    trainer.train()


if __name__ == "__main__":
    main()
