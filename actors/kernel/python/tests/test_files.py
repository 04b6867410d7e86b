"""Files of the working directory, carried from one node's root to another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Kernel

MIB = 1 << 20


class Roots:
    """Kernels with a root of their own each, as on nodes that share no file system."""

    def __init__(self, base: Path) -> None:
        self.base, self.open = base, []

    def start(self, name: str, **options) -> Kernel:
        kernel = Kernel(root=self.base / name, **options)
        self.open.append(kernel)
        # A restore is what a term begins with; the first one is of an empty session.
        kernel.node.send({"type": "restore", "groups": [], "execution_count": 1}, [])
        kernel.node.wait_for("restored")
        return kernel

    def move(self, old: Kernel, name: str, **options) -> Kernel:
        """Ends a kernel and restores it elsewhere; nothing of the old root can be used after."""
        node = old.node
        old.close()
        self.open.remove(old)
        new = Kernel(root=self.base / name, **options)
        self.open.append(new)
        new.failed = new.node.restore_from(node)
        return new


@pytest.fixture
def roots(tmp_path):
    made = Roots(tmp_path)
    yield made
    for kernel in made.open:
        kernel.close()


def sent(reply):
    return {entry["group"] for entry in reply["captured"]["upsert"] if entry["kind"] == "file"}


def refused(reply):
    return {entry["name"]: entry["reason"] for entry in reply["captured"]["refused"]}


def test_files_move_with_content_mode_time_and_directories(roots, tmp_path):
    one = roots.start("one")
    one.run(
        "import os, sqlite3, pathlib\n"
        "open('notes.txt', 'w').write('hello')\n"
        "os.makedirs('sub/deep'); os.mkdir('empty')\n"
        "open('sub/deep/run.sh', 'w').write('#!/bin/sh\\n'); os.chmod('sub/deep/run.sh', 0o755)\n"
        "os.utime('notes.txt', ns=(1, 1_600_000_000_123_456_789))\n"
        "blob = os.urandom(10 << 20); open('blob.bin', 'wb').write(blob)\n"
        "db = sqlite3.connect('t.db'); db.execute('create table t (x)'); db.execute('insert into t values (7)')\n"
        "db.commit(); db.close(); del db\n"
        "os.symlink('notes.txt', 'link'); os.symlink(os.path.abspath('sub'), 'absolute')\n"
        "os.chdir('sub'); import sys; sys.path.append(os.path.abspath('deep'))"
    )
    two = roots.move(one, "two")
    assert two.failed == []
    two.run(
        "assert os.getcwd() == %r, os.getcwd()\n"
        "assert sys.path[-1] == %r, sys.path\n"
        "assert str(_dh[0]) == %r, _dh\n"
        "os.chdir('..')\n"
        "assert open('notes.txt').read() == 'hello' == open('link').read()\n"
        "assert os.stat('notes.txt').st_mtime_ns == 1_600_000_000_123_456_789\n"
        "assert os.stat('sub/deep/run.sh').st_mode & 0o777 == 0o755 and os.listdir('empty') == []\n"
        "assert os.readlink('absolute') == 'sub' and os.listdir('absolute') == ['deep']\n"
        "assert open('blob.bin', 'rb').read() == blob\n"
        "assert sqlite3.connect('t.db').execute('select x from t').fetchall() == [(7,)]"
        % (str(tmp_path / "two/sub"), str(tmp_path / "two/sub/deep"), str(tmp_path / "two"))
    )


def test_only_what_changed_is_sent_and_a_move_sends_nothing(roots):
    one = roots.start("one")
    assert sent(one.run("open('log', 'w').write('a\\n'); open('big', 'wb').write(bytes(1 << 20))")) >= {"file:big"}
    one.run("import time; time.sleep(0.1)")
    one.run("time.sleep(0.1)")
    assert sent(one.run("x = 1")) == set()
    appended = sent(one.run("open('log', 'a').write('b\\n')"))
    assert len(appended) == 1 and "file:big" not in appended
    two = roots.move(one, "two")
    assert sent(two.run("open('log').read() == 'a\\nb\\n' or 1/0")) == set()


def test_deleted_and_renamed_files_stay_deleted_and_renamed(roots, tmp_path):
    one = roots.start("one")
    one.run("for n in 'abc': open(n, 'w').write(n * 100_000)")
    reply = one.run("import os; os.remove('a'); os.rename('b', 'renamed')")
    assert {"file:a", "file:b"} <= set(reply["captured"]["removed"])
    two = roots.move(one, "two")
    two.run("assert sorted(os.listdir()) == ['c', 'renamed'] and open('renamed').read() == 'b' * 100_000")


def test_a_root_of_a_former_term_is_made_equal_and_its_own_files_are_kept_aside(roots, tmp_path):
    one = roots.start("one")
    one.run("open('kept', 'w').write('new'); import os; os.mkdir('d')")
    old = tmp_path / "two"
    (old / "stale").mkdir(parents=True)
    (old / "stale/x").write_text("old")
    (old / "kept").write_text("old")
    (old / "d").write_text("a file where a directory goes")
    two = roots.move(one, "two")
    reply = two.run("assert sorted(os.listdir()) == ['d', 'kept'] and open('kept').read() == 'new'")
    assert "was moved to" in reply["stderr"] and "stale" in reply["stderr"]
    assert "was moved to" not in two.run("1")["stderr"]
    assert (tmp_path / "two.before/stale/x").read_text() == "old"
    assert (tmp_path / "two.before/kept").read_text() == "old"


def test_an_open_handle_is_refused_and_its_file_is_carried(roots):
    one = roots.start("one")
    reply = one.run("handle = open('f', 'w'); handle.write('text'); handle.flush()")
    assert "handle" in refused(reply) and "f" not in refused(reply)
    two = roots.move(one, "two")
    two.run("assert open('f').read() == 'text'")


def test_what_is_over_a_limit_is_named_once_and_again_after_the_move(roots, tmp_path):
    limits = {"file_bytes_max": MIB, "total_bytes_max": 2 * MIB, "files_max": 6}
    one = roots.start("one", **limits)
    reply = one.run("open('large', 'wb').write(bytes(1 << 21)); open('fine', 'w').write('1')")
    assert "carry_file_max_mib" in refused(reply)["large"] and "fine" not in refused(reply)
    assert reply["stderr"].count("'large' (file) cannot be carried") == 1
    assert "large" not in one.run("1")["stderr"]
    reply = one.run("for n in range(3): open(f'm{n}', 'wb').write(bytes(800 << 10))")
    assert "carry_files_total_max_mib" in refused(reply)["m2"] and "m1" not in refused(reply)
    reply = one.run("for n in range(40): open(f's{n:02}', 'w').write('x')")
    assert "carry_files_max" in refused(reply)["s03"] and "more than 12 entries" in refused(reply)["."]
    two = roots.move(one, "two", **limits)
    reply = two.run("import os; print(sorted(os.listdir()))")
    assert "['fine', 'm0', 'm1', 's00', 's01', 's02']" in reply["stdout"]
    assert "these files stayed behind: " in reply["stderr"] and "large" in reply["stderr"]
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        two.run("open('large')")


def test_a_file_that_was_not_carried_is_left_alone_if_the_session_comes_back_to_it(roots, tmp_path):
    limits = {"file_bytes_max": MIB}
    one = roots.start("one", **limits)
    one.run("open('large', 'wb').write(bytes(1 << 21))")
    again = roots.move(one, "one", **limits)
    reply = again.run("import os; assert os.path.getsize('large') == 1 << 21")
    assert "stayed behind" not in reply["stderr"]


def test_shared_directories_are_neither_carried_nor_named(roots, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    limits = {"shared": [str(shared)], "file_bytes_max": MIB}
    one = roots.start("one", **limits)
    reply = one.run(
        f"import os; os.symlink({str(shared)!r}, 'data'); os.chdir('data')\n"
        "open('big', 'wb').write(bytes(1 << 21)); open('small', 'w').write('s')"
    )
    assert refused(reply) == {}
    assert not any("big" in name or "small" in name for entry in reply["captured"]["upsert"] for name in entry["names"])
    two = roots.move(one, "two", **limits)
    two.run(f"assert os.getcwd() == {str(shared)!r} and os.readlink({str(tmp_path / 'two/data')!r}) == {str(shared)!r}")
    root = roots.start("shared/root", **limits)
    assert sent(root.run("open('f', 'w').write('all see it')")) == set()


def test_hostile_names_and_links_are_carried_or_named(roots, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    one = roots.start("one")
    reply = one.run(
        "import os\n"
        "names = ['two\\nlines', 'ünï 文', ' ', '-rf', 'q\"\\\\', '\\udcff bytes', 'x' * 255]\n"
        "for n in names: open(n, 'w').write(ascii(n))\n"
        "open('\\udcfe large', 'wb').write(bytes(100_000))\n"
        f"os.symlink({str(outside)!r}, 'away'); os.symlink('../outside/secret', 'up'); os.symlink('nowhere', 'dangling')\n"
        "os.symlink('away', 'chain'); os.mkfifo('pipe'); os.symlink('loop', 'loop')\n"
    )
    assert {"away", "up", "chain", "pipe"} <= set(refused(reply))
    assert "secret" not in str(reply["captured"]["upsert"])
    two = roots.move(one, "two")
    two.run(
        "for n in names: assert open(n).read() == ascii(n), n\n"
        "assert os.path.getsize('\\udcfe large') == 100_000 and os.readlink('dangling') == 'nowhere'\n"
        "assert not any(map(os.path.lexists, ['away', 'up', 'chain', 'pipe']))"
    )
    assert (outside / "secret").read_text() == "s"


def test_many_files_left_behind_are_counted_and_not_all_named():
    from callboard_kernel.files import summary

    named = summary([(f"f{n:03}\udcff", "too many") for n in range(100)])
    assert len(named) == 20 and named[0] == ("f000\\xff", "too many") and named[-1] == ("81 more files", "too many")


def test_a_path_that_leads_out_of_the_directory_is_refused_by_the_restore(roots, tmp_path):
    one = roots.start("one")
    one.run("open('f', 'w').write('evil')")
    key = next(key for key in one.node.groups if key.startswith("files:"))
    entry, parts = one.node.groups[key]
    one.node.groups[key] = (entry, [parts[0].replace(b'"path": "f"', b'"path": "../f"'), *parts[1:]])
    two = roots.move(one, "two")
    assert any("leads out" in item["reason"] for item in two.failed) and not (tmp_path / "f").exists()


def test_a_directory_that_is_not_there_falls_back_to_the_root_and_says_so(roots, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    one = roots.start("one")
    reply = one.run(f"import os; os.chdir({str(elsewhere)!r}); open('w', 'w').write('1')")
    assert "outside the session's directory" in refused(reply)[str(elsewhere / "w")]
    (elsewhere / "w").unlink()
    elsewhere.rmdir()
    two = roots.move(one, "two")
    reply = two.run("print(os.getcwd())")
    assert reply["stdout"].strip() == str(tmp_path / "two")
    assert "cannot be used on this machine" in reply["stderr"] and "stayed behind" in reply["stderr"]


def test_a_file_that_changes_while_it_is_read_is_named(roots, monkeypatch):
    one = roots.start("one")
    reply = one.run(
        "import callboard_kernel.files as module, os\n"
        "real = os.fstat\n"
        "def restless(fd):\n    os.utime(fd); return real(fd)\n"
        "open('busy', 'w').write('1'); module.os.fstat = restless",
    )
    assert "changes while it is read" in refused(reply)["busy"]
    assert "busy" not in refused(one.run("os.fstat = real"))


def test_ten_thousand_small_files_fit_into_few_groups(roots):
    one = roots.start("one")
    reply = one.run("for n in range(9_900): open(f'{n:05}.txt', 'w').write(str(n))")
    assert len(sent(reply)) == 64 and refused(reply) == {}
    two = roots.move(one, "two")
    two.run("import os; assert len(os.listdir()) == 9_900 and open('00042.txt').read() == '42'")


def test_a_kernel_without_a_root_and_a_log_without_files_work_as_before(roots, tmp_path):
    with Kernel(directory=tmp_path) as plain:
        assert sent(plain.run("open('f', 'w').write('1'); x = 1")) == set()
        two = Kernel(root=tmp_path / "two")
        roots.open.append(two)
        assert two.node.restore_from(plain.node) == []
        two.run("assert x == 1")
