"""Solutions kept for a sweep that goes on, also where two processes have the same sweep."""

import tempfile

import numpy as np
import pytest

from transferbench.protocols.kept import KeptPoints
from transferbench.protocols.newton import Point

pytestmark = pytest.mark.usefixtures("fresh_cache")

POINT = Point(1.0, np.ones((2, 3)), np.zeros(2), 4.0, 0.1, 5, True, 1e-5)


def test_one_process_forgets_a_sweep_while_another_keeps_on_writing_it(monkeypatch):
    ours, theirs = KeptPoints(["a sweep"]), KeptPoints(["a sweep"])
    theirs.write(0, POINT)
    make = tempfile.mkstemp

    def after_they_finished(*arguments, **options):
        theirs.clear()
        return make(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", after_they_finished)
        ours.write(1, POINT)
    assert ours.read(0) is None
    assert ours.read(1).objective == 4.0


def test_forgetting_one_sweep_leaves_the_others(fresh_cache):
    one, other = KeptPoints(["one"]), KeptPoints(["other"])
    one.write(0, POINT)
    other.write(0, POINT)
    one.clear()
    assert one.read(0) is None
    assert other.read(0) is not None
    other.clear()
    assert not list(fresh_cache.glob("sweeps/*"))
