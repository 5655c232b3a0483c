"""bitsandbytes' optimizer, as its `step` is written, does not wait for the GPU once a run has begun."""

import sys
from types import ModuleType, SimpleNamespace

from jobs.training import loop

STEP = """
from waits import sync_gpu

class Optimizer8bit:
    def step(self, parameters):
        for p in parameters:
            updated.append(p)
            sync_gpu(p)

updated = []
"""


def test_updates_are_queued(monkeypatch):
    waited: list[int] = []
    monkeypatch.setitem(sys.modules, "waits", SimpleNamespace(sync_gpu=waited.append))
    package, optim, optimizer = (ModuleType(name) for name in ("bitsandbytes", "optim", "optimizer"))
    exec(STEP, vars(optimizer))
    package.optim, optim.optimizer = optim, optimizer  # type: ignore[attr-defined]
    for name, module in (("bitsandbytes", package), ("bitsandbytes.optim", optim)):
        monkeypatch.setitem(sys.modules, name, module)
    step = optimizer.Optimizer8bit().step  # type: ignore[attr-defined]
    step([1, 2])
    assert waited == [1, 2]
    loop.queue_updates()
    step([3, 4])
    assert waited == [1, 2] and optimizer.updated == [1, 2, 3, 4]  # type: ignore[attr-defined]
