"""The systems of tests/bench/grpo_peers.py, each in a process of its own: this pipeline's job, TRL's trainer, Unsloth's."""

import argparse
import json
import os
from pathlib import Path

from tests.bench.gpu_jobs import REPO, draw_rewards, drawn
from tests.bench.grpo_peers_clock import GROUP, SHAPES, STEPS, Clock

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
PASSES = {
    "flat": (16, 4),
    "reference": (16, 4),
    "own": (64, 4),
}  # rows x passes of `ours`; the peers' rows are in PEERS
PEERS = {"flat": 8, "reference": 8, "own": 32}  # with 16 rows plain TRL keeps more logits than a card of 80 GB holds
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LONGEST = 1000  # characters of a prompt, which are then at most 512 tokens with what is laid around it


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
