"""Generated programs pass by what their functions return alone, and reach nothing outside of their sandbox."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.evaluate import sandbox
from pipelines.evaluate.sandbox import isolation, outputs, passes

HONEST = {
    "plain": "def f(x): return x + 1",
    "lambda": "f = lambda x: x + 1",
    "object": "class F:\n    def __call__(self, x): return x + 1\nf = F()",
    "main guard": "def f(x): return x + 1\nif __name__ == '__main__':\n    import unittest\n    unittest.main()",
    "printing": "print('hello')\ndef f(x):\n    print(x)\n    return x + 1",
    "numpy": "import numpy as np\ndef f(x): return np.int64(x) + 1",
    "subclass": "class Int(int): pass\ndef f(x): return Int(x + 1)",
    "bool": "def f(x): return True if x == 0 else x + 1",
    "thread": "import threading\ndef f(x):\n    out = []\n    t = threading.Thread(target=lambda: out.append(x + 1))\n"
    "    t.start(); t.join()\n    return out[0]",
    "file": "def f(x):\n    with open('/tmp/x', 'w') as file: file.write(str(x + 1))\n"
    "    return int(open('/tmp/x').read())",
}

TRUE = "class T:\n    def __eq__(self, o): return True\n    def __bool__(self): return True\n    __hash__ = None\n"

CHEATS = {
    "exit": "exit()",
    "sys.exit": "import sys; sys.exit()",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "os._exit": "import os; os._exit(0)",
    "quit later": "def f(x): quit()",
    "exit later": "import os\ndef f(x): os._exit(0)",
    "unittest": "def f(x): return 0\nif __name__ == '__main__':\n    import unittest\n    unittest.main()",
    "unittest always": "import unittest\ndef f(x): return 0\nunittest.main()",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
    "marker": "print('1' * 99, flush=True)\nimport os\nos.write(1, b'1' * 99)",
    "descriptors": "import os\nfor k in range(64):\n    try: os.write(k, b'1')\n    except OSError: pass",
    "answers": "import os, pickle\np = pickle.dumps((True, 1))\nfor k in range(64):\n"
    "    try: os.write(k, (len(p).to_bytes(8, 'little') + p) * 9)\n    except OSError: pass",
    "equal to all": TRUE + "f = lambda x: T()",
    "int equal to all": "class T(int):\n    def __eq__(self, o): return True\nf = lambda x: T(0)",
    "list equal to all": "class T(list):\n    def __eq__(self, o): return True\nf = lambda x: T()",
    "reduce": "class T:\n    def __reduce__(self): return (eval, ('__import__(\"os\")._exit(0)',))\nf = lambda x: T()",
    "no assertions": "import builtins\nbuiltins.AssertionError = None\ndef f(x): return 0",
    "patched builtins": "import builtins\nbuiltins.eval = builtins.exec = builtins.compile = lambda *a, **k: None",
    "patched exit code": "import os, sys\nos._exit = lambda code: None\nsys.excepthook = lambda *a: os.kill(0, 0)",
    "frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    frame.f_globals['_verdict'] = lambda *a: True\n"
    "    for v in list(frame.f_locals.values()):\n        if hasattr(v, 'put'): v.put((True, 1)); v.put((True, 2))\n"
    "    frame = frame.f_back",
    "modules": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('_verdict', 'passes'):\n"
    "        setattr(m, n, lambda *a: True)",
    "gc": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'tests' in o: o['tests'] = b''",
    "fork": "import os\ndef f(x):\n    if os.fork() == 0: os._exit(0)\n    os._exit(0)",
    "fork at once": "import os\nif os.fork(): os._exit(0)",
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "kill parent": "import os, signal\nos.kill(os.getppid() or os.getpid(), signal.SIGKILL)\ndef f(x): return 0",
    "kill group": "import os, signal\ndef f(x): os.killpg(0, signal.SIGTERM)",
    "kill all": "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
    "alarm": "import signal\nsignal.alarm(1)\ndef f(x):\n    while True: pass",
    "closed pipe": "import os\nos.closerange(0, 64)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "recursion": "def f(x): return f(x)",
    "trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef f(x): return None",
    "other names": "check = lambda *a: None\nassert_ = f = lambda x: check",
    "generator": "def f(x):\n    yield x + 1",
    "handle": "class T:\n    __class__ = int\n    def __getattr__(self, n): return lambda *a: True\nf = lambda x: T()",
    "wrong": "def f(x): return x",
    "nothing": "",
    "syntax": "def f(x) return",
}

TESTS = "def check(f):\n    assert f(1) == 2\n    assert f(41) == 42\n\n\ncheck(f)\n"


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name):
    if name in ("thread", "file") and isolation() != "namespaces":
        pytest.skip(f"{isolation()} isolation starts no thread and writes no file")
    assert passes(HONEST[name], TESTS, ["f"])


@pytest.mark.parametrize("name", CHEATS)
def test_cheating_programs_fail(name):
    assert not passes(CHEATS[name], TESTS, ["f"], seconds=3)


@pytest.mark.parametrize("classes", ["fractions Fraction", "decimal Decimal", "collections deque", "datetime date"])
def test_classes_of_the_tests_cannot_be_changed_by_an_answer(classes):
    """Pickle can set attributes of what it names: (class, (None, {"__eq__": …})) through BUILD."""
    module, name = classes.split()
    program = f"""
import sys
def f(x):
    frame = sys._getframe()
    while not any(hasattr(value, "kept") for value in frame.f_locals.values()):
        frame = frame.f_back
    channel = next(value for value in frame.f_locals.values() if hasattr(value, "kept"))
    channel.kept.append(lambda *a: True)
    handle = b"(S'handle'\\nI%d\\ntQ" % (len(channel.kept) - 1)
    data = b"(I01\\nc{module}\\n{name}\\nN}}S'__eq__'\\n" + handle + b"s\\x86bt."
    channel.send.write(len(data).to_bytes(8, "little") + data)
    channel.send.flush()
"""
    tests = f"from {module} import {name}\nbefore = {name}.__eq__\ntry: f(1)\nexcept Exception: pass\n"
    assert passes(program, tests + f"assert {name}.__eq__ is before", ["f"])


def test_values_cross_as_they_are():
    same = "def f(x): return x"
    values = (None, True, 1.5, 1j, "ä\n", b"\0", [1, (2,)], {"a": {1, 2}}, frozenset({3}), range(3), 1 << 99, float, "")
    for value in values:
        code = value.__name__ if isinstance(value, type) else repr(value)
        assert passes(same, f"assert f({code}) == {code} and type(f({code})) is type({code})", ["f"])
    assert passes("import collections\nf = collections.Counter", "assert f('aab') == {'a': 2, 'b': 1}", ["f"])
    assert passes("f = lambda x: map(str, x)", "assert list(f([1, 2])) == ['1', '2']", ["f"])
    tree = "class Node:\n    def __init__(self, v): self.v, self.next = v, None\ndef total(n): return n.v + n.next.v"
    assert passes(tree, "n = Node(1)\nn.next = Node(2)\nassert total(n) == 3 and n.next.v == 2", ["Node", "total"])
    assert passes("def f(): raise ValueError", "try: f()\nexcept ValueError: pass\nelse: assert False", ["f"])


REACHING = {
    "parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "evaluator's environment": "open('/proc/EVALUATOR/environ').read()",
    "evaluator's memory": "open('/proc/EVALUATOR/mem', 'rb')",
    "signals": "os.kill(EVALUATOR, 0)",
    "network": "socket.create_connection(('127.0.0.1', PORT), 1)",
    "reading": "open('PLACE/secret').read()",
    "writing": "open('PLACE/written', 'w')",
    "removing": "os.remove('PLACE/secret')",
    "writing beside Python": "open(os.path.join(os.path.dirname(os.__file__), 'x'), 'w')",
    "password file": "open('/etc/passwd').read()",
    "mounting": "assert ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0",
    "becoming root": "os.setuid(0); open('/usr/x', 'w')",
}


@pytest.mark.parametrize("name", REACHING)
def test_programs_reach_nothing_outside(name, tmp_path):
    import socket

    if isolation() == "none":
        pytest.skip("this system isolates nothing")
    tmp_path.chmod(0o777)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = REACHING[name].replace("PLACE", str(tmp_path)).replace("PORT", str(server.getsockname()[1]))
        program = f"import ctypes, os, socket\n{text.replace('EVALUATOR', str(os.getpid()))}\nprint('reached')"
        assert outputs(program) is None
    assert os.listdir(tmp_path) == ["secret"]
    assert outputs("import ctypes, os, socket\nprint('reached')") == "reached\n"


def test_programs_run_with_limits():
    assert outputs("print(int(input()) * 2)", "21\n") == "42\n"
    assert outputs("print(1); exit()") == "1\n"
    assert outputs("print('ä' * 5_000_000)") == "ä" * 5_000_000 + "\n"
    assert outputs("print(1); exit(1)") is None
    assert outputs("while True: pass", seconds=1) is None
    assert outputs("import time; time.sleep(60)", seconds=1) is None
    assert outputs("x = ' ' * (1 << 40)") is None
    assert outputs("for k in range(9): open(f'/tmp/{k}', 'wb').write(b'0' * (15 << 20))") is None
    assert outputs("import os; os.environ['PATH']") is None
    assert outputs("import os\nfor k in range(99): os.fork() or os._exit(0)") is None or isolation() == "none"
    assert outputs("print({'a', 'b', 'c', 'd'})") == outputs("print({'a', 'b', 'c', 'd'})")


@pytest.mark.parametrize("end", ["os._exit(0)", "time.sleep(60)"])
def test_no_child_outlives_its_program(end):
    if isolation() != "namespaces":
        pytest.skip("only namespaces let a program have children")
    mark = f"sleeper{os.getpid()}{end[:2]}"
    child = (
        "import os, sys, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execv(sys.executable, [{mark!r}, '-c', 'import time; time.sleep(99)'])\ntime.sleep(0.3)\n"
    )
    outputs(child + end, seconds=1)
    assert _soon(lambda: not _running(mark))


def test_the_program_ends_with_its_evaluator():
    if isolation() == "none":
        pytest.skip("this system isolates nothing")
    program = "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(99)"
    code = f"from pipelines.evaluate.sandbox import outputs; outputs({program!r}, seconds=60)"
    evaluator = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    family: list[int] = []
    for _ in range(100):
        time.sleep(0.2)  # the first family is that of the trial whether isolation works
        if len(family) == 4 and family == _family(evaluator.pid):
            break
        family = _family(evaluator.pid)
    evaluator.send_signal(signal.SIGKILL)
    evaluator.wait()
    assert len(family) == 4
    assert _soon(lambda: not any(_alive(pid) for pid in family))


def _soon(condition) -> bool:
    return any(condition() or time.sleep(0.1) for _ in range(20))


def _running(name: str) -> bool:
    return any(name in part for process in psutil.process_iter(["cmdline"]) for part in process.info["cmdline"] or [])


def _alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in _family(int(child)))]


def test_a_sandbox_that_cannot_start_is_no_failed_program(monkeypatch):
    monkeypatch.setattr(sandbox, "isolation", lambda: "namespaces")
    monkeypatch.setattr(sandbox, "_START", "raise OSError('no sandbox')")
    with pytest.raises(RuntimeError, match="no sandbox"):
        passes("", "", [])


@pytest.mark.parametrize(
    ("own", "run", "isolate", "level", "message"),
    [
        (True, False, True, "namespaces", "suite.run_code=true"),
        (True, True, True, "none", "no user namespaces, no Landlock.*suite.isolate_code=false"),
        (False, True, True, "namespaces", "evaluator's own process.*suite.isolate_code=false"),
        (True, True, True, "landlock", None),
        (True, True, False, "none", None),
        (False, True, False, "none", None),
    ],
)
def test_code_is_refused_where_nothing_isolates_it(own, run, isolate, level, message, monkeypatch):
    import re

    monkeypatch.setattr(sandbox, "isolation", lambda: level)
    problem = sandbox.refusal(own, run, isolate)
    assert problem is None if message is None else re.search(message, problem)
