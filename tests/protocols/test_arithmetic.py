"""Flags of precision: what a program has chosen, in whichever way, is set aside and comes back."""

import subprocess
import sys

import pytest

CODE = """
import torch
from transferbench.protocols.arithmetic import arithmetic

places = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
          torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]
{choose}
torch.backends.cudnn.benchmark = True
before = [place.fp32_precision for place in places]
a = torch.rand(64, 64)
try:
    with arithmetic(tf32=False, benchmark=False, deterministic=True), torch.no_grad():
        inside = [place.fp32_precision for place in places]
        flags = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
        assert (a @ a).sub(a.double() @ a.double()).abs().max() < 1e-4
        with torch.backends.cudnn.flags(enabled=True):  # a module's own
            pass
        raise KeyError
except KeyError:
    pass
assert set(inside) == {{"ieee"}}, inside
assert flags == (False, True)
assert [place.fp32_precision for place in places] == before
assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, False)
with arithmetic(tf32=True, benchmark=False, deterministic=False):
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
"""


@pytest.mark.parametrize(
    "choose",
    [
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_precision_is_that_of_float32_inside_and_as_chosen_after(choose: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(choose=choose)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
