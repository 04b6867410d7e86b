"""Which pages of memory may have been written since the last look, as Linux counts them.

Owns one userfaultfd in asynchronous write-protect mode (Linux 6.7 and later). A look with
PAGEMAP_SCAN protects the pages that it reports, in one step; the first write to a protected page
takes the protection off again, in the kernel, without anybody waiting. So a page that is protected
has not been written. Never decides what a page's content is: whoever looks reads after the look,
so that a write during the reading is seen by the next one.

A range that was unmapped, mapped anew or moved is no longer registered, and a look says so. Memory
that other processes share, or that a file backs, is reported as written at every look.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# `off` makes captures hash everything, as on a kernel without this.
SWITCH_VARIABLE = "CALLBOARD_DIRTY_PAGES"

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API = 0xC018AA3F
_REGISTER = 0xC020AA00
_UNREGISTER = 0x8010AA01
_API_VERSION = 0xAA
_REGISTER_WRITE_PROTECT = 1 << 1
_FEATURE_PAGEFAULT_WRITE_PROTECT = 1 << 0
_FEATURE_WRITE_PROTECT_UNPOPULATED = 1 << 13
_FEATURE_WRITE_PROTECT_ASYNC = 1 << 15
_FEATURES = (
    _FEATURE_PAGEFAULT_WRITE_PROTECT | _FEATURE_WRITE_PROTECT_UNPOPULATED | _FEATURE_WRITE_PROTECT_ASYNC
)

_SCAN = 0xC0606610
_SCAN_PROTECT_MATCHING = 1 << 0
# Fails with EPERM on a range that is not registered.
_SCAN_CHECK_REGISTERED = 1 << 1
_PAGE_IS_WRITTEN, _PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1 << 1, 1 << 2, 1 << 3, 1 << 4
_SCAN_FIELDS = struct.Struct("12Q")
_SCAN_WALK_END = 4
# Regions per call; a look goes on where the last one filled up.
_REGIONS = 1024

Ranges = list[tuple[int, int]]


class Pages:
    """Watches ranges of this process's memory. Addresses are multiples of the page size."""

    def __init__(self) -> None:
        """Raises OSError where the kernel lacks this or forbids it."""
        self._faults = self._map = -1
        if os.environ.get(SWITCH_VARIABLE) == "off":
            raise OSError(errno.ENOSYS, "switched off by " + SWITCH_VARIABLE)
        number = _SYS_USERFAULTFD.get(os.uname().machine)
        if not sys.platform.startswith("linux") or number is None:
            raise OSError(errno.ENOSYS, "no userfaultfd on this system")
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd is not allowed")
        self._faults = fd
        try:
            fcntl.ioctl(fd, _API, bytearray(struct.pack("QQQ", _API_VERSION, _FEATURES, 0)))
            self._map = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._regions = (ctypes.c_uint64 * (3 * _REGIONS))()
            # The ioctl itself may be missing although the feature is there.
            self._scan(0, 0, flags=0, required=_PAGE_IS_WRITTEN)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Ends all watching."""
        for fd in (self._faults, self._map):
            if fd >= 0:
                os.close(fd)
        self._faults = self._map = -1

    def __del__(self) -> None:
        self.close()

    def watch(self, start: int, end: int) -> bool:
        """Begins to watch a range; at the first look all of it counts as written."""
        fields = struct.pack("QQQQ", start, end - start, _REGISTER_WRITE_PROTECT, 0)
        return self._try(_REGISTER, bytearray(fields))

    def forget(self, start: int, end: int) -> None:
        """Ends watching; a range that is gone is forgotten already."""
        self._try(_UNREGISTER, bytearray(struct.pack("QQ", start, end - start)))

    def _try(self, request: int, fields: bytearray) -> bool:
        try:
            fcntl.ioctl(self._faults, request, fields)
        except OSError:
            return False
        return True

    def look(self, start: int, end: int, protect: bool = True) -> Ranges | None:
        """What may have been written since the last look that protected; None if not watched."""
        flags = _SCAN_CHECK_REGISTERED | (_SCAN_PROTECT_MATCHING if protect else 0)
        try:
            written = self._scan(start, end, flags, any_of=_PAGE_IS_WRITTEN | _PAGE_IS_FILE)
            # Pages that were taken away read as zeros from now on, and have no mark of a write.
            absent = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED
            return written + self._scan(start, end, _SCAN_CHECK_REGISTERED, required=absent, inverted=absent)
        except OSError:
            return None

    def _scan(
        self, start: int, end: int, flags: int, required: int = 0, any_of: int = 0, inverted: int = 0
    ) -> Ranges:
        found: Ranges = []
        regions = self._regions
        while True:
            fields = bytearray(
                _SCAN_FIELDS.pack(
                    _SCAN_FIELDS.size, flags, start, end, 0, ctypes.addressof(regions), _REGIONS, 0,
                    inverted, required, any_of, required | any_of,
                )  # fmt: skip
            )
            count = fcntl.ioctl(self._map, _SCAN, fields)
            found += [(regions[3 * index], regions[3 * index + 1]) for index in range(count)]
            start = _SCAN_FIELDS.unpack(fields)[_SCAN_WALK_END]
            if start >= end:
                return found


def open_pages() -> Pages | None:
    """The watcher, or None where captures have to hash instead."""
    try:
        return Pages()
    except OSError:
        return None
