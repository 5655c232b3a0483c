"""What the tests of verdicts share: a task by its assertions, and the verdict on one program."""


def task(*tests, entry_point="f", **fields):
    return {"task_id": "t", "prompt": "", "entry_point": entry_point, "setup": "", "tests": list(tests), **fields}


def verdict(sandbox, record, code):
    return sandbox.run([(record, code)])[0]
