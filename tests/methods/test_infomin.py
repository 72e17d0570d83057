from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.conformance.bed import (
    BATCH,
    Data,
    TinyNet,
    build,
    detached,
    optimizer_of,
    tiny_vit,
    train_step,
)
from transferbench.errors import UserError
from transferbench.methods.infomin import InfoMin
from transferbench.methods.method import Context
from transferbench.methods.parts.batch_norm import ReplacingBatchNorm


def make(
    views: tuple[int, ...] = (16, 16, 18), backbone: torch.nn.Module | None = None, **settings: Any
) -> InfoMin:
    context = Context(
        num_images=64,
        num_classes=None,
        view_sizes=views,
        batch_size=BATCH,
        total_steps=4,
        steps_per_epoch=4,
        epochs=1,
    )
    given = {"queue_size": 20, "patch": 4, "batch_norm_groups": 2, **settings}
    return InfoMin(InfoMin.Settings(**given), backbone or TinyNet(), context)


def test_keys_move_after_the_optimizer_towards_the_new_weights() -> None:
    method: Any = build("infomin")
    data = Data("infomin")
    keys = method.key_encoder.projector[0].weight
    start = keys.clone()
    assert torch.equal(start, method.projector[0].weight)
    method.before_step(data.step(0)[1])
    assert torch.equal(keys, start)
    train_step(method, optimizer_of(method, lr=0.5), data, 0)
    new = method.projector[0].weight
    assert not torch.allclose(new, start, atol=1e-4)
    torch.testing.assert_close(keys, start * 0.9 + new * 0.1)


def test_a_queue_that_no_batch_divides_wraps_around() -> None:
    method = make()
    views, batch = Data("infomin").step(0)
    old = method.queue.rows.clone()
    embeddings = detached(method.embed(views, batch))
    for _ in range(3):
        method.after_step(embeddings, batch)
    assert int(method.queue.pointer) == 4
    keys = embeddings["k"]
    assert torch.equal(method.queue.rows[16:], keys[:4])
    assert torch.equal(method.queue.rows[:4], keys[4:])
    assert not torch.equal(method.queue.rows[4:16], old[4:16])


def test_at_the_start_a_view_finds_its_own_key() -> None:
    """ln(1 + K exp(spread - 1/T)) for equal encoders of one view and a random queue."""
    method: Any = build(
        "infomin",
        jigsaw_weight=0.0,
        batch_norm_groups=1,
        queue_size=512,
        temperature=0.2,
        projector_output=64,
    )
    views, batch = Data("infomin").step(0)
    with torch.no_grad():
        loss = float(method((views[0], views[0], views[2]), batch))
    spread = 1 / (2 * 64 * 0.2**2)
    assert loss == pytest.approx(math.log1p(512 * math.exp(spread - 5)), rel=0.1)


def test_an_image_s_patches_are_of_its_batch_norm_group() -> None:
    """Changing the puzzles of one group leaves the embeddings of the other as they are."""
    method = make(batch_norm_groups=2)
    views, batch = Data("infomin").step(0)
    chance = batch.generator.get_state()
    before = method.embed(views, batch)
    assert any(isinstance(module, ReplacingBatchNorm) for module in method.backbone.modules())
    changed = views[2].clone()
    changed[::2] += torch.randn(changed[::2].shape, generator=torch.Generator().manual_seed(1))
    batch.generator.set_state(chance)
    after = method.embed((*views[:2], changed), batch)
    for name in ("q", "k"):
        assert torch.equal(before[name], after[name])
    torch.testing.assert_close(before["q_jigsaw"][1::2], after["q_jigsaw"][1::2])
    apart = (before["q_jigsaw"][::2] - after["q_jigsaw"][::2]).abs().amax(1)
    assert (apart > 1e-4).all()


def test_each_query_s_loss_has_its_weight() -> None:
    data = Data("infomin")
    views, batch = data.step(0)
    embeddings = detached(build("infomin").embed(views, batch))
    losses = [
        float(build("infomin", jigsaw_weight=weight).loss(embeddings, batch))
        for weight in (0.0, 0.3, 1.0)
    ]
    assert losses[1] == pytest.approx(0.7 * losses[0] + 0.3 * losses[2], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="views: infomin takes exactly 3 views"):
        make((16, 18))
    with pytest.raises(UserError, match=r"settings\.queue_size: 7 rows .* one batch of 8"):
        make(queue_size=7)
    with pytest.raises(UserError, match=r"settings\.patch: 8 px are more than a cell"):
        make(patch=8)
    with pytest.raises(UserError, match=r"settings\.patch: infomin passes patches of 4 px"):
        make(backbone=tiny_vit())
