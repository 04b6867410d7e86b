"""Grouping, pickling and change detection, without a kernel."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from node_side import patched

from callboard_kernel import graph, live, pickler
from callboard_kernel.fingerprint import fingerprint, same
from callboard_kernel.placeholder import Unavailable
from callboard_kernel.restore import HeldGroup, Restore
from callboard_kernel.tracker import Tracker

SEED = 20241122
# Of the groups that `held` keeps.
VERSIONS = {}


def run(session, code):
    exec(compile(code, "<cell>", "exec"), session)


def groups_of(delta):
    return {entry["group"]: entry["names"] for entry in delta.upsert if entry["kind"] == "variables"}


def held(delta, kept=None):
    """Adds a delta to what a node would hold."""
    kept = {} if kept is None else kept
    position = 0
    for entry in delta.upsert:
        sent = [b"".join(pieces) for pieces in delta.buffers[position : position + entry["parts"]]]
        before = kept.get(entry["group"])
        held_parts = [before.stream, *before.buffers] if before else []
        parts = [bytearray(part) for part in patched(entry, sent, held_parts, VERSIONS.get(entry["group"]))]
        VERSIONS[entry["group"]] = entry["version"]
        position += entry["parts"]
        kept[entry["group"]] = HeldGroup(entry["group"], entry["names"], entry["kind"], parts[0], parts[1:])
    for key in delta.removed:
        kept.pop(key, None)
    return kept


def move(session, tracker, kept):
    """Restores into the same namespace, emptied first as on another machine."""
    return Restore(tracker, list(kept.values()), 1).run()


@pytest.fixture
def tracker(session):
    return Tracker()


def test_names_that_share_a_mutable_object_are_one_group(session, tracker):
    run(session, "a = []; b = {'a': a}; c = [1]; d = (1, 'x'); e = d")
    names = sorted(groups_of(tracker.capture()).values())
    assert names == [["a", "b"], ["c"], ["d"], ["e"]]


def test_an_unchanged_session_sends_nothing(session, tracker):
    run(session, "a = [1]; x = 1\nclass C: pass\nc = C()\ndef f(k=[]): return x\ng = lambda: 1")
    tracker.capture()
    delta = tracker.capture()
    assert delta.upsert == [] and delta.removed == []


def test_only_the_changed_group_is_sent(session, tracker):
    run(session, "a = [1]; b = [2]; x = 1")
    tracker.capture()
    run(session, "b.append(3)")
    assert list(groups_of(tracker.capture())) == ["variables:b"]


def test_a_deleted_name_is_removed(session, tracker):
    run(session, "a = [1]; b = 2")
    tracker.capture()
    run(session, "del a, b")
    assert sorted(tracker.capture().removed) == ["variables:a", "variables:b"]


def test_equal_pickles_with_other_sharing_count_as_a_change(session, tracker):
    run(session, "p, q = [0], [0]; a = [p, q]; b = [p, q]")
    tracker.capture()
    run(session, "b = [p, list(q)]")
    assert "variables:a" in groups_of(tracker.capture())


@pytest.mark.parametrize(
    "change",
    [
        "arr[0] = 5", "obj.attr = 1", "Cls.extra = 1", "f.note = 1", "f.__defaults__ = (2,)",
        "nested['a'][0].append(1)", "st.add(3)", "ba[0] = 1", "view[:] = 7", "fl[1][0] = 2",
        "Cls.method = lambda self: 2", "set_cell(4)", "dq.append(1)", "f.__code__ = g.__code__",
        "tup[1].append(0)", "push(1)", "Cls.inner.append(1)", "f.__kwdefaults__['z'] = 3",
    ],
)  # fmt: skip
def test_no_change_in_place_is_missed(session, tracker, change):
    run(
        session,
        "import numpy as np\nfrom collections import deque\narr = np.zeros(5); view = np.ones(9)[2:5]\n"
        "class Cls:\n    inner = []\n    def method(self): return 1\nobj = Cls()\n"
        "def f(a=1, *, z=2): return a\ndef g(a=1, *, z=2): return 2\n"
        "nested = {'a': [[]]}; st = {1}; ba = bytearray(b'ab'); fl = [1, [1]]; dq = deque(); tup = (1, []); push = [].append\n"
        "def make():\n    n = 0\n    def set_cell(v):\n        nonlocal n\n        n = v\n    def get(): return n\n"
        "    return set_cell, get\nset_cell, get = make()",
    )
    tracker.capture()
    assert tracker.capture().upsert == []
    run(session, change)
    assert groups_of(tracker.capture()) != {}


def test_what_is_kept_between_captures_has_ids_of_living_objects_only(session, tracker):
    run(session, "class C:\n    def m(self, k: int = 1): return k\n    p = property(m)\ndef f(*, a: int = 1): return a\nt = (1, 'x')")
    tracker.capture()
    kept = [entry for entry in tracker.entries.values() if entry.fingerprint is not None]
    assert len(kept) == 3
    for entry in kept:
        assert set(entry.reached) <= set(map(id, entry.fingerprint))


def test_instances_do_not_join_their_class_but_keep_its_identity(session, tracker):
    run(session, "class C: pass\nx = C(); y = [C()]")
    delta = tracker.capture()
    assert sorted(groups_of(delta).values()) == [["C"], ["x"], ["y"]]
    assert move(session, tracker, held(delta)) == []
    assert type(session["x"]) is session["C"] is type(session["y"][0])


def test_classes_in_a_circle_are_one_group(session, tracker):
    run(session, "class A: pass\nclass B(A): made = A()\nA.b = B")
    assert list(groups_of(tracker.capture()).values()) == [["A", "B"]]


def test_a_restore_in_any_order_gives_the_same_session(session, tracker):
    run(session, "class A: pass\nclass B(A): pass\nbs = [B()]; d = {'b': bs}\ndef f(): return bs\nx = 3")
    kept = held(tracker.capture())
    rng = random.Random(SEED)
    for round_number in range(20):
        keys = list(kept)
        rng.shuffle(keys)
        shuffled = {key: kept[key] for key in keys}
        assert move(session, tracker, shuffled) == [], f"seed {SEED}, round {round_number}, order {keys}"
        assert session["f"]() is session["bs"] is session["d"]["b"]
        assert type(session["bs"][0]) is session["B"] and session["B"].__mro__[1] is session["A"]


def test_after_a_restore_only_changes_are_sent(session, tracker):
    run(session, "import numpy as np\na = np.arange(5000.); v = a[10:]; s = {'k', 'l'}\nclass C: z = [1]\nc = C()\ndef f(k=[1]): return a")
    kept = held(tracker.capture())
    assert move(session, tracker, kept) == []
    assert tracker.capture().upsert == []
    run(session, "v[0] = -1")
    assert groups_of(tracker.capture()) == {"variables:a": ["a", "v"]}


def test_a_restore_replaces_what_was_there(session, tracker):
    run(session, "a = [1]")
    kept = held(tracker.capture())
    run(session, "a.append(2); stray = 1")
    move(session, tracker, kept)
    assert session["a"] == [1] and "stray" not in session


def test_one_bad_member_refuses_only_the_names_that_reach_it(session, tracker):
    run(session, "shared = []; good = [shared]; bad = [shared, (n for n in [1])]; worse = [bad]")
    delta = tracker.capture()
    assert sorted(entry["name"] for entry in delta.refused) == ["bad", "worse"]
    assert groups_of(delta)["variables:good"] == ["good", "shared"]
    assert len(delta.notices) == 2 and tracker.capture().notices == []


def test_a_refused_class_takes_its_instances_along_but_nothing_else(session, tracker):
    run(session, "class C: stuck = (n for n in [1])\nc = C(); fine = [1]")
    delta = tracker.capture()
    assert sorted(entry["name"] for entry in delta.refused) == ["C", "c"]


def test_the_time_budget_refuses_the_rest_by_name(session, tracker):
    tracker.budget_s = 0.0
    run(session, "a = [1]; b = [2]")
    reasons = {entry["name"]: entry["reason"] for entry in tracker.capture().refused}
    assert set(reasons) >= {"a", "b"} and all(reason.startswith("time budget") for reason in reasons.values())


def test_a_value_comes_back_when_the_budget_allows(session, tracker):
    run(session, "a = [1]")
    tracker.budget_s = 0.0
    tracker.capture()
    tracker.budget_s = 60.0
    delta = tracker.capture()
    assert delta.refused == [] and "variables:a" in groups_of(delta)


def test_a_group_that_cannot_be_loaded_becomes_placeholders(session, tracker):
    run(session, "a = [1]; b = 2")
    kept = held(tracker.capture())
    kept["variables:a"].stream = b"not a pickle"
    assert [entry["name"] for entry in move(session, tracker, kept)] == ["a"]
    assert isinstance(session["a"], Unavailable) and session["b"] == 2


def test_a_module_that_is_gone_is_named_and_explains_itself(session, tracker, tmp_path, monkeypatch):
    (tmp_path / "gone_soon.py").write_text("class T: pass\ndef f(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run(session, "import gone_soon as g\nfrom gone_soon import T\nt = T(); ok = 1")
    kept = held(tracker.capture())
    (tmp_path / "gone_soon.py").unlink()
    del sys.modules["gone_soon"]
    assert "gone_soon" in {entry["name"] for entry in move(session, tracker, kept)}
    assert session["ok"] == 1 and "gone_soon" in repr(session["t"])
    with pytest.raises(RuntimeError, match="gone_soon"):
        session["g"].f()


def test_a_placeholder_raises_on_every_use_but_shows_itself():
    stand_in = Unavailable("g", "generator", "it is suspended code")
    assert "suspended" in repr(stand_in) and "suspended" in str(stand_in)
    for use in (
        lambda: stand_in.x, lambda: stand_in(), lambda: list(stand_in), lambda: len(stand_in),
        lambda: stand_in + 1, lambda: stand_in[0], lambda: bool(stand_in), lambda: setattr(stand_in, "x", 1),
        lambda: 1 in stand_in, lambda: next(stand_in), lambda: float(stand_in), lambda: 1 + stand_in,
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="'g'"):
            use()


def test_large_buffers_travel_beside_the_pickle_and_are_writable_after(session, tracker):
    run(session, "import numpy as np\nbig = np.arange(100_000)")
    delta = tracker.capture()
    entry = next(entry for entry in delta.upsert if entry["group"] == "variables:big")
    assert entry["parts"] == 2
    move(session, tracker, held(delta))
    assert session["big"].flags.owndata and session["big"].flags.writeable
    assert np.array_equal(session["big"], np.arange(100_000))


def test_a_view_of_a_large_array_that_nobody_else_holds_travels_alone(session, tracker):
    run(session, "import numpy as np\nsmall = np.zeros(1_000_000)[:10]")
    delta = tracker.capture()
    assert sum(len(piece) for pieces in delta.buffers for piece in pieces) < 100_000


def test_pickles_of_the_namespace_name_it(session):
    session["keep"] = {"ns": session}
    pickled = pickler.dump({"keep": session["keep"]}, pickler.Pass())
    assert pickler.load(pickled.stream, pickled.buffers)["keep"]["ns"] is live.LIVE.user_ns
    assert len(pickled.stream) < 400


def test_partition_joins_circles_of_class_references_only():
    reached = {name: [] for name in "abcde"}
    classes = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}
    assert graph.partition(reached, classes) == [["a"], ["b", "c"], ["d"], ["e"]]


def test_fingerprints_are_only_of_immutable_things(session):
    assert same(fingerprint(5), fingerprint(5)) and not same(fingerprint("a"), fingerprint("b"))
    assert fingerprint(len) and fingerprint([].append) is None
    assert fingerprint([]) is None and fingerprint((1, [])) is None
    run(session, "def f(): pass\ndef g(a=[]): pass\nclass A: x = 1\nclass B: x = []")
    assert fingerprint(session["f"]) and fingerprint(session["A"])
    assert fingerprint(session["g"]) is None and fingerprint(session["B"]) is None
