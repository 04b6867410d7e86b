"""What bad input gets: a sentence, bounded time, and the earlier state intact."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from test_groups import groups_of, held, move, run

from callboard_kernel import bundles
from callboard_kernel.tracker import Tracker


@pytest.fixture
def tracker(session):
    return Tracker()


def refused(delta):
    return {entry["name"]: entry["reason"] for entry in delta.refused}


def check_the_rest(session, tracker, kept, delta):
    """`good` is as it was, and what is held can be loaded."""
    held(delta, kept)
    assert "variables:good" not in groups_of(delta) and "variables:good" not in delta.removed
    move(session, tracker, kept)
    assert session["good"] == [1, 2]


@pytest.fixture
def kept(session, tracker):
    run(session, "good = [1, 2]")
    return held(tracker.capture())


def test_a_variable_of_20_gb_is_refused_before_it_is_read(session, tracker, kept):
    # Never written, so it needs no memory; to read it would take it all.
    session["big"] = np.zeros(20 << 30, "u1")
    session["strided"] = session["big"][::2]
    session["boxed"] = {"inside": [np.zeros(20 << 30, "u1")]}
    start = time.process_time()
    delta = tracker.capture()
    assert time.process_time() - start < 5, "it was read"
    reasons = refused(delta)
    assert set(reasons) == {"big", "strided", "boxed"}
    assert all("20,480 MiB" in reason and "state_mib_max" in reason for reason in reasons.values())
    check_the_rest(session, tracker, kept, delta)


def test_what_does_not_fit_beside_the_others_is_refused_and_views_count_once(session, tracker, kept):
    tracker.state_bytes_max = 40 << 20
    run(session, "import numpy as np\na = np.ones(3 << 20); views = [a[1:], a[2:]]; v = a[5:]\nb = np.ones(3 << 20)")
    delta = tracker.capture()
    assert set(refused(delta)) == {"b"}
    check_the_rest(session, tracker, kept, delta)


def test_a_stream_over_the_limit_is_cut_off(session, tracker, kept):
    tracker.state_bytes_max = 4 << 20
    run(session, "big = list(range(3_000_000))")
    delta = tracker.capture()
    assert set(refused(delta)) == {"big"}
    check_the_rest(session, tracker, kept, delta)


def test_a_million_tiny_names_are_named_and_the_oldest_are_carried(session, tracker, kept):
    for number in range(1_000_000):
        session[f"x{number}"] = number
    delta = tracker.capture()
    oldest = bundles.SMALL_NAMES_MAX
    reason = refused(delta)["*"]
    assert f"{1_000_000 - oldest:,} names from 'x{oldest}' on" in reason and "dict" in reason
    groups = groups_of(delta)
    assert len(groups) <= 64 and sum(map(len, groups.values())) == oldest
    assert len(str(delta.upsert)) < 300_000, "it does not fit into one entry of the log"
    for number in range(oldest, 1_000_000):
        del session[f"x{number}"]
    held(delta, kept)
    session["x7"] = -7
    delta = tracker.capture()
    assert delta.refused == [] and len(groups_of(delta)) == 1
    check_the_rest(session, tracker, kept, delta)
    assert session["x7"] == -7 and session[f"x{oldest - 1}"] == oldest - 1
    assert [entry["group"] for entry in tracker.capture().upsert if entry["kind"] == "variables"] == []


def test_too_many_lists_are_named(session, tracker, kept, monkeypatch):
    monkeypatch.setattr(bundles, "OTHER_NAMES_MAX", 10)
    for number in range(30):
        session[f"l{number}"] = [number]
    delta = tracker.capture()
    assert "21 names from 'l9' on" in refused(delta)["*"]
    check_the_rest(session, tracker, kept, delta)


def test_a_reduce_that_raises_costs_its_name(session, tracker, kept):
    run(session, "class R:\n    def __reduce__(self): raise OSError('disk on fire')\nbad = R()")
    delta = tracker.capture()
    assert "disk on fire" in refused(delta)["bad"]
    check_the_rest(session, tracker, kept, delta)


@pytest.mark.parametrize(
    "hang",
    [
        "import time; time.sleep(3600)",
        "while True: pass",
        "while True:\n            try:\n                while True: pass\n            except Exception: pass",
    ],
)
def test_a_reduce_that_hangs_is_cut_off_at_the_budget(session, tracker, kept, hang):
    run(session, f"class R:\n    def __reduce__(self):\n        {hang}\nbad = R()")
    tracker.budget_s = 0.3
    delta = tracker.capture()
    assert refused(delta)["bad"].startswith("time budget")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    check_the_rest(session, tracker, kept, delta)


def test_a_huge_list_of_plain_values_is_cut_off_inside_the_pickler(session, tracker, kept):
    run(session, "big = [float(i) for i in range(4_000_000)]")
    tracker.budget_s = 0.02
    delta = tracker.capture()
    assert refused(delta)["big"].startswith("time budget")
    assert delta.elapsed_ms < 5_000
    tracker.budget_s = 60.0
    assert "variables:big" in groups_of(tracker.capture())


def test_hashing_a_large_array_is_cut_off_too(session, tracker, kept, monkeypatch):
    monkeypatch.setenv("CALLBOARD_DIRTY_PAGES", "off")
    run(session, "import numpy as np\nbig = np.ones(25_000_000)")
    tracker.budget_s = 0.03
    delta = tracker.capture()
    assert refused(delta)["big"].startswith("time budget")
    check_the_rest(session, tracker, kept, delta)


def test_the_sessions_own_alarm_goes_off_after_the_capture(session, tracker):
    rang = threading.Event()
    previous = signal.signal(signal.SIGALRM, lambda *_: rang.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        run(session, "class R:\n    def __reduce__(self):\n        import time; time.sleep(0.2); return int, ()\nr = R()")
        tracker.capture()
        assert rang.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_reduce_that_deletes_files_and_names_takes_only_those(session, tracker, kept, tmp_path):
    (tmp_path / "victim").write_text("x")
    session["root"] = str(tmp_path)
    run(
        session,
        "other = [3]\nclass R:\n    def __reduce__(self):\n        import os\n"
        "        os.path.exists(root + '/victim') and os.remove(root + '/victim')\n"
        "        globals().pop('other', None); globals().pop('good', None)\n        return int, ()\nbad = R()",
    )
    delta = tracker.capture()
    assert delta.refused == []
    # As of the moment the capture began.
    assert "variables:other" in groups_of(delta)
    held(delta, kept)
    assert sorted(tracker.capture().removed) == ["variables:good", "variables:other"]
    move(session, tracker, kept)
    assert session["good"] == [1, 2] and session["other"] == [3]


class _Changing:
    """Changes a dict of the session each time it is pickled, as a thread could."""

    def __init__(self, target, times):
        self.target, self.left = target, times

    def __reduce__(self):
        if self.left:
            self.left -= 1
            self.target[len(self.target) + 1000] = 1
        return int, ()


@pytest.mark.parametrize(("times", "is_refused"), [(1, False), (1000, True)])
def test_a_dict_that_changes_while_it_is_captured_is_tried_again_then_refused(
    session, tracker, kept, times, is_refused
):
    target = {}
    target[0], target[1] = _Changing(target, times), 2
    session["moving"] = target
    delta = tracker.capture()
    assert ("moving" in refused(delta)) == is_refused
    if is_refused:
        assert "another thread" in refused(delta)["moving"]
        check_the_rest(session, tracker, kept, delta)


def test_threads_that_write_to_everything_break_no_capture(session, tracker, kept):
    run(session, "d = {i: [i] for i in range(20_000)}; l = [[i] for i in range(20_000)]\nimport numpy as np\na = np.zeros(300_000)")
    stop = threading.Event()

    def write(number):
        count = 0
        while not stop.is_set():
            count += 1
            session["d"][(number, count % 5000)] = [count]
            session["d"].pop((number, (count + 2500) % 5000), None)
            session["l"].append([count])
            session["l"].pop(0)
            session["a"][count % 300_000] = count

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            delta = tracker.capture()
            assert all("another thread" in reason for reason in refused(delta).values())
            held(delta, kept)
            tracker.sent(delta)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    delta = tracker.capture()
    assert delta.refused == []
    held(delta, kept)
    wanted = {name: session[name] for name in ("d", "l")}, session["a"].copy()
    assert move(session, tracker, kept) == []
    assert ({name: session[name] for name in ("d", "l")}) == wanted[0] and np.array_equal(session["a"], wanted[1])
