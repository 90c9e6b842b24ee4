"""Tests and the program that they test, in two processes: the tests hold handles of the program's objects.

The judge runs the tests. It asks the program's process to call a function and takes back plain values (numbers,
strings, lists, …) that it compares itself; whatever the program exits, patches, prints or reads, it can only answer
calls. Standard library only; started by sandbox/__init__.py.
"""

from __future__ import annotations

import builtins
import io
import marshal
import os
import site
import sys
from _pickle import Pickler, Unpickler  # pickle itself takes as long to import as all of this

import jail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN: tuple[Any, ...] = (bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)

_CLASSES = {
    "builtins": {"range", *(kind.__name__ for kind in _PLAIN)},
    "collections": {"deque"},
    "datetime": {"date", "datetime", "time", "timedelta"},
    "decimal": {"Decimal"},
}
"""What may cross: values that compare by what they hold, of classes that no one can change (written in C)."""

_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


class Handle:
    """An object of the program, held by the judge: it can be called, read, set and walked, and equals only itself."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Any, number: int):
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_number", number)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the program's object returns."""
        return self._ask("call", self, given, named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __iter__(self) -> Any:
        return iter(self._ask("list", self))


class Channel:
    """Messages of plain values and handles; ``objects`` is what handles stand for (the program's end), or None."""

    def __init__(self, receive: int, send: int, objects: list | None = None):
        self.receive, self.send, self.objects = os.fdopen(receive, "rb"), os.fdopen(send, "wb"), objects

    def put(self, message: Any) -> None:
        """Send a message."""
        packed = io.BytesIO()
        pickler = _Pickler(packed, 4)
        pickler.objects = self.objects
        pickler.dump(message)
        self.send.write(len(packed.getbuffer()).to_bytes(8, "little") + packed.getbuffer())
        self.send.flush()

    def get(self, most: int = 1 << 30) -> Any:
        """Wait for a message. Raises EOFError when there is none, or one of more than ``most`` bytes."""
        size = int.from_bytes(self.receive.read(8), "little")
        if not 0 < size <= most:
            raise EOFError("the program ended, or its answer is too long")
        unpickler = _Unpickler(io.BytesIO(self.receive.read(size)))
        unpickler.channel = self
        return unpickler.load()

    def ask(self, *question: Any) -> Any:
        """The program's answer. Raises what the program raised, where that is a built-in exception."""
        self.put(question)
        right, answer = self.get(16 << 20)
        if right:
            return answer
        kind = getattr(builtins, str(answer), None)
        raise kind() if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(answer)


class _Pickler(Pickler):
    objects: list | None

    def persistent_id(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in _PLAIN or kind.__name__ in _CLASSES.get(kind.__module__, ()):
            return None
        if kind is Handle:
            return "handle", value._number
        if kind.__module__ == "numpy" and hasattr(value, "item") and not value.shape:
            return "plain", value.item()
        for plain in _PLAIN[1:]:
            if isinstance(value, plain):
                return "plain", plain(value)
        if self.objects is None or (kind is type and value.__name__ in _CLASSES.get(value.__module__, ())):
            return None
        self.objects.append(value)
        return "handle", len(self.objects) - 1


class _Unpickler(Unpickler):
    channel: Channel

    def persistent_load(self, found: Any) -> Any:
        kind, value = found
        if kind == "plain":
            return value
        return Handle(self.channel.ask, value) if self.channel.objects is None else self.channel.objects[value]

    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()) and (kind := super().find_class(module, name)).__flags__ & _IMMUTABLE:
            return kind
        raise TypeError(f"{module}.{name} is no plain value")


def main() -> None:
    """Read a job from standard input; write 1 or 0 and, for a program without tests, what it printed."""
    level, *numbers = sys.argv[2:6]
    seconds, memory, written = map(int, numbers)
    paths, packages = (text.split(os.pathsep) for text in sys.argv[6:8])
    jail.end_after(seconds + 2)  # takes the judge with it, and that the program
    jail.enter(level, paths, 4 * written)
    jail.die_with_parent()
    if judge := os.fork():
        sys.exit(min(1, os.waitpid(judge, 0)[1]))
    jail.die_with_parent(readable=False)
    given, printed = _file(), _file()
    (receive, answer), (listen, send) = os.pipe(), os.pipe()
    if level == "namespaces":
        jail.new_pids()
    program = os.fork()
    if program == 0:
        _part_from_judge((given, printed), (listen, answer))
        jail.confine(level, paths, {"RLIMIT_CPU": seconds, "RLIMIT_AS": memory, "RLIMIT_FSIZE": written})
        sys.path[:] = [path for path in sys.path[1:] if path] + packages
        return _program(Channel(listen, answer, []))
    os.close(answer)
    os.close(listen)
    jail.limit({"RLIMIT_AS": memory})
    channel = Channel(receive, send)
    if channel.get() != "ready":
        os._exit(1)
    verdict = _verdict(channel, marshal.loads(sys.stdin.buffer.read()), given)
    if verdict is None:
        verdict = os.waitpid(program, 0)[1] == 0
    else:
        os.kill(program, 9)
    with open(1, "wb") as out:
        out.write(b"01"[verdict : verdict + 1] + os.pread(printed, written, 0))
    os._exit(0)


def _file() -> int:
    """A file in memory, or one without a name."""
    if sys.platform == "linux":
        return os.memfd_create("file")
    import tempfile

    return os.dup(tempfile.TemporaryFile().fileno())


def _part_from_judge(files: tuple[int, int], pipes: tuple[int, int]) -> None:
    """Leave the program no open file but its input, its output and its pipes, and no word of how it was started."""
    for place, file in enumerate((*files, os.open(os.devnull, os.O_WRONLY))):
        os.dup2(file, place)
    first, second = sorted(pipes)
    for start, end in ((3, first), (first + 1, second), (second + 1, 64)):
        os.closerange(start, end)
    sys.argv[:] = ["program"]
    site.setquit()


def _program(channel: Channel) -> None:
    """Run the program; then answer the judge, where there are tests."""
    channel.put("ready")
    source, name = channel.get()
    names: dict[str, Any] = {"__name__": name}
    exec(compile(source, "program", "exec"), names)
    does: dict[str, Any] = {"name": names.__getitem__, "getattr": getattr, "setattr": setattr, "list": list}
    does["call"] = lambda function, given, named: function(*given, **named)
    while name != "__main__":
        kind, *rest = channel.get()
        try:
            answer = True, does[kind](*rest)
        except Exception as error:
            answer = False, type(error).__name__
        channel.put(answer)


def _verdict(channel: Channel, job: dict[str, Any], given: int) -> bool | None:
    """Whether the tests reach their end; None where the program has none and its own end counts."""
    os.pwrite(given, job.get("given", b""), 0)
    if "tests" not in job:
        channel.put((job["program"], "__main__"))
        return None
    sys.stdout = sys.stderr
    names: dict[str, Any] = {"__name__": "tests"}
    try:
        channel.put((job["program"], "program"))
        exec(compile(job.get("setup", b""), "setup", "exec"), names)
        names.update({name: channel.ask("name", name) for name in job["names"]})
        exec(compile(job["tests"], "tests", "exec"), names)
    except BaseException:
        return False
    return True
