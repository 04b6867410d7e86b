"""Tensors, modules and optimizers. PyTorch is no dependency of ours: `scripts/test-tensors` runs its
tests with Debian's.
"""

from __future__ import annotations

import importlib.util

import pytest
from test_groups import groups_of, held, move, run, sent_bytes

from callboard_kernel import tensors
from callboard_kernel.tracker import Tracker

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: this test needs it"
)


@pytest.fixture
def tracker(session):
    return Tracker()


@needs_torch
def test_with_torch_tensors_that_share_a_storage_still_do(session, tracker):
    run(session, "import torch\na = torch.arange(1_000_000.); v = a[5:].view(-1, 5)[::2]; t = a.t(); e = torch.empty(0); h = a.half(); n = torch.tensor(3)")
    delta = tracker.capture()
    assert delta.refused == [] and ["a", "t", "v"] in groups_of(delta).values()
    # One storage of 4 MB, and the half of it.
    assert sum(len(piece) for pieces in delta.buffers for piece in pieces) < 6_100_000
    kept = held(delta)
    assert tracker.capture().upsert == []
    run(session, "v[1, 1] = -1")
    delta = tracker.capture()
    assert 0 < sent_bytes(delta, "variables:a") <= 2 * (256 << 10)
    held(delta, kept)
    assert move(session, tracker, kept) == []
    run(session, "assert a[16] == -1 and v.shape == (100_000, 5) and h.dtype is torch.float16 and n == 3 and e.numel() == 0")
    run(session, "v[0, 0] = 7; assert a[5] == 7 and t[5] == 7")


@needs_torch
def test_with_torch_a_model_in_training_goes_on_where_it_was(session, tracker):
    run(
        session,
        "import torch\ntorch.manual_seed(0)\nmodel = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Dropout(0.1), torch.nn.Linear(256, 1))\n"
        "opt = torch.optim.Adam(model.parameters()); x = torch.randn(32, 64)\n"
        "def step():\n    opt.zero_grad(); loss = model(x).square().mean(); loss.backward(); opt.step(); return float(loss)\n"
        "for _ in range(5): step()\nmodel(x).sum().backward()",
    )
    kept = held(tracker.capture())
    assert ["model", "opt"] in [group.names for group in tracker.groups.values()]
    run(session, "grads = [p.grad.clone() for p in model.parameters()]; expected = [step() for _ in range(5)]")
    expected, grads = session["expected"], session["grads"]
    assert move(session, tracker, kept) == []
    run(session, "assert opt.param_groups[0]['params'][0] is model[0].weight and type(model[0].weight) is torch.nn.Parameter")
    assert all(bool((p.grad == g).all()) for p, g in zip(session["model"].parameters(), grads))
    run(session, "again = [step() for _ in range(5)]")
    assert session["again"] == expected


@needs_torch
@pytest.mark.parametrize("is_there", [True, False])
def test_with_torch_a_tensor_on_a_device_is_parked_on_the_host(session, tracker, monkeypatch, is_there):
    run(session, "import torch\nweights = torch.ones(500_000); rows = weights[:10]; host = torch.zeros(10)")
    pointer, log = session["weights"].data_ptr(), []
    monkeypatch.setattr(tensors, "device_of", lambda tensor: "cuda:0" if tensor.data_ptr() == pointer else "cpu")

    def to_host(storage):
        log.append("parked")
        return storage.clone()

    def to_device(storage, device):
        if not is_there:
            raise RuntimeError("no such device")
        log.append(device)
        return storage

    monkeypatch.setattr(tensors, "to_host", to_host)
    monkeypatch.setattr(tensors, "to_device", to_device)
    delta = tracker.capture()
    assert log == ["parked"] and ["rows", "weights"] in groups_of(delta).values()
    pointer = None
    assert move(session, tracker, held(delta)) == []
    assert log == ["parked"] + ["cuda:0"] * is_there
    run(session, "rows[3] = 5; assert weights[3] == 5 and weights.sum() == 500_004 and host.sum() == 0")


@needs_torch
def test_with_torch_what_is_no_plain_tensor_goes_its_own_way(session, tracker):
    run(session, "import torch\ns = torch.eye(3).to_sparse(); c = torch.ones(2, dtype=torch.complex64).conj(); y = torch.ones(3, requires_grad=True) * 2")
    kept = held(tracker.capture())
    assert move(session, tracker, kept) == []
    run(session, "assert s.is_sparse and bool((s.to_dense() == torch.eye(3)).all()) and c.sum() == 2 and y.sum() == 6")
