"""What keeps a generated program from the rest of the machine: namespaces, or Landlock with a system-call filter.

Standard library only; runs in the sandbox's own processes (see judge.py), never in the evaluator.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

NOBODY = 65534
NEW_PIDS = 0x20000000
_NEW_USER = 0x10000000
_NEW_REST = 0x20000 | 0x8000000 | 0x4000000 | 0x40000000  # mounts, IPC, host name, network
_READ_ONLY = struct.pack("QQQQ", 1 | 2 | 4, 0, 0, 0)  # mount_attr: read-only, no set-user-id, no devices
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_DENIED = {  # system calls that reach other processes or the network, by machine (AUDIT_ARCH and numbers)
    "x86_64": (0xC000003E, (41, 53, 62, 101, 129, 157, 200, 234, 297, 302, 310, 311, 424, 425, 434, 438)),
    "aarch64": (0xC00000B7, (117, 129, 130, 131, 138, 167, 198, 199, 240, 261, 270, 271, 424, 425, 434, 438)),
}
"""socket(pair), (t/tg)kill, (tg)sigqueueinfo, ptrace, prctl, prlimit, process_vm_*, pidfd_*, io_uring_setup."""

_libc = ctypes.CDLL(None, use_errno=True)


def enter(level: str, paths: list[str], room: int) -> None:
    """Isolate this process and those it starts (``namespaces``); the other levels isolate the program alone.

    ``paths`` stay readable; everything else is gone, and ``room`` bytes of memory are all that can be written to.
    """
    if sys.platform == "linux":
        _write("/proc/self/oom_score_adj", "1000")  # the first to go when memory runs out
    if level != "namespaces":
        return
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 or _libc.unshare(_NEW_REST | NEW_PIDS):
        _call("unshare", _NEW_USER | _NEW_REST | NEW_PIDS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
            _write(f"/proc/self/{name}", text)
    _call("mount", None, b"/", None, 0x4000 | 0x40000, None)  # recursive, private
    _call("mount", b"tmpfs", b"/proc", b"tmpfs", 2 | 4, f"size={room},nr_inodes=1000,mode=755".encode())
    for path in paths:
        os.makedirs(f"/proc{path}", exist_ok=True)
        _bind(path)
        _call("syscall", 442, -100, f"/proc{path}".encode(), 0x8000, _READ_ONLY, len(_READ_ONLY))  # mount_setattr
    os.makedirs("/proc/dev", exist_ok=True)
    for path in _DEVICES:
        _write(f"/proc{path}", "", os.O_CREAT)
        _bind(path)
    os.makedirs("/proc/tmp", exist_ok=True)
    os.chmod("/proc/tmp", 0o1777)
    os.chdir("/proc")
    _call("pivot_root", b".", b".")
    _call("umount2", b".", 2)  # detach the old root
    os.chdir("/tmp")


def confine(level: str, paths: list[str], limits: dict[str, int]) -> None:
    """Take everything from the calling process that a program must not have: rights, identity, resources."""
    # counted over all of the user's processes: outside of namespaces the one number that surely works is none
    limits = {**limits, "RLIMIT_NPROC": 16 if level == "namespaces" else 0, "RLIMIT_CORE": 0}
    limit(limits)
    os.setsid()  # a process group reaches through namespaces
    # files first: opening them may take rights that end here
    rules = _landlock(paths) if level == "landlock" else None
    if sys.platform != "linux" or level == "none":
        return
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    die_with_parent()
    _call("prctl", 38, 1, 0, 0, 0)  # no new privileges
    _call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    if rules is not None:
        _call("syscall", 446, rules, 0)  # landlock_restrict_self
        os.close(rules)
        _filter()


def limit(limits: dict[str, int]) -> None:
    """Lower resource limits of this process, by their names in ``resource``."""
    for name, most in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:  # noqa: SIM105 (contextlib takes a fifth of a program's time to import)
            resource.setrlimit(getattr(resource, name), (most, most))
        except (ValueError, OSError):  # not every system has each
            pass


def end_after(seconds: int) -> None:
    """Have this process ended by SIGALRM."""
    _libc.alarm(seconds)


def die_with_parent(readable: bool = True) -> None:
    """Be killed when the parent ends; unless ``readable``, let no process of the same user look inside."""
    if sys.platform == "linux":
        _call("prctl", 1, 9, 0, 0, 0)
        if not readable:
            _call("prctl", 4, 0, 0, 0, 0)


def new_pids() -> None:
    """Give the next child a space of process ids of its own, in which it sees no one."""
    _call("unshare", NEW_PIDS)


def _landlock(paths: list[str]) -> int:
    """A Landlock rule set under which ``paths`` can be read and nothing can be written."""
    version = _call("syscall", 444, None, 0, 1)
    handled = struct.pack("Q", (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1)
    rules = _call("syscall", 444, handled, len(handled), 0)
    for path, rights in [*((path, 1 | 4 | 8) for path in paths), *((path, 2 | 4) for path in _DEVICES)]:
        place = os.open(path, os.O_PATH)
        if not os.path.isdir(path):
            rights &= ~8
        _call("syscall", 445, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    return rules


def _filter() -> None:
    """Deny the calls of ``_DENIED`` (and those of other instruction sets) by a seccomp filter."""
    machine, numbers = _DENIED[os.uname().machine]
    last = len(numbers)  # jumps count from the next step; the denying one is the last
    code = [(0x20, 0, 0, 4), (0x15, 0, last + 3, machine), (0x20, 0, 0, 0), (0x35, last + 1, 0, 1 << 30)]
    code += [(0x15, last - i, 0, number) for i, number in enumerate(numbers)]
    code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50001)]  # allow; fail with EPERM
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    _call("prctl", 22, 2, struct.pack("HP", len(code), ctypes.addressof(steps)), 0, 0)


def _bind(path: str) -> None:
    _call("mount", path.encode(), f"/proc{path}".encode(), None, 0x1000 | 0x4000, None)


def _write(path: str, text: str, flags: int = 0) -> None:
    file = os.open(path, os.O_WRONLY | flags)
    os.write(file, text.encode())
    os.close(file)


def _call(name: str, *arguments: bytes | int | None) -> int:
    """A function of the C library. Raises OSError where it fails."""
    result = getattr(_libc, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
