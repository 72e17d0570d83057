from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.conformance.pair import RANKS, run_on_both
from transferbench.methods.parts.batch_norm import GlobalBatchNorm, synchronize_batch_norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Flatten(1))


def test_replacing_keeps_tensors_names_and_activations() -> None:
    module = network()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = list(module.state_dict())
    x = torch.randn(4, 3, 5, 5)
    expected = network()(x)
    assert synchronize_batch_norm(module) is module
    assert isinstance(module[1], GlobalBatchNorm)
    assert isinstance(module[2], GlobalBatchNorm)
    assert list(module.state_dict()) == names
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(after[name] is tensor for name, tensor in tensors.items())
    assert torch.equal(module(x), expected)
    assert (module(x) >= 0).all()  # the activation of timm's layer is still there
    assert isinstance(synchronize_batch_norm(nn.BatchNorm1d(3)), GlobalBatchNorm)


def test_replacing_keeps_options() -> None:
    norm = nn.BatchNorm1d(3, eps=0.1, momentum=None, affine=False).eval()
    replaced = synchronize_batch_norm(norm)
    assert isinstance(replaced, GlobalBatchNorm)
    assert (replaced.eps, replaced.momentum, replaced.affine) == (0.1, None, False)
    assert not replaced.training
    assert replaced.weight is None


def normalized(
    x: Tensor, momentum: float | None
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Outputs, gradient, output in evaluation mode, and state, after two training passes."""
    norm = synchronize_batch_norm(nn.BatchNorm2d(3, momentum=momentum).double())
    x.requires_grad_()
    norm(x * 2 + 1)
    output = norm(x)
    (output**3 * torch.arange(1.0, 3.0).view(1, 1, 2, 1)).sum().backward()
    assert x.grad is not None
    return output, x.grad, norm.eval()(x), norm.state_dict()


def test_two_processes_normalize_as_one() -> None:
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x + 100.0  # a large mean shows a variance that loses digits
    for momentum in (0.1, None):
        output, grad, evaluated, state = normalized(x.clone(), momentum)
        replies = run_on_both(normalized, [(half, momentum) for half in x.chunk(RANKS)])
        torch.testing.assert_close(torch.cat([r[0] for r in replies]), output)
        torch.testing.assert_close(torch.cat([r[1] for r in replies]), grad)
        torch.testing.assert_close(torch.cat([r[2] for r in replies]), evaluated)
        for reply in replies:
            for name, value in state.items():
                torch.testing.assert_close(torch.as_tensor(reply[3][name]), value, msg=name)
