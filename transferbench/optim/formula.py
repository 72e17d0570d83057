"""A formula in the epoch, as a recipe writes it. Imports no torch.

The text is read as a syntax tree of which only numbers, a few names and arithmetic are accepted;
nothing of it is ever executed as Python.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from functools import cache

from transferbench.errors import nearest

Formula = Callable[[float, float], float]
"""(epoch, epochs) to a number."""

LONGEST = 200
"""Characters; more is no formula of a person."""

FUNCTIONS: dict[str, tuple[Callable[..., float], bool]] = {
    "min": (min, True),
    "max": (max, True),
    "cos": (math.cos, False),
    "exp": (math.exp, False),
    "sqrt": (math.sqrt, False),
}
"""By name: the function, and whether it takes two or more arguments instead of one."""

# math.pow has no complex results and no integers of a million digits.
OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}

NAMES = ("epoch", "epochs", "pi", *FUNCTIONS)


@cache
def parse_formula(text: str) -> Formula:
    """Read a formula of `epoch` (from 0) and `epochs`, e.g. "0.95 ** epoch".

    It may use numbers, + - * / **, parentheses, `pi`, and `min`, `max`, `cos`, `exp`, `sqrt`.

    Raises
    ------
    ValueError
        If the text holds anything else: one sentence that names it.
    """
    if len(text) > LONGEST:
        raise ValueError(f"a formula has at most {LONGEST} characters, not {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"'{text}' is not a formula such as '0.95 ** epoch'") from None
    return _build(tree.body)


def value_at(text: str, epoch: int, epochs: int) -> float:
    """Return a formula's value at an epoch.

    Raises
    ------
    ValueError
        If it has no finite value there, or a negative one.
    """
    try:
        value = float(parse_formula(text)(float(epoch), float(epochs)))
    except (ArithmeticError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"'{text}' must be a finite number of at least 0 in every epoch, "
            f"but at epoch {epoch} of {epochs} it is {value:g}"
        )
    return value


def _build(node: ast.expr) -> Formula:
    """Turn a syntax tree into a function, refusing what a formula may not hold."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            # By way of the text, an integer that is too large becomes inf and not an error.
            constant = float(str(number))
            return lambda epoch, epochs: constant
        case ast.Name(id="epoch"):
            return lambda epoch, epochs: epoch
        case ast.Name(id="epochs"):
            return lambda epoch, epochs: epochs
        case ast.Name(id="pi"):
            return lambda epoch, epochs: math.pi
        case ast.Name(id=name):
            raise _unknown(name)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _build(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _build(operand)
            return lambda epoch, epochs: -inner(epoch, epochs)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            apply, first, second = OPERATORS[type(op)], _build(left), _build(right)
            return lambda epoch, epochs: apply(first(epoch, epochs), second(epoch, epochs))
        case ast.Call(func=ast.Name(id=name), args=given, keywords=[]):
            return _call(name, given)
    raise ValueError(
        f"a formula cannot hold '{ast.unparse(node)}'; "
        f"it has numbers, + - * / ** and {', '.join(NAMES)}"
    )


def _call(name: str, given: list[ast.expr]) -> Formula:
    if name not in FUNCTIONS:
        raise _unknown(name)
    function, several = FUNCTIONS[name]
    if several != (len(given) > 1) or not given:
        raise ValueError(f"{name} takes {'two or more numbers' if several else 'one number'}")
    arguments = [_build(argument) for argument in given]
    return lambda epoch, epochs: function(*(each(epoch, epochs) for each in arguments))


def _unknown(name: str) -> ValueError:
    near = nearest(name, NAMES)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(NAMES)}"
    return ValueError(f"a formula has no name '{name}'; {hint}")
