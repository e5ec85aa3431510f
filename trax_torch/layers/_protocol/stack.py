"""The data stack as two pure functions.

A stack is one bare item or a tuple with the top first; a layer takes its `n_in` items from the top
and its results take their place.
"""

from typing import Any


def take(stack: Any, n: int) -> Any:
    """Returns the top `n` items: one bare, several as a tuple, none as `()`.

    Raises:
      ValueError: if the stack has fewer than `n` items.

    Example:
      >>> take(('a', 'b', 'c'), 1), take(('a', 'b', 'c'), 2)
      ('a', ('a', 'b'))
    """
    if not isinstance(stack, (tuple, list)):
        if n == 1:
            return stack
        stack = (stack,)
    if len(stack) < n:
        raise ValueError(f"{n} inputs are needed here, but only {len(stack)} came.")
    return stack[0] if n == 1 else tuple(stack[:n])


def put(outputs: Any, stack: Any, n: int) -> Any:
    """Returns the stack with its top `n` items replaced by `outputs`; one item left is bare.

    Example:
      >>> put('x', ('a', 'b', 'c'), 2), put('x', ('a', 'b'), 2), put((), ('a', 'b'), 1)
      (('x', 'c'), 'x', 'b')
    """
    if not isinstance(stack, (tuple, list)):
        stack = (stack,)
    if not isinstance(outputs, (tuple, list)):
        outputs = (outputs,)
    result = (*outputs, *stack[n:])
    return result[0] if len(result) == 1 else result


def n_inputs_n_outputs(arities: list[tuple[int, int]]) -> tuple[int, int]:
    """Returns how many items layers in series take from, and leave on, the stack.

    Args:
      arities: `(n_in, n_out)` of each layer, in order.

    Example:
      >>> n_inputs_n_outputs([(1, 1), (3, 1)])
      (3, 1)
    """
    depth = deepest = 0
    for n_in, n_out in arities:
        depth += n_in
        deepest = max(deepest, depth)
        depth -= n_out
    return deepest, deepest - depth
