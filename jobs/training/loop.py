"""What SFT and GRPO share: loading model and adapter by either engine, trainer settings, curves, checkpoints.

Engines: `transformers` is plain transformers + PEFT + TRL, on a GPU or a CPU; `unsloth` patches the same TRL trainers and
needs an NVIDIA GPU. Both write the same files.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.errors import JobError, UsageError, one_line
from jobs.common.files import read_json, replace_dir, sha256, write_json
from jobs.plumbing import checkpoint, launch
from jobs.plumbing.cli import log, progress
from jobs.plumbing.params import ALL_LINEAR, Checkpoints, Lora, Optimizer, Params
from jobs.training import dropout, ranks
from jobs.weights.adapter import (
    BASE_KEY,
    CONFIG_KEY,
    RECORD,
    attach,
    check_places,
    computation,
    config_of,
    plain_name,
    tensors_by_module,
    weights_hash,
)
from jobs.weights.attention import attention_for
from jobs.weights.families import on_experts
from jobs.weights.identity import adapter_identity, model_identity, source_of
from jobs.weights.lora import require_plain
from jobs.weights.model import linear_layers, require_names, require_whole

if TYPE_CHECKING:
    import torch
    from transformers import (
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )

ATTENTION = "sdpa"
MAMBA = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
# Their forward pass takes the weight of this layer and passes the layer by, and with it an adapter on it.
PASSED_BY = dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "dt_proj")


def prepare(engine: str) -> None:
    """Environment and imports that must come before torch is used; raises JobError where the engine cannot run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are read from folders; nothing is looked up
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve the sandbox's workers
    if not launch.is_rank():  # of several cards, transformers would spread each batch over all (DataParallel)
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    if engine == "unsloth":
        # Its first GRPO step never returns from torch.compile (sympy) with this set of versions.
        os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
        # A group's prompt in one row by flex_attention: training took 1.2 to 1.5 times as long (docs/performance.md).
        os.environ.setdefault("UNSLOTH_GRPO_PREFIX_GROUPER", "0")
        # Packed into one row, sequences go through attention one by one in every layer: 300,000 kernel launches a step
        # of GRPO, which take Python 9 s where the GPU has work for 3.
        os.environ.setdefault("UNSLOTH_GRPO_SEQ_PACKING", "0")
        # Logits of 152k words are computed again in the backward pass: kept, they take a third of a step's memory.
        os.environ.setdefault("UNSLOTH_GRPO_LOGPROB_RECOMPUTE", "1")
        import torch

        if not torch.cuda.is_available():
            raise JobError("engine: unsloth needs an NVIDIA GPU; set sft.engine and grpo.engine to transformers")
        import unsloth  # noqa: F401  (patches transformers, peft and trl, so it comes before them)

        if os.environ["UNSLOTH_GRPO_SEQ_PACKING"] == "1":  # set by hand, to be measured
            from jobs.training import varlen

            varlen.install()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def training_dtype() -> "torch.dtype":
    """bfloat16 on a GPU, float32 on a CPU."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def packages(settings: Optimizer) -> tuple[str, ...]:
    """The distributions that the settings choose by name alone, for resume keys and provenance."""
    return ("bitsandbytes",) if settings.optimizer == "adamw_8bit" else ()


def load_model(base: Path, lora: Lora, adapter: Path | None, seed: int):
    """The base in training precision with a trainable LoRA adapter, new or continued, by transformers and PEFT."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    require_whole(base)
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"  # of this rank
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=training_dtype(),
            attn_implementation=attention_for(base, ATTENTION),
            use_safetensors=True,
            trust_remote_code=False,
            device_map=device,
        )
    except Exception as error:  # a truncated shard surfaces as one of many types, none of which names the folder
        raise JobError(f"{base}: the model cannot be loaded ({one_line(error)})") from error
    dropout.turn_off(model, base)
    torch.manual_seed(seed)
    targets = targets_in(model, lora, base)
    if adapter is not None:
        check_adapter(adapter, lora, targets)
        return attach(model, adapter, base, trainable=True)
    try:
        peft = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=targets,
                lora_dropout=0.0,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:  # a module that LoRA cannot be laid over
        raise JobError(f"sft.lora.targets: {base} cannot be given an adapter there ({one_line(error)})") from error
    resolved: Any = peft.peft_config["default"]
    if laid := resolved.target_parameters:
        raise JobError(
            f"sft.lora.targets: PEFT takes them for {', '.join(sorted(laid))} of {base}, which is not summed"
        )
    return peft


def targets_in(model, lora: Lora, base: Path) -> list[str]:
    """The names of the modules to train; "all-linear" stands for all linear layers but the output head.

    Some it leaves out, and tells so: see `left_out`.
    PEFT goes on where one of the names matches nothing, and trains less than was asked. Errors: JobError naming such a
    target, with the linear layers that there are. A target that only some of the model's layers have is told of.
    """
    linear = {name.rpartition(".")[2] for name in linear_layers(model)}
    if lora.targets == [ALL_LINEAR]:
        if not linear:
            raise JobError(f"sft.lora.targets: {base} has no linear layers that all-linear could mean")
        left = left_out(model, linear)
        if left:
            log.warning("sft.lora.targets: all-linear leaves out %s", ", ".join(sorted(left)))
        return sorted(linear - left)
    names = [name for name, _ in model.named_modules()]
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    for target in lora.targets:
        found = [name for name in names if name == target or name.endswith(f".{target}")]
        if not found:
            raise JobError(
                f"sft.lora.targets: {target} is no module of {base}; its linear layers: {', '.join(sorted(linear))}"
            )
        if target == PASSED_BY.get(model.config.model_type):
            raise JobError(f"sft.lora.targets: a {model.config.model_type} passes {target} by, and an adapter on it")
        within = {match[1] for name in found if (match := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name))}
        if within and len(within) < layers:
            log.warning("sft.lora.targets: %s is in %d of the model's %d layers alone", target, len(within), layers)
    return list(lora.targets)


def left_out(model, linear: set[str]) -> set[str]:
    """Those of a model's linear layers, by their names, that no adapter is laid over where all are asked for.

    What is called as the experts are, since no adapter on these could be summed; what PEFT refuses in Mamba, and what is
    passed by there; and what has a number for a name, which PEFT would take for a whole layer's.
    """
    kind = model.config.model_type
    found = on_experts(model.config.get_text_config().to_dict(), linear) | {name for name in linear if name.isdigit()}
    return found | (linear & {PASSED_BY.get(kind), "out_proj" if kind in MAMBA else None})


def check_adapter(adapter: Path, lora: Lora, targets: list[str]) -> None:
    """The adapter to continue has the shape that params name; continuing another would ignore them silently.

    targets: what sft.lora.targets means in this model. And the adapter is whole and in safetensors: PEFT would otherwise
    unpickle an adapter_model.bin, or ask the Hub.
    """
    tensors_by_module(adapter)
    config = config_of(adapter)
    require_plain(config, adapter)  # what could not be summed after the training
    found = (config["r"], config["lora_alpha"], config.get("target_modules") or [])
    if found[:2] != (lora.rank, lora.alpha) or not same_targets(found[2], lora, targets):
        shown = found[2] if isinstance(found[2], str) else sorted(found[2])
        raise JobError(
            f"{adapter}/adapter_config.json: rank, alpha, targets are {(*found[:2], shown)}, "
            f"params' sft.lora says {(lora.rank, lora.alpha, sorted(lora.targets))}"
        )


def same_targets(found: str | list[str], lora: Lora, targets: list[str]) -> bool:
    if isinstance(found, str):  # "all-linear", or a regular expression of PEFT's
        return [found] == lora.targets
    return sorted(found) == sorted(targets)


def check_fits(model, tokenizer: "PreTrainedTokenizerBase", base: Path) -> None:
    """Errors: JobError for a model that embeds too few tokens, numbers that are not finite, and as `require_names`."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise JobError(f"{base}: its tokenizer has {len(tokenizer)} tokens, the model embeds only {rows}")
    adapted = {plain_name(name).partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    require_names(base, adapted)
    for name, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            raise JobError(f"{base}: {plain_name(name)} holds values that are not finite")


def arguments(settings: Optimizer, checkpoints: Checkpoints, directory: Path, seed: int) -> dict[str, Any]:
    """The part of transformers' TrainingArguments that both trainers share, every value explicit."""
    import torch

    gpu = torch.cuda.is_available()
    batch_size, accumulation = settings.share
    return {
        "output_dir": str(directory),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not gpu,
        "bf16": gpu,
        "fp16": False,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": {"cosine": "cosine", "constant": "constant_with_warmup"}[settings.schedule],
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "optim": settings.optimizer,
        "max_grad_norm": settings.max_grad_norm,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "ddp_find_unused_parameters": False,  # every factor of the adapter has a part in every loss
        "ddp_broadcast_buffers": False,  # they are tables of positions, the same on every rank
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": "none",  # see `train`
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,  # it would log a NaN loss as 0
        "save_strategy": "steps",
        "save_steps": checkpoints.every,
        "save_total_limit": None,  # see `watcher`
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }


def train(trainer: "Trainer", directory: Path, keep: int, curve: "TrainerCallback", trackers: Callable) -> None:
    """Trains from the last whole checkpoint in `directory`, or from the start; prints which. Keeps the last `keep`.

    curve: what writes the curve as it grows. trackers: gives the callbacks that the first rank has besides, for
    the trainer's arguments and whether the run is a resumed one.
    Errors: JobError for a loss that is not finite, for a GPU that runs out of memory, with what to lower, for a
    checkpoint that cannot be written, and for weights that are not what they must be; the checkpoints before it stay.
    """
    import torch
    from transformers import TrainerState
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    check = checked_weights(trainer)
    found = ranks.from_main(lambda: checkpoint.last(directory))
    writing = (curve, *trackers(trainer.args, found is not None)) if ranks.main() else ()
    for callback in (watcher(keep, check), *writing):
        trainer.add_callback(callback)
    if found is not None:
        log.info("resuming from %s", found)
        state = TrainerState.load_from_json(str(found / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # killed after its last step: the trainer would take one more
            load_adapter(trainer.model, found)
            trainer.state = state
            return
    hook_checkpoints(trainer, directory)
    if trainer.args.optim == "adamw_8bit":
        queue_updates()
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    except torch.cuda.OutOfMemoryError as error:
        raise JobError(
            f"the GPU ran out of memory: lower batch_size, or set gradient_checkpointing ({one_line(error)})"
        ) from error
    check(trainer.state.global_step)


def queue_updates() -> None:
    """Has bitsandbytes' optimizers queue a step's updates, where they wait for the GPU after every tensor.

    They wait for states that are paged to the CPU. Those of adamw_8bit are not, and the GPU runs what is queued in order.
    """
    from bitsandbytes.optim import optimizer

    optimizer.sync_gpu = lambda tensor: None


def hook_checkpoints(trainer: "Trainer", directory: Path) -> None:
    """Makes the trainer load a checkpoint's adapter by `load_adapter`, and say of one that cannot be written where."""
    hooks: Any = trainer
    hooks._load_from_checkpoint = lambda path, model=None: load_adapter(trainer.model, Path(path))
    save = trainer._save_checkpoint

    def save_checkpoint(*arguments, **options):
        try:
            save(*arguments, **options)
        except Exception as error:  # a full disk surfaces as one of many types
            if ranks.is_lost(error):
                raise
            raise JobError(
                f"{directory}: the checkpoint of step {trainer.state.global_step} cannot be written ({one_line(error)})"
            ) from error

    hooks._save_checkpoint = save_checkpoint


def checked_weights(trainer: "Trainer") -> Callable[[int], None]:
    """A function of the step, for all ranks at once, that looks whether their adapters are one and the bases as they were.

    What the base is, wherever the trainer has a copy of it, its method `base_fingerprints` tells, if it has one.
    """
    base = getattr(trainer, "base_fingerprints", lambda: fingerprint(trainer.model))
    before = base()

    def check(step: int) -> None:
        changed = ranks.gathered(base() != before)
        if any(changed):
            raise JobError(
                f"step {step}: the base weights changed during training (rank {changed.index(True)}); the adapter would "
                "not fit the base"
            )
        if len(changed) > 1:
            ranks.require_equal(f"step {step}: the adapter", ranks.weights_hash(trainer.model))

    return check


def seen_through(loader):
    """`loader`, as accelerate prepared it, with the data's sampler where accelerate looks for it in a resumed run.

    For several ranks it lays a wrapper around the batches, and for a resumed epoch a second one. It then no longer finds
    the sampler, to tell it the epoch whose order is wanted.
    """
    shard = loader.batch_sampler
    if hasattr(shard, "batch_sampler"):
        shard.sampler = shard.batch_sampler.sampler
    return loader


def require_learning(section: str, settings: Optimizer, steps: int) -> None:
    """Errors: UsageError for a schedule in which every one of `steps` has learning rate 0."""
    warmup = math.ceil(steps * settings.warmup_ratio)  # as transformers counts it
    if steps <= 1 and warmup:
        raise UsageError(
            f"{section}.warmup_ratio: the only step of this run would have learning rate 0, and nothing would be learned; "
            "set it to 0, or train for more steps"
        )


def load_adapter(model, path: Path) -> None:
    """Puts a checkpoint's adapter into the model.

    In the place of transformers' own loading, which, with GRPO's frozen reference adapter in a subfolder, loads that one
    alone: the run would go on from the SFT weights with an optimizer far ahead of them.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = path / "adapter_model.safetensors"
    try:
        loaded: Any = set_peft_model_state_dict(model, load_file(file), adapter_name="default")
    except Exception as error:
        raise JobError(f"{file}: the adapter cannot be loaded ({one_line(error)})") from error
    check_places(path, loaded.unexpected_keys, loaded.missing_keys)


def fingerprint(model) -> dict[str, int]:
    """One number for each frozen tensor: the exclusive or of its bits, taken where the tensor lies.

    Two of them are equal unless a base that must not change has changed, as it does where a trainer merges its adapter
    into vLLM's weights and takes it out again (trl#6688).
    """
    import torch

    return {
        name: int(torch.hash_tensor(plain(tensor.detach())).cpu().view(torch.int64).item())
        for name, tensor in model.named_parameters()
        if not tensor.requires_grad and "lora_" not in name
    }


def plain(tensor):
    """`tensor`, its bits taken for whole numbers where torch has no hash of such floats, as of those of 8 bits."""
    import torch

    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def watcher(keep: int, check: Callable[[int], None]):
    """A callback that shows progress, stops on a loss that is not finite, seals each checkpoint and prunes the others.

    check: what must hold before a checkpoint is sealed, as a function of the step (`checked_weights`).

    In the place of transformers' own pruning, which comes before the new checkpoint is sealed: with `keep` 1, a kill in
    between would leave none.
    """
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        bar = None

        def on_train_begin(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_):
            self.bar = progress(total=state.max_steps, label="training")
            self.bar.update(state.global_step)

        def on_log(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", logs=None, **_):
            logs = logs or {}
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise JobError(f"step {state.global_step}: {name} is {logs[name]}; lower the learning_rate")
            if self.bar is not None and "loss" in logs:
                self.bar.update(state.global_step - self.bar.n)
                shown = {k: f"{logs[k]:.4g}" for k in ("loss", "reward") if k in logs}
                self.bar.set_postfix(shown, refresh=False)

        def on_save(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_):
            directory = Path(str(args.output_dir))
            check(state.global_step)
            ranks.barrier()  # each rank has written the state of its random numbers
            if ranks.main():
                checkpoint.seal(directory / f"checkpoint-{state.global_step}")
                checkpoint.prune(directory, keep)

        def on_train_end(self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_):
            if self.bar is not None:
                self.bar.close()

    return Watcher()


def save_adapter(model, base: Path, out: Path) -> None:
    """Writes the trainable adapter alone, with a config that is the same from run to run.

    The config names the base by its repository and revision, for PEFT and vLLM to find it, and names none where the base
    is not on the Hub: a folder of this machine would say nothing elsewhere.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(
            out,
            selected_adapters=["default"],
            safe_serialization=True,
            save_embedding_layers=False,  # by itself PEFT adds the base's own matrix where an end of the model is a target
        )
    except SafetensorError as error:  # a full disk, which is not an OSError here
        raise JobError(f"{out}: the adapter cannot be written ({one_line(error)})") from error
    (out / "README.md").unlink(missing_ok=True)
    config = read_json(out / "adapter_config.json")
    source = source_of(base) or {}
    config |= {
        "target_modules": named_targets(model, config["target_modules"]),
        "base_model_name_or_path": source.get("repo"),
        "revision": source.get("revision"),
        "inference_mode": True,
    }
    write_json(out / "adapter_config.json", config)


def epochs_kept(base: Path, folder: Path) -> "TrainerCallback":
    """A callback that writes the adapter after each epoch to `folder`/epoch-N, where a resumed run finds it.

    Errors: JobError as of `kept_epoch`, before anything is trained.
    """
    from transformers import TrainerCallback

    class Kept(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_) -> None:
            passed, rest = divmod(state.global_step, state.max_steps // round(args.num_train_epochs))
            if not ranks.main() or not passed:
                return
            # A run that was killed after an epoch's last step may have a checkpoint of it and no folder yet.
            if not rest and passed < args.num_train_epochs and not (folder / f"epoch-{passed}").exists():
                self.keep(passed, model)
            for number in range(1, min(passed, round(args.num_train_epochs) - 1) + 1):
                kept_epoch(folder, number)

        def on_epoch_end(self, args, state, control, model=None, **_) -> None:
            if ranks.main():
                self.keep(round(state.epoch), model)

        def keep(self, number: int, model) -> None:
            with replace_dir(folder / f"epoch-{number}") as partial:
                save_adapter(model, base, partial)

    return Kept()


def kept_epoch(folder: Path, number: int) -> Path:
    """The adapter that `epochs_kept` has written after an epoch. Errors: JobError where it is gone."""
    kept = folder / f"epoch-{number}"
    if not kept.is_dir():
        raise JobError(f"{kept}: is gone; remove {folder} to train anew")
    return kept


def named_targets(model, targets: str | list[str]) -> list[str]:
    """The modules that an adapter is on, by the last part of their names, sorted: PEFT keeps them in a set.

    Unsloth makes a regular expression of them for some families, which means the same and which no other tool reads alike.
    """
    if not isinstance(targets, str):
        return sorted(targets)
    layers = [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]
    return sorted({name.rpartition(".")[2] for name in layers})


def run_record(
    job: str, params: Params, settings: Optimizer, base: Path, continued: Path | None, inputs: dict[str, Path], **facts
) -> dict:
    """What an adapter was trained with and on, for trainer.json and the model card: params and inputs, by their hashes.

    continued: the adapter that training began with, whose own record goes along.
    """
    record = {
        "job": job,
        "seed": params.seed,
        "settings": settings.model_dump(),
        "lora": params.sft.lora.model_dump(),
        "base": {"identity": model_identity(base), "source": source_of(base)},
        "inputs": {name: sha256(path) for name, path in inputs.items()},
        **facts,
    }
    if continued is not None:
        before = continued / RECORD
        run = read_json(before).get("run") if before.is_file() else None
        record["continues"] = {"identity": adapter_identity(continued), "run": run}
    return record


def save_settings(args: "TrainingArguments", base: Path, out: Path, run: dict) -> None:
    """trainer.json: the trainer's resolved settings, less what names this machine, the hash of the base's weights, how they
    are computed with, and `run`, the record of what was asked.

    The settings are what was really used, whatever an engine changed. The adapter is held to that base.
    """
    named = ("dir", "dir_name")
    trackers = ("report_to", "project", "run_name")
    values = {
        k: v for k, v in args.to_dict().items() if not k.endswith(named) and "token" not in k and k not in trackers
    }
    values |= {BASE_KEY: weights_hash(base), CONFIG_KEY: computation(base), "run": run}
    (out / RECORD).write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
