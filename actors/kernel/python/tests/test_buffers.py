"""What is known of large memory agrees with hashing all of it, with and without watched pages."""

from __future__ import annotations

import mmap
import os
import random
import threading

import numpy as np
import pytest

from callboard_kernel import buffers as buffers_module
from callboard_kernel import dirty
from callboard_kernel.buffers import CHUNKS_MAX, Buffers, chunk_length
from callboard_kernel.digests import digest
from callboard_kernel.refusal import BudgetExceeded

SEED = 20260731
MIB = 1 << 20


@pytest.fixture(params=["watched", "hashed"])
def buffers(request, monkeypatch):
    if request.param == "hashed":
        monkeypatch.setenv(dirty.SWITCH_VARIABLE, "off")
    elif dirty.open_pages() is None:
        pytest.skip("this kernel cannot watch pages: only the hashing half of this test runs here")
    return Buffers()


def of(buffers, *arrays):
    buffers.begin()
    found = [buffers.content(memoryview(array).cast("B"), lambda: None).digests for array in arrays]
    buffers.end()
    return found


def in_full(array):
    view = memoryview(array).cast("B")
    step = chunk_length(view.nbytes)
    return b"".join(digest(view[at : at + step]) for at in range(0, view.nbytes, step))


def agrees(buffers, *arrays):
    assert of(buffers, *arrays) == [in_full(array) for array in arrays]


def test_random_writes_frees_and_reallocations_are_all_seen(buffers):
    rng = random.Random(SEED)
    arrays = [np.zeros(rng.randrange(MIB, 6 * MIB), "u1") for _ in range(4)]
    for round_number in range(60):
        for _ in range(rng.randrange(4)):
            target = rng.randrange(len(arrays))
            array = arrays[target]
            match rng.randrange(6):
                case 0:
                    arrays[target] = np.full(array.nbytes, rng.randrange(256), "u1")
                case 1:
                    arrays[target] = None
                    arrays[target] = np.zeros(rng.choice([array.nbytes, array.nbytes + 4096]), "u1")
                case 2:
                    array.resize(array.nbytes + rng.randrange(2 * MIB), refcheck=False)
                case 3:
                    at = rng.choice([0, array.nbytes - 1, rng.randrange(array.nbytes)])
                    array[at] ^= 1
                case 4:
                    array[rng.randrange(array.nbytes) :: 4097] += 1
                case 5:
                    at = rng.randrange(array.nbytes - 5000)
                    array[at : at + 5000] = array[at]
            del array
        try:
            agrees(buffers, *arrays)
        except AssertionError:
            raise AssertionError(f"seed {SEED}, round {round_number}") from None


def test_overlapping_buffers_each_see_a_write_to_what_they_share(buffers):
    memory = np.zeros(8 * MIB, "u1")
    low, high, whole = memory[: 5 * MIB], memory[3 * MIB :], memory
    agrees(buffers, low, high, whole)
    for at in (4 * MIB, 10, 8 * MIB - 1, 3 * MIB, 5 * MIB - 1):
        memory[at] += 1
        agrees(buffers, low, high, whole)
    memory[4 * MIB] += 1
    agrees(buffers, low)
    agrees(buffers, high, whole)


def test_pages_that_were_given_back_read_as_zeros_and_are_seen(buffers):
    memory = mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"\x01" * len(memory)
    agrees(buffers, memory)
    memory.madvise(mmap.MADV_DONTNEED, MIB, MIB)
    agrees(buffers, memory)
    memory[2 * MIB] = 7
    agrees(buffers, memory)


def test_writes_by_the_kernel_are_seen(buffers, tmp_path):
    memory = np.zeros(4 * MIB, "u1")
    agrees(buffers, memory)
    path = tmp_path / "bytes"
    path.write_bytes(b"\x05" * 100_000)
    with open(path, "rb", buffering=0) as file:
        file.readinto(memoryview(memory)[MIB : MIB + 100_000])
    agrees(buffers, memory)
    read, write = os.pipe()
    os.write(write, b"z" * 4096)
    os.readv(read, [memoryview(memory)[2 * MIB : 2 * MIB + 4096]])
    agrees(buffers, memory)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("shared", [True, False])
def test_memory_behind_a_file_or_shared_with_others_is_never_trusted(buffers, tmp_path, shared):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(4 * MIB))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY)
        agrees(buffers, mapped)
        file.seek(MIB)
        file.write(b"changed")
        file.flush()
        agrees(buffers, mapped)
    anonymous = mmap.mmap(-1, 4 * MIB)
    agrees(buffers, anonymous)
    child = os.fork()
    if child == 0:
        anonymous[MIB] = 9
        os._exit(0)
    os.waitpid(child, 0)
    agrees(buffers, anonymous)


def test_after_a_fork_both_processes_see_their_own_writes(buffers):
    memory = np.zeros(4 * MIB, "u1")
    agrees(buffers, memory)
    child = os.fork()
    if child == 0:
        try:
            memory[MIB] = 1
            agrees(buffers, memory)
            memory[2 * MIB] = 1
            agrees(buffers, memory)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    agrees(buffers, memory)
    memory[3 * MIB] = 1
    agrees(buffers, memory)


def test_large_pages_are_watched_like_small_ones(buffers):
    memory = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = b"\x01" * len(memory)
    agrees(buffers, memory)
    memory[5 * MIB] = 2
    agrees(buffers, memory)


def test_a_thread_that_writes_all_the_time_is_seen_in_the_end(buffers):
    memory = np.zeros(4 * MIB, "u1")
    stop = threading.Event()

    def write():
        rng = random.Random(SEED)
        while not stop.is_set():
            memory[rng.randrange(memory.nbytes)] += 1

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(50):
        of(buffers, memory)
    stop.set()
    thread.join()
    agrees(buffers, memory)


def test_an_interrupted_look_forgets_what_it_had_seen(buffers):
    memory = np.zeros(64 * MIB, "u1")
    agrees(buffers, memory)
    memory[::4096] = 1

    def out_of_time():
        raise BudgetExceeded

    buffers.begin()
    with pytest.raises(BudgetExceeded):
        buffers.content(memoryview(memory).cast("B"), out_of_time)
    buffers.end()
    agrees(buffers, memory)


def test_untouched_memory_is_not_read_again(monkeypatch):
    buffers = Buffers()
    memory = np.ones(32 * MIB, "u1")
    of(buffers, memory)
    if buffers._pages is None:
        pytest.skip("this kernel cannot watch pages")
    hashed = []
    monkeypatch.setattr(buffers_module, "digest", lambda view: hashed.append(len(view)) or digest(view))
    of(buffers, memory)
    assert hashed == []
    memory[MIB + 100_000] = 3
    of(buffers, memory)
    assert hashed == [256 << 10]


def test_what_was_written_after_the_look_is_named():
    buffers = Buffers()
    memory = np.ones(4 * MIB, "u1")
    of(buffers, memory)
    if buffers._pages is None:
        pytest.skip("this kernel cannot watch pages")
    memory[2 * MIB] = 3
    touched = buffers.written_since(memoryview(memory).cast("B"))
    assert len(touched) in (1, 2) and (2 * MIB) // chunk_length(memory.nbytes) in touched
    agrees(buffers, memory)


@pytest.mark.parametrize("length", [1, MIB, 500 * 10**6, 20 << 30, 1 << 40])
def test_a_buffer_has_a_bounded_number_of_chunks(length):
    chunk = chunk_length(length)
    assert -(-length // chunk) <= CHUNKS_MAX and chunk & (chunk - 1) == 0
