"""In which order files are taken: the longest first, so that no worker is left with one while the others have ended.

`make test` gives each file to one worker (--dist loadfile) and lets it take them in this order (--no-loadscope-reorder,
else xdist begins with the files of most tests, which are short ones). A file that is not named comes after them.
"""

# Roughly the longest first, some by `pytest --durations` and some by what they start; the order alone matters.
LONGEST = (
    "test_smoke",
    "test_attacks",
    "test_same_bytes",
    "test_faults",
    "test_grpo",
    "test_publish",
    "test_ranks",
    "test_replay",
    "test_gguf",
    "test_families",
    "test_validation",
    "test_natural_end",
    "test_stop",
    "test_kill",
    "test_launch",
    "test_launcher_cluster",
    "test_supervisor",
    "test_stages",
    "test_verdicts",
    "test_launcher",
    "test_sandbox",
    "test_stats",
)
LAST = "test_repair_learned"  # it wants what test_smoke makes, and would wait for it


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)} | {LAST: len(LONGEST) + 1}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
