"""TRL's GRPOTrainer with what the job adds: groups without a signal, logged completions, times per phase."""

import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from jobs.common.errors import JobError, one_line
from jobs.common.files import read_jsonl, write_jsonl
from jobs.grpo import batches, correction, difficulty, order, turns
from jobs.grpo.ahead import Ahead, drawn_seed
from jobs.grpo.rewards import Scorer
from jobs.grpo.rollout import Rollout, answers, decoded, watch
from jobs.grpo.rollout_server import RemoteRollout
from jobs.inference import sample_seed
from jobs.plumbing import launch
from jobs.plumbing.params import Grpo
from jobs.training import ranks
from jobs.training.loop import fingerprint, seen_through

COMPARED = 8  # completions of a step whose log-probabilities by trainer and rollout are compared,
COMPARED_EVERY = 10  # steps; the first is compared too
LAST = "completions-last.jsonl"  # the last step's, until one of the steps to log has come
EQUAL = 1e-6  # rewards this near to each other differ by rounding
REFILLS = 3  # rounds of sampling in search of groups with a signal, as DAPO's dynamic sampling


class Trainer(GRPOTrainer):
    """GRPOTrainer over a Scorer.

    `grpo.equal_groups` says what becomes of groups whose rewards are all equal, and so carry no signal: `keep` them as
    TRL does, `drop` their tokens from the loss and its normaliser, or `refill` the batch with other tasks' groups.
    """

    # What TRL declares more widely than it is used here.
    processing_class: Any
    train_dataset: Any
    vllm_generation: Any
    args: Any
    num_generations: int
    sampled_logps: list[list[float]]  # by vLLM, of the completions sampled last
    task_ids: list[str]
    asked: list[str]  # the tasks of the prompts that are being answered
    last_answers: list[list[int]]  # the tokens of each completion's last answer
    use_vllm: bool
    vllm_importance_sampling_correction: bool
    _step: int
    _buffered_inputs: Any
    model: Any
    _logs: dict[str, Any]
    rewards: torch.Tensor  # (completions of all ranks, functions), of the completions sampled last

    def __init__(self, *, scorer: Scorer, grpo: Grpo, directory: Path, weights: list[float], **options) -> None:
        """weights: how likely `refill` takes each task of the data set, in its order."""
        super().__init__(**options)
        self.scorer, self.grpo, self.directory, self.weights = scorer, grpo, directory, weights
        self.seconds: dict[str, float] = defaultdict(float)
        self.seconds_by_step: list[dict[str, float]] = [{}]  # `seconds` at the start and after every step
        self.trained_logps: torch.Tensor | None = None
        self.uncorrected: dict | None = None  # a pass whose correction follows from its own log-probabilities
        self.ahead: Ahead | None = None  # with grpo.staleness
        self.order: list[int] | None = None  # the tasks of all steps where params decide it; see order.py

    def timed(self, phase: str, function, *arguments, **options):
        began = time.perf_counter()
        result = function(*arguments, **options)
        self.seconds[phase] += time.perf_counter() - began
        return result

    def _generate_single_turn(self, prompt_ids: list[list[int]], *arguments, **options):
        if self.ahead is not None:
            return self.timed("rollout", self.ahead.take, prompt_ids)
        judge = self.scorer.judging(self.processing_class, prompt_ids, self.asked)
        if self.grpo.rollout == "transformers":
            return self.timed("rollout", self.sampled, prompt_ids, judge), None
        own = isinstance(self.vllm_generation, Rollout)
        generate = self.rolled_out if own else super()._generate_single_turn
        with watch(self.vllm_generation.llm, judge):
            result = self.timed("rollout", generate, prompt_ids, *arguments, **options)
        self.sampled_logps = result[1]
        return result

    def rolled_out(self, prompt_ids: list[list[int]], images, multimodal_fields, num_generations: int, *_):
        """What TRL's `_generate_single_turn` does, by a Rollout: completions, and the log-probabilities of their tokens in
        the steps that have a use for them. They are a sixth of what the engine's own loop does for a completion's token."""
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        wanted = self.grpo.importance_correction or self.compares_logps()
        return self.vllm_generation.generate(prompt_ids, num_generations, logps=wanted)

    def sampled(self, prompt_ids: list[list[int]], judge: Callable[[list[int], list[int]], None]) -> list[list[int]]:
        """Completions of prompts of token ids, by the engine that evaluates: several times as fast as TRL's own loop.

        judge: called with a prompt and its completion as soon as it has ended.

        Their seed comes from torch's generator, whose state checkpoints keep: a resumed run draws what an unbroken one
        draws. It is one for all ranks, so that however many they are the step's completions have the same seeds.
        """
        seed = ranks.from_main(drawn_seed)
        first = ranks.number() * len(prompt_ids)
        seeds = [sample_seed(seed, "", first + i) for i in range(len(prompt_ids))]
        return self.decoded(prompt_ids, seeds, self.grpo.temperature, lambda i, ids: judge(prompt_ids[i], ids))

    def decoded(self, prompt_ids: list[list[int]], seeds: list[int], temperature: float, told=None) -> list[list[int]]:
        """`rollout.decoded` by the present adapter."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        completions = decoded(model, prompt_ids, seeds, temperature, self.grpo, {*self.eos_token_ids}, told)
        model.train(training)
        return completions

    def answers(self, prompts: list[str], n: int, temperature: float) -> list[list[str]]:
        """`n` answers to each prompt by the present adapter; temperature 0 is greedy.

        They are the same at every step as far as the adapter is: their seeds hang on the run's seed and the prompt alone,
        and torch's generators stay as they are.
        """
        ids = [self.processing_class(prompt)["input_ids"] for prompt in prompts]
        if self.grpo.rollout != "transformers":
            if self.ahead is not None:
                found = self.ahead.remote.answers(self.model, ids, n, temperature)
            else:
                folder = self.directory / "vllm-adapter"
                found = answers(self.vllm_generation, ids, n, temperature, self.grpo, self.args.seed, folder)
            return [self.processing_class.batch_decode(of_prompt, skip_special_tokens=True) for of_prompt in found]
        rows = sorted(((p, i) for p in range(len(prompts)) for i in range(n)), key=lambda row: len(ids[row[0]]))
        texts: list[list[str]] = [[""] * n for _ in prompts]
        size = self.args.generation_batch_size
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            seeds = [sample_seed(self.args.seed, prompts[p], i) for p, i in part]
            decoded = self.decoded([ids[p] for p, _ in part], seeds, temperature)
            for (p, i), text in zip(
                part, self.processing_class.batch_decode(decoded, skip_special_tokens=True), strict=True
            ):
                texts[p][i] = text
        return texts

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        answers = completion_ids_list if self.grpo.turns == 1 else self.last_answers
        try:
            self.rewards = self.timed("reward", super()._calculate_rewards, inputs, prompts, completions, answers)
            return self.rewards
        except JobError:
            raise
        except Exception as error:
            if ranks.is_lost(error):
                raise
            raise JobError(f"step {self.state.global_step + 1}: a reward failed ({one_line(error)})") from error

    def training_step(self, *arguments, **options):
        return self.timed("step", super().training_step, *arguments, **options)

    def log(self, *arguments, **options) -> None:
        self.seconds_by_step.append(dict(self.seconds))
        super().log(*arguments, **options)

    def times(self) -> dict[str, float]:
        """Seconds by phase, of the whole run: what is left of a step after rollout and reward is training."""
        return phases(self.seconds) | {"waiting_for_verdicts": round(self.scorer.waited, 3)}

    def step_times(self) -> dict[str, float]:
        """Seconds by phase of a step, the median over the run: the first steps compile kernels."""
        steps = [
            phases({k: after[k] - before.get(k, 0.0) for k in after})
            for before, after in pairwise(self.seconds_by_step)
            if after.get("step") != before.get("step")
        ]
        return {k: median(step[k] for step in steps) for k in (steps[0] if steps else ())}

    def _get_train_sampler(self, dataset=None):
        """TRL's, in an order that seed and epoch decide: its own would begin with the first epoch's after every resume."""
        sampler: Any = super()._get_train_sampler(dataset)
        if self.order is not None:
            return Planned(self.order, sampler.mini_repeat_count, sampler.batch_size, sampler.repeat_count)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    def get_train_dataloader(self):
        return seen_through(super().get_train_dataloader())

    def use_rollout(self, rollout: Rollout | RemoteRollout) -> None:
        """Takes completions from `rollout`, where TRL would start a vLLM of its own."""
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, rollout, -1
        if isinstance(rollout, RemoteRollout):
            self.ahead = Ahead(self, rollout)

    def train(self, resume_from_checkpoint=None, *arguments, **options):
        if self.ahead is not None and resume_from_checkpoint:
            self.ahead.load(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *arguments, **options)

    def _save_checkpoint(self, *arguments, **options) -> None:
        super()._save_checkpoint(*arguments, **options)
        if self.ahead is not None:
            self.ahead.save(self.directory / f"checkpoint-{self.state.global_step}")

    def base_fingerprints(self) -> list[dict[str, int]]:
        """Of the frozen weights, here and in vLLM where it has its own; with Unsloth both are the same memory."""
        rollout: Any = getattr(self, "vllm_generation", None)
        return [fingerprint(self.model), *([rollout.fingerprint()] if hasattr(rollout, "fingerprint") else [])]

    def _generate(self, prompts: list):
        self.asked = self.task_ids
        result = super()._generate(prompts)
        # What has not been sent yet; the tests run while the trainer computes log-probabilities.
        texts = self.processing_class.batch_decode(result[1], skip_special_tokens=True)
        self.scorer.start(texts, self.task_ids)
        return result if self.grpo.turns == 1 else self.with_second_turn(result, texts)

    def with_second_turn(self, result: tuple, texts: list[str]) -> tuple:
        """TRL's result of `_generate` with a second answer behind each first one that failed, and what was said between.

        The second answer is what is rewarded. All but what was said is in the loss: both answers have the advantage.
        """
        prompt_ids, completion_ids, _, completions, logps, *rest = result
        told = turns.told(self.scorer, texts, self.task_ids, [ids[-1] in self.eos_token_ids for ids in completion_ids])
        said = {
            i: self.processing_class(text, add_special_tokens=False)["input_ids"][: turns.MOST]
            for i, text in enumerate(told)
            if text
        }
        again, new_logps, last = [], None, []
        if said:
            self.asked = [self.task_ids[i] for i in said]
            prompts = [prompt_ids[i] + completion_ids[i] + said[i] for i in said]
            again, new_logps = self._generate_single_turn(prompts, None, {}, 1)
            last = self.processing_class.batch_decode(again, skip_special_tokens=True)
        whole = turns.joined(completion_ids, said, again, logps, new_logps)
        self.last_answers = [list(ids) for ids in completion_ids]
        for i, text, ids in zip(said, last, again, strict=True):
            completions[i], self.last_answers[i] = text, ids
        self.scorer.start(completions, self.task_ids)
        self.log_turns(list(said), completions)
        return prompt_ids, whole.ids, whole.mask, completions, whole.logps, *rest

    def log_turns(self, repaired: list[int], completions: list[str]) -> None:
        """Curves: the share of first answers that pass, and of failed ones whose second answer does."""
        verdicts = self.scorer.verdicts(completions, self.task_ids)
        passed = [verdict is not None and verdict.passed for verdict in verdicts]
        second = [passed[i] for i in repaired]
        self._metrics["train"]["first_turn_passed"].append((sum(passed) - sum(second)) / len(passed))
        if second:
            self._metrics["train"]["repaired"].append(sum(second) / len(second))

    def _get_per_token_logps_and_entropies(self, model, input_ids, *arguments, **options):
        with self.passes_of(len(input_ids)):
            result = super()._get_per_token_logps_and_entropies(model, input_ids, *arguments, **options)
        # Unsloth returns none here, see measure_logp_difference.
        self.trained_logps = result[0].detach() if torch.is_grad_enabled() and result[0] is not None else None
        if self.uncorrected is not None and self.trained_logps is not None:
            self.correct(self.uncorrected, self.trained_logps)
        return result

    @contextlib.contextmanager
    def passes_of(self, rows: int) -> Iterator[None]:
        """Has Unsloth score `rows` completions a batch at a time. It does not heed the batch size that TRL asks for, and by
        the one pass that its setting stands for while training all of a step's would be in memory at once."""
        if self.grpo.engine != "unsloth":
            yield
            return
        before = self.args.unsloth_grpo_mini_batch
        self.args.unsloth_grpo_mini_batch = -(-rows // self.grpo.batch_size)
        try:
            yield
        finally:
            self.args.unsloth_grpo_mini_batch = before

    def correct(self, inputs: dict, logps: torch.Tensor) -> None:
        """Gives a pass the importance ratio that TRL's loss multiplies by, and logs what TRL logs of it."""
        sampled, mask = inputs["sampling_per_token_logps"], batches.loss_mask(inputs)
        mode, cap = self.grpo.importance_mode, self.grpo.importance_cap
        inputs["importance_sampling_ratio"] = correction.importance_ratio(logps, sampled, mask, mode, cap)
        found = correction.statistics(logps, sampled, mask, inputs["importance_sampling_ratio"])
        for name, value in found.items():
            self._metrics["train"][name].append(value)

    def _prepare_inputs(self, generation_batch):
        """TRL's, with passes of our own where the loss allows it."""
        loss, kl, unsloth = self.grpo.loss, self.grpo.beta > 0, self.grpo.engine == "unsloth"
        fixed = self.grpo.entropy or not batches.sums(loss, tokens_of_step=unsloth, kl=kl)
        if fixed or not self.model.training:
            return super()._prepare_inputs(generation_batch)
        count = self.args.steps_per_generation
        if self._step % (count * self.num_iterations) == 0 or self._buffered_inputs is None:
            output = self._generate_and_score_completions(generation_batch)
            by_rank = ranks.gathered if launch.ranks() > 1 else None
            self._buffered_inputs = batches.passes(output, count, loss, tokens_of_step=unsloth, kl=kl, by_rank=by_rank)
        return self._buffered_inputs[self._step % count]

    def compute_loss(self, model, inputs: dict, *arguments, **options):
        if not len(inputs["advantages"]):
            return batches.nothing(self.model)
        measured = self._metrics["train"]
        before = {name: len(values) for name, values in measured.items()}
        loss = super().compute_loss(model, inputs, *arguments, **options) * inputs.get("share", 1.0)
        if not inputs.get("taught", True):  # nothing was measured
            for name, values in measured.items():
                del values[before.get(name, 0) :]
        elif self.grpo.engine == "unsloth" and not self.grpo.entropy:
            # It computes no entropy where the loss wants none, and logs 0.
            del measured["entropy"][before.get("entropy", 0) :]
            if not measured["entropy"]:
                del measured["entropy"]
        return loss

    def compares_logps(self) -> bool:
        """Whether the log-probabilities of trainer and rollout are compared in this step: while they have one policy.

        With grpo.staleness only the first step is trained on what its own policy sampled.
        """
        step = self.state.global_step + 1
        if self._step % (self.args.steps_per_generation * self.num_iterations) >= self.args.steps_per_generation:
            return False
        return step == 1 or (step % COMPARED_EVERY == 0 and not self.grpo.staleness)

    def _compute_loss(self, model, inputs: dict):
        inputs = dict(inputs)
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        self.uncorrected = inputs if corrected and "importance_sampling_ratio" not in inputs else None
        loss = super()._compute_loss(model, inputs)
        self.uncorrected = None
        if (
            self.compares_logps() and self.trained_logps is not None and "sampling_per_token_logps" in inputs
        ):  # the policy is still the one that sampled them
            mask = batches.loss_mask(inputs).bool()
            difference = (self.trained_logps - inputs["sampling_per_token_logps"])[mask].abs()
            added, tokens = ranks.total(difference.sum().item(), difference.numel())
            self._metrics["train"]["logp_difference"].append(added / tokens if tokens else 0.0)
        return loss

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        self.task_ids = [row["task_id"] for row in inputs]
        output = self.scored(inputs)
        if self.grpo.engine == "unsloth" and self.compares_logps():
            self.measure_logp_difference(output)
        if ranks.main():  # TRL has gathered those of all ranks
            self.log_completions_table()
        if self.grpo.equal_groups == "refill":
            output = self.refilled(output)
        if self.grpo.equal_groups != "keep":
            output = self.without_equal_groups(output)
        live = live_groups(output, self.num_generations)
        found, groups = ranks.total(live.sum().item(), len(live))
        self.watch_signal(found / groups)
        return output

    def scored(self, inputs: list[dict]) -> dict:
        """TRL's completions with their advantages, which are 0 wherever the rewards of a group are all equal.

        TRL's own are not: in float32 the mean of equal numbers differs from them at times, by 1e-7, and divided by a
        spread of about 0 that is an advantage of 0.001 for every answer of the group.
        """
        output = self.generated(inputs)
        equal = equal_rewards(self.rewards, self.reward_weights.to(self.rewards.device), self.num_generations)
        first = ranks.number() * len(inputs)  # the rewards are those of all ranks
        output["advantages"] = output["advantages"].masked_fill(equal[first : first + len(inputs)], 0.0)
        self._metrics["train"]["frac_reward_zero_std"][-1] = equal.float().mean().item()
        logged = self._logs["advantages"]
        for i in equal.nonzero().flatten().tolist():
            logged[i - len(equal)] = 0.0
        return output

    def generated(self, inputs: list[dict]) -> dict:
        """TRL's completions of a step, without a forward pass for old log-probabilities that are those of the pass with
        the gradient. TRL makes it where it corrects; the correction is then made in the loss."""
        if not (self.use_vllm and self.vllm_importance_sampling_correction and self.trains_once()):
            return super()._generate_and_score_completions(inputs)
        if self.grpo.engine == "unsloth":
            correction.take_own_for_old(type(self))
        self.vllm_importance_sampling_correction = False
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction = True

    def trains_once(self) -> bool:
        """Whether the weights that train on a batch are all those that it was sampled from."""
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0

    def watch_signal(self, share: float) -> None:
        """Logs the share of groups with a signal. Errors: JobError after grpo.patience steps in a row without any."""
        self._metrics["train"]["signal"].append(share)
        silent = (
            0 if share else 1 + trailing_zeros([row["signal"] for row in self.state.log_history if "signal" in row])
        )
        if self.grpo.patience and silent >= self.grpo.patience:
            last = self.state.log_history[-1] if self.state.log_history else {}
            facts = {k: last.get(k) for k in ("reward", "all_tests_passed", "completions/clipped_ratio")}
            raise JobError(
                f"step {self.state.global_step + 1}: {silent} steps in a row without a signal (grpo.patience): all answers "
                f"to a task earned the same; the step before: {facts}. Tasks that are solved at times (grpo.difficulty), "
                "more generations, or a better SFT model give one"
            )

    def measure_logp_difference(self, output: dict) -> None:
        """What `_compute_loss` measures in passing, on the first COMPARED completions.

        Unsloth fuses log-probabilities and loss in one kernel and drops the sampler's, so these are computed for it. It
        moves every prompt's padding to the end of its row, so a completion begins `padding` places early.
        """
        rows = min(COMPARED, len(output["completion_ids"]))
        ids, mask = (
            torch.cat([output[f"prompt_{part}"][:rows], output[f"completion_{part}"][:rows]], dim=1)
            for part in ("ids", "mask")
        )
        width = output["completion_ids"].size(1)
        with torch.no_grad(), self.passes_of(rows):
            logps = super()._get_per_token_logps_and_entropies(self.model, ids, mask, width)[0].float().cpu()
        padding = (output["prompt_mask"][:rows] == 0).sum(dim=1).tolist()
        starts = [logps.size(1) - width - n for n in padding]
        differences = [
            (row[start : start + len(sampled)] - torch.tensor(sampled)).abs()
            for row, start, sampled in zip(logps, starts, self.sampled_logps[:rows], strict=True)
        ]
        measured = self._metrics["train"]
        measured["logp_difference"].append(torch.cat(differences).mean().item())
        if not self.grpo.entropy:  # the mean of -log p of what was sampled is the entropy of what it was sampled from
            measured["entropy"].append(-torch.cat([torch.tensor(row) for row in self.sampled_logps]).mean().item())

    def refilled(self, output: dict) -> dict:
        """Puts groups of other tasks in the places of groups without a signal, in at most REFILLS rounds.

        Tasks that are likely to give a signal, by the pass rates of `grade`, are drawn more often. With grpo.mix a group
        makes way for one of its own source. All ranks sample as many as the one that lacks most, each other ones: what
        they sample is compared in common.
        """
        size = self.num_generations
        sources = [self.source(name) for name in self.task_ids[::size]]  # of the groups; replacing keeps them
        for attempt in range(REFILLS):
            dead = [i for i, live in enumerate(live_groups(output, size)) if not live]
            wanted = min(max(ranks.gathered(len(dead))), len(self.weights) // ranks.count())
            if not wanted:
                break
            rng = random.Random(f"refill {self.args.seed} {self.state.global_step} {attempt}")
            # With a mix there is one rank, which wants what it lacks; without one all tasks are of the same source.
            asked = [sources[i] for i in dead] if self.grpo.mix else [order.ALL] * wanted * ranks.count()
            drawn = self.others(rng, asked)[ranks.number() * wanted :][:wanted]
            rows = [self.train_dataset[i] for i in drawn]
            fresh = [row for row in rows for _ in range(size)]
            self.task_ids = [row["task_id"] for row in fresh]
            extra = self.scored(fresh)
            found = [i for i, live in enumerate(live_groups(extra, size)) if live]
            pairs = [
                pair
                for name in dict.fromkeys(sources)
                for pair in zip(
                    [i for i in dead if sources[i] == name],
                    [j for j in found if self.source(rows[j]["task_id"]) == name],
                    strict=False,
                )
            ]
            output = exchanged(output, extra, pairs, size, self.processing_class.pad_token_id)
        return output

    def source(self, task_id: str) -> str:
        """What a group may be replaced within: its task's source with grpo.mix, and anything without it."""
        return order.source(self.scorer.tasks[task_id]) if self.grpo.mix else order.ALL

    def others(self, rng: random.Random, sources: list[str]) -> list[int]:
        """Different tasks, as many of each source as `sources` names it, as far as there are any."""
        of = [self.source(name) for name in self.train_dataset["task_id"]]
        found = []
        for name in dict.fromkeys(sources):
            members = [i for i, source in enumerate(of) if source == name]
            drawn = difficulty.draw(rng, [self.weights[i] for i in members], sources.count(name))
            found += [members[i] for i in drawn]
        return found

    def without_equal_groups(self, output: dict) -> dict:
        """Masks the completions of groups whose advantages are all zero, and counts the rest anew for the normaliser."""
        size = self.num_generations
        live = live_groups(output, size).repeat_interleave(size)
        output["completion_mask"] = output["completion_mask"] * live.unsqueeze(1).to(output["completion_mask"].dtype)
        (tokens,) = ranks.total(batches.loss_mask(output).sum().item())
        output["num_items_in_batch"] = torch.full_like(output["num_items_in_batch"], max(tokens, 1))
        return output

    def log_completions_table(self) -> None:
        """Keeps a step's completions in the checkpoint folder, so that a resumed run has the earlier ones.

        Those of every `grpo.log_completions_every`-th step are kept. Until there is one, the last step's are, so that a
        shorter run is not without any. With `grpo.iterations` above 1 a batch is logged if one of its steps is due, as the
        step that drew it.
        """
        every, before = self.grpo.log_completions_every, self.state.global_step
        if not every:
            return
        due = (before + self.num_iterations) // every > before // every
        if not due and self.files_of_due_steps():
            return
        logs, count = self._logs, self.args.generation_batch_size
        columns = {
            "task_id": logs["extra"]["task_id"],
            "completion": logs["completion"],
            "status": logs["extra"]["status"],
            **logs["rewards"],
            "advantage": logs["advantages"],
        }
        recent = {name: list(values)[-count:] for name, values in columns.items()}
        last = self.directory / LAST
        write_jsonl(
            self.directory / f"completions-{before + 1:06d}.jsonl" if due else last,
            ({"step": before + 1, **{n: rounded(v[i]) for n, v in recent.items()}} for i in range(count)),
        )
        if due:
            last.unlink(missing_ok=True)

    def files_of_due_steps(self) -> list[Path]:
        return sorted(self.directory.glob("completions-[0-9]*.jsonl"))

    def logged_completions(self) -> list[dict]:
        files = self.files_of_due_steps() or [*self.directory.glob(LAST)]
        return [row for path in files for row in read_jsonl(path)]


class Planned(RepeatSampler):
    """TRL's sampler over an order that is given, of the numbers of the tasks: nothing is shuffled."""

    def __init__(self, order: list[int], mini_repeat_count: int, batch_size: int, repeat_count: int) -> None:
        super().__init__(order, mini_repeat_count, batch_size, repeat_count, shuffle=False)
        self.order = order

    def __iter__(self) -> Iterator[int]:
        return (self.order[place] for place in super().__iter__())


def trailing_zeros(values: list[float]) -> int:
    return next((i for i, value in enumerate(reversed(values)) if value), len(values))


def phases(seconds: dict[str, float]) -> dict[str, float]:
    parts = {k: v for k, v in seconds.items() if k != "step"}
    # Validation comes between two steps, and sampling ahead beside one.
    within = sum(v for k, v in parts.items() if k not in ("validation", "sampling"))
    whole = {"train": seconds.get("step", 0.0) - within}
    return {k: round(v, 3) for k, v in (parts | whole).items()}


def equal_rewards(rewards: torch.Tensor, weights: torch.Tensor, size: int) -> torch.Tensor:
    """(completions,) bool: whether the rewards of a completion's group are all equal, up to rounding.

    rewards: (completions, functions), NaN where there is none; a completion with none at all counts for nothing.
    """
    whole = (rewards * weights).nansum(dim=1)
    whole[rewards.isnan().all(dim=1)] = torch.nan
    groups = whole.view(-1, size)
    highest, lowest = groups.nan_to_num(nan=-torch.inf).amax(dim=1), groups.nan_to_num(nan=torch.inf).amin(dim=1)
    return (highest - lowest <= EQUAL).repeat_interleave(size)


def live_groups(output: dict, size: int) -> torch.Tensor:
    """(groups,) bool: whether a group's advantages are not all zero."""
    return (output["advantages"].view(-1, size) != 0).any(dim=1)


def exchanged(output: dict, extra: dict, pairs: list[tuple[int, int]], size: int, pad_token_id: int) -> dict:
    """`output` with group i replaced by group j of `extra` for every (i, j); rows are padded to the wider of the two.

    Tensors are (completions,) or (completions, tokens): prompts padded on the left, completions on the right.
    """
    result = dict(output)
    for name, value in output.items():
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            continue
        other = extra[name]
        if value.dim() == 2 and value.shape[1] > 1:
            fill = pad_token_id if name in ("prompt_ids", "completion_ids") else 0
            width = max(value.shape[1], other.shape[1])
            value, other = (widened(t, width, fill, left=name.startswith("prompt")) for t in (value, other))
        value = value.clone()
        for i, j in pairs:
            value[i * size : (i + 1) * size] = other[j * size : (j + 1) * size]
        result[name] = value
    return result


def widened(rows: torch.Tensor, width: int, fill: int, *, left: bool) -> torch.Tensor:
    missing = width - rows.shape[1]
    return torch.nn.functional.pad(rows, (missing, 0) if left else (0, missing), value=fill)


def rounded(value):
    return round(value, 6) if isinstance(value, float) else value
