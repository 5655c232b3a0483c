"""What the ranks of tests/ranks.py have imported when they begin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
from jobs.training import loop

loop.prepare("transformers")

import datasets  # noqa: E402, F401
import peft  # noqa: E402, F401
import trl  # noqa: E402, F401

import jobs.grpo.job  # noqa: E402
import jobs.grpo.trainer  # noqa: E402
import jobs.grpo.validation  # noqa: E402
import jobs.sandbox.pool  # noqa: E402
import jobs.sft  # noqa: E402, F401
