"""Formulas: what they give, and that nothing else than arithmetic gets in."""

from __future__ import annotations

import math

import pytest

from transferbench.optim.formula import parse_formula, value_at


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.95 ** epoch", 0.95**3),
        ("1 / (1 + epoch)", 0.25),
        ("0.5 * (1 + cos(pi * epoch / epochs))", 0.5 * (1 + math.cos(0.3 * math.pi))),
        ("max(0.1, 1 - epoch / epochs)", 0.7),
        ("min(1, 2, epoch)", 1.0),
        (" exp(-epoch) + sqrt(+4) ", math.exp(-3) + 2),
        ("-2 ** 2 + 5", 1.0),
        ("2 ** 3 ** 0", 2.0),
    ],
)
def test_a_formula_is_the_arithmetic_it_says(text: str, value: float) -> None:
    assert value_at(text, 3, 10) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.9 ** epohc", "no name 'epohc'; did you mean 'epoch'"),
        ("sin(epoch)", "no name 'sin'"),
        ("__import__('os').system('true')", "cannot hold '__import__"),
        ("epoch.real", "cannot hold 'epoch.real'"),
        ("[epoch]", "cannot hold"),
        ("lambda: 1", "cannot hold 'lambda: 1'"),
        ("epoch if epoch else 1", "cannot hold"),
        ("epoch < 3", "cannot hold"),
        ("epoch // 2", "cannot hold"),
        ("True", "cannot hold 'True'"),
        ("1j", "cannot hold"),
        ("'1'", "cannot hold"),
        ("f'{epoch}'", "cannot hold"),
        ("(x := 2)", "cannot hold"),
        ("cos(x=1)", "cannot hold"),
        ("max(*epoch, 1)", "cannot hold"),
        ("cos(1, 2)", "cos takes one number"),
        ("max(1)", "max takes two or more numbers"),
        ("exp()", "exp takes one number"),
        ("", "is not a formula"),
        ("1 +", "is not a formula"),
        ("epoch; epoch", "is not a formula"),
        ("(" * 150 + ")" * 10, "is not a formula"),
        ("1" * 201, "at most 200 characters"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse_formula(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "1 / epoch",
        "sqrt(epoch - 1)",
        "epoch - 1",
        "(epoch - 1) ** 0.5",
        "9 ** 9 ** 9 ** 9",
        "1e999",
    ],
)
def test_a_value_that_is_no_rate_is_refused_with_its_epoch(text: str) -> None:
    with pytest.raises(ValueError, match="at epoch 0 of 10 it is"):
        value_at(text, 0, 10)
