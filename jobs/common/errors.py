"""The two ways a job stops on purpose. Anything else that is raised is a bug and keeps its traceback."""


class JobError(Exception):
    """The work failed: one clear line naming file and cause on stderr, exit code 1."""


class UsageError(JobError):
    """What was asked for is wrong (a param, a flag, a missing input): one clear line, exit code 2."""


def one_line(error: BaseException) -> str:
    """`Type: message` of an error that another library raised, for a JobError's text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
