"""What LeetCode's judge puts beside a submission, as source that is run in the child: the nodes of lists and trees, and
one function `__answer__` that takes a test's plain arguments and returns a plain result.

Lists of nodes and trees are written as LeetCode writes them: [1, 2, 3], and by levels with null for what is missing.
Nothing here decides anything: a submission that replaces it changes its own answers.
"""

from typing import Any

ANSWER = "__answer__"

NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
"""

ADAPTER = """
def __bind__(names, entry_point, method, arguments, result, shared):
    most = 1 << 21

    def to_list(values):
        first = last = None
        for value in values or ():
            node = names["ListNode"](value)
            if last is None:
                first = node
            else:
                last.next = node
            last = node
        return first

    def to_tree(values):
        if not values:
            return None
        nodes = [None if value is None else names["TreeNode"](value) for value in values]
        children = iter(nodes[1:])
        for node in nodes:
            if node is not None:
                node.left = next(children, None)
                node.right = next(children, None)
        return nodes[0]

    def from_list(node):
        found = []
        while node is not None and len(found) < most:
            found.append(node.val)
            node = node.next
        return found

    def from_tree(node):
        found, level = [], [node]
        while any(item is not None for item in level) and len(found) < most:
            found += [None if item is None else item.val for item in level]
            level = [child for item in level if item is not None for child in (item.left, item.right)]
        while found and found[-1] is None:
            found.pop()
        return found

    make = {"ListNode": to_list, "TreeNode": to_tree, "list of ListNode": lambda values: [to_list(v) for v in values]}
    take = {"ListNode": from_list, "TreeNode": from_tree, "list of ListNode": lambda nodes: [from_list(n) for n in nodes]}

    def plain(value):
        kind = type(value)
        if kind is tuple or kind is list:
            return [plain(item) for item in value] if kind is tuple or any(
                type(item) in (tuple, list, dict) for item in value) else value
        if kind is dict:
            return {key: plain(item) for key, item in value.items()}
        return value

    def found():
        if method is None:
            return names[entry_point]
        if shared and entry_point not in names:
            return names[method]
        return getattr(names[entry_point](), method)

    once = found() if shared else None

    def answer(*given):
        function = once or found()
        given = [make[shape](value) if shape else value for shape, value in zip(arguments, given)] if arguments else given
        value = function(*given)
        if result:
            return take[result](value)
        if shared:
            return list(value) if isinstance(value, tuple) else value
        return plain(value)

    return answer
"""


def adapter(entry_point: str, method: str | None, shapes: dict[str, Any], shared: bool) -> str:
    """The source that binds `__answer__` to a submission's function, or method of its class.

    shapes: "arguments", a list with one of jobs.common.programs.SHAPES for each, and "result", one of them. shared: one
    instance for all tests, and a mere function of the method's name will do: LiveCodeBench's way.
    """
    bound = [entry_point, method, shapes.get("arguments"), shapes.get("result"), shared]
    return f"{ADAPTER}\n{ANSWER} = __bind__(globals(), *{bound!r})\n"
