"""Supervised fine-tuning as Unsloth's Qwen3 notebooks set it up, on the bench's examples: what jobs/sft.py is held against.

    python tests/bench/notebook.py MODEL EXAMPLES

Theirs: batch 2, gradient checkpointing "unsloth", adamw_8bit, linear schedule, no compilation switched off. Ours, so that
both do the same work: three epochs without accumulation, params.yaml's rank and targets, bfloat16, the examples' own
chat prompt.
"""

import json
import sys
import time
from pathlib import Path

from unsloth import FastLanguageModel  # isort: skip  (before trl, which it patches)
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from jobs.common import answer_format
from jobs.plumbing.params import load

lora = load(Path(__file__).resolve().parents[2] / "params.yaml").sft.lora
model_path, examples = sys.argv[1:]
model, _ = FastLanguageModel.from_pretrained(model_path, max_seq_length=2048, load_in_4bit=False, dtype=None)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = FastLanguageModel.get_peft_model(
    model,
    r=lora.rank,
    lora_alpha=lora.alpha,
    target_modules=lora.targets,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    random_state=3407,
)
rows = [json.loads(line) for line in Path(examples).read_text().splitlines()]
dataset = Dataset.from_list(
    [{"text": answer_format.chat_prompt(r["prompt"]) + r["answer"] + tokenizer.eos_token} for r in rows]
)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=dataset,
    args=SFTConfig(
        output_dir="notebook",
        dataset_text_field="text",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_train_epochs=3,
        warmup_steps=5,
        learning_rate=2e-4,
        optim="adamw_8bit",
        weight_decay=0.01,
        lr_scheduler_type="linear",
        seed=3407,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    ),
)
began = time.perf_counter()
trainer.train()
print("TRAIN", round(time.perf_counter() - began, 2))
