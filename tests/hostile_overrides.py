"""Hostile overrides and configuration folders: a command line each, to be run in a folder of ``tests.cli.world``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.schema import Collect, Executor, Optimizer, Sampler, Search, Statistics, Suite, SuiteTask, Task, Training
from tests.hostile import MARKUP

SUITE = ("suite=custom", "suite.include_path=tasks", "+suite.tasks.sums.limit=4", "suite.batch_size=4")
FINETUNE = ("finetune", "base.path=base", "task.path=a.jsonl", "training.steps=1", "training.batch_size=2")
MERGE = ("merge", "base.path=base", "experts=[a,b]", "out=out")
EVALUATE = ("evaluate", "model=a", *SUITE)
SWEEP = ("sweep", "--config-dir", "conf", "+experiment=ours", *SUITE)
SEARCH = ("search", "base.path=base", "experts=[a,b]", "method=linear", "search.trials=2", "search.force=true", *SUITE)
SEARCH = (*SEARCH, "search.split=test")

VALUES = ("nan", "1e309", "null", "-1", "0", "9" * 30, "x", "[]", "{}", "''", "-0.5", "true")
"""What any key may be given."""

SECTIONS: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (FINETUNE, "optimizer", Optimizer),
    (FINETUNE, "training", Training),
    (FINETUNE, "task", Task),
    (EVALUATE, "suite", Suite),
    (EVALUATE, "suite.tasks.sums", SuiteTask),
    (EVALUATE, "executor", Executor),
    (SWEEP, "sampler", Sampler),
    (SWEEP, "statistics", Statistics),
    (SEARCH, "search", Search),
    (MERGE, "collect", Collect),
)

LONG = "x" * 5000
PLACES = (
    "a.jsonl",
    "/dev/null",
    "/proc/x",
    "/proc/self/mem",
    LONG,
    "''",
    "null",
    "7",
    "/",
    "a.jsonl/below",
    "'a\\x00b'",
    "..",
    "nan",
)
OTHERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    *((command, (f"out={place}",)) for command in (FINETUNE, MERGE, EVALUATE) for place in PLACES),
    *((SWEEP, (f"{key}={place}",)) for key in ("runs", "store", "name", "datasets") for place in PLACES),
    *((FINETUNE, (f"seed={v}",)) for v in (2**32, 2**63, 2**64, -(2**63) - 1, 10**30, -1, "nan", "1.5", "null", "x")),
    *((SWEEP, (f"seed={v}", "+methods.d={method: dare}")) for v in (2**63, 2**64, -(2**63) - 1, 10**30, -1)),
    *(
        (EVALUATE, (f"executor.device={v}",))
        for v in ("meta", "mps", "cuda:-1", "cuda:99999999999999999999", "xla", "null", "''", "cpu:0", "cpu:7", "[]")
    ),
    *((FINETUNE, (f"executor.device={v}",)) for v in ("meta", "mps", "cuda:-1", "xla", "cpu:7", "''")),
    *(
        (command, (f"executor.threads={v}",))
        for command in (EVALUATE, FINETUNE, MERGE, SWEEP)
        for v in (10**6, 10**12, 2**31, -1, 0, "nan")
    ),
    *(
        (command, (f"{group}=null",))
        for command, groups in (
            (FINETUNE, ("base", "task", "finetuning", "optimizer")),
            (EVALUATE, ("suite", "executor")),
            (MERGE, ("method",)),
            (SEARCH, ("search",)),
            (
                SWEEP,
                (
                    "pools",
                    "methods",
                    "sampler",
                    "statistics",
                    "scale",
                    "collect",
                    "attacks",
                    "+experiment",
                    "pools.mine",
                    "methods.weighted",
                    "pools.mine.base",
                    "pools.mine.experts",
                ),
            ),
        )
        for group in groups
    ),
    *(
        (FINETUNE, (f"finetuning={m}", f"finetuning.{k}={v}"))
        for m, k in (
            ("mergopt", "scale"),
            ("mergopt", "alpha"),
            ("mergopt", "loc"),
            ("sam", "rho"),
            ("asam", "rho"),
            ("asam", "eta"),
        )
        for v in ("nan", "1e309", "-1", "null", "x", "[]", "1e300", "0")
    ),
    *(
        (MERGE, (f"method={m}", f"method.{k}={v}"))
        for m, k in (
            ("ties", "density"),
            ("dare", "density"),
            ("linear", "weight"),
            ("task_arithmetic", "lambda"),
            ("slerp", "t"),
            ("della", "epsilon"),
            ("wudi", "steps"),
        )
        for v in ("nan", "1e309", "-1", "null", "x", "[]", "[nan,1]", "[1,2,3,4]", "1e300", "{}")
    ),
    *((EVALUATE, (f"suite.tasks.sums.metric={v}",)) for v in ("nope", "''", "null", "7", "[]", "'[/red]'", "acc,f1")),
    *((SWEEP, (f"suite.tasks.sums.metric={v}",)) for v in ("nope", "'[/red]'")),
    *(
        (SWEEP, (f"{k}={v}",))
        for k in ("dtype", "vocab", "keep", "strict", "online")
        for v in ("x", "null", "[]", "7", "nan")
    ),
    *(
        (SWEEP, (text,))
        for text in (
            "name='${name}'",
            "name='${store}' store='${name}'",
            "store='${runs}'",
            "name='${oc.env:NOPE}'",
            "name='${oc.env:HF_TOKEN,x}'",
            "about='${oc.env:HOME}'",
            "name='${oc.select:store}'",
            "name='${oc.create:{a:1}}'",
            "name='${oc.dict.keys:methods}'",
            "name='${oc.deprecated:store}'",
            "name='${${name}}'",
            "name='${.name}'",
            "name='${..}'",
            "name='" + "${store}" * 500 + "'",
            "seed=sort(3,1,2)",
            "seed=extend_list(1)",
            "sampler.sizes=extend_list(1)",
            "name=int(x)",
            "name=json_str({a:1})",
            "pools.mine.experts=" + "[" * 200 + "]" * 200,
            "methods={" + ",".join(f"m{i}:{{method:linear}}" for i in range(3000)) + "}",
            "name='${nope}'",
            "name='${oc.decode:x}'",
            "name='${'",
            "name='${a:b}'",
            "runs='${runs}/x'",
            "sampler.sizes='${sampler.sizes}'",
            "+a=1",
            "a",
            "=",
            "==",
            "+",
            "~",
            "~pools",
            "~methods",
            "~store",
            "~pools.mine",
            "~methods.weighted",
            "++x=1",
            "@=x",
            "a@b",
            "pools.mine.base.path=[a]",
            "pools.mine=7",
            "pools=[]",
            "methods=[]",
            "methods.weighted=7",
            "methods.weighted.method=7",
            "methods.weighted.method=null",
            "methods.weighted.method=nope",
            "+methods.x={}",
            "+methods.x={method: [ties]}",
            "+methods.x={method: ties, density: {a: 1}}",
            "+pools.p={}",
            "+pools.p={base: 7}",
            "+pools.p={base: {path: base}, experts: [a]}",
            "+pools.p={base: {path: base}, experts: {a: {path: a, nope: 1}}}",
            "+pools.'a b'={base: {path: base}, experts: {a: {path: a}}}",
            "pools.mine.experts.a.path=''",
            "pools.mine.experts.a.path=null",
            "pools.mine.experts.a.path=7",
            "pools.mine.experts.a.path=../../../../etc",
            "pools.mine.experts.a.path=/etc/passwd",
            "pools.mine.experts.a.revision=x",
            "pools.mine.reference=nope",
            "pools.mine.budget=nan",
            "sampler.sizes=[0]",
            "sampler.sizes=[-1]",
            "sampler.sizes=[99]",
            "sampler.sizes=[1e3]",
            "sampler.samples=1000000000",
            "sampler.orders=1000000000",
            "sampler.draws=1000000000",
            "seed=range(0,1000000000)",
            "seed=range(0,1,0)",
            "seed=choice()",
            "seed=1,",
            "seed=glob(*)",
            "seed=shuffle(1,2)",
            "seed=interval(0,1)",
            "statistics.confidence=1",
            "statistics.confidence=2",
            "statistics.resamples=1000000000",
            "statistics.resamples=0",
            "attacks=[nope]",
            "attacks=[none]",
            "attacks=[7]",
            "executor=local,nope",
            "executor.retries=-1",
            "executor.retries=1000000",
            "suite.limit=-5",
            "suite.limit=1e309",
            "suite.limit=nan",
            "suite.limit=x",
            "suite.limit=[]",
            "suite.include_path=/etc",
            "suite.include_path=/proc",
            "suite.include_path=nope",
            "suite.tasks.sums.task=nope",
            "suite.tasks.sums.task=../x",
            "suite.tasks.sums.skill=nope",
            "suite.dtype=float8",
            "suite.attack=nope",
            "suite.batch_size=1000000000000",
            "suite.max_length=1",
            "suite.seed=18446744073709551616",
            "suite.tasks.sums.num_fewshot=1000000000",
            "name=../../../../tmp/escape",
            "name=/tmp/escape",
            "name=.",
            "name=..",
            "'name=[/red]'",
            "name='a/b'",
            "name='-rf'",
            "name='$(touch x)'",
            "about=7",
            "scale=tiny",
            "+scale=nope",
            "scale.pool=7",
            "scale.lr=nan",
            "base=tiny",
            "base.path=x",
            "experts=[a]",
            "model=x",
            "hydra.run.dir=x",
            "+hydra.verbose=true",
            "hydra/launcher=basic",
            "+_target_=os.system",
            "_args_=[1]",
            "store.x=1",
            "pools.mine.x.y.z=1",
        )
    ),
    (SWEEP, tuple(f"pools.mine.experts.a.path=a{i}" for i in range(2000))),
    (SWEEP, tuple(f"+methods.m{i}.method=linear" for i in range(1000))),
    (("ls",), ("store=a.jsonl",)),
    (("ls",), ("store=/proc/x",)),
    (("ls",), (f"store={LONG}",)),
    (("results",), ("out=/proc/x", "--format", "csv")),
    (("results",), ("name=nope",)),
    (("results",), ("--format", "nope")),
    (("gc",), ("--older-than", "nan")),
    (("gc",), ("--older-than", "-1")),
    (("gc",), ("--older-than", "1e309")),
    (("gc",), ("--kind", "nope")),
    (("gc",), ("--forget", MARKUP)),
    (("show", "'"), ()),
    (("show", MARKUP), ()),
    (("show", LONG), ()),
    (("verify", "../.."), ()),
    (("export", "zzzz", "out=x"), ()),
    (("merge", "--mergekit-config", "/dev/zero"), ("out=out",)),
    (("merge", "--mergekit-config", "a.jsonl"), ("out=out",)),
    (("merge", "--mergekit-config", "base"), ("out=out",)),
    (("merge", "--mergekit-config", "nope"), ("out=out",)),
    (("sweep", "--config-dir", "/proc"), ("+experiment=ours",)),
    (("sweep", "--config-dir", "a.jsonl"), ("+experiment=ours",)),
    (("sweep", "--config-dir", MARKUP), ("+experiment=ours",)),
    (("sweep", "--config-dir", LONG), ("+experiment=ours",)),
    (("evaluate", f"model='{MARKUP}'"), SUITE),
    (("evaluate", "model=/dev/zero"), SUITE),
    (("evaluate", f"model={LONG}"), SUITE),
    (("evaluate", "model='a\\nb'"), SUITE),
    (("evaluate", "model=''"), SUITE),
    (("evaluate", "model=/"), SUITE),
    (("evaluate", "model=/proc/self"), SUITE),
    (("evaluate", "model=.."), SUITE),
    (("evaluate", "model='~nobody'"), SUITE),
    (("evaluate", "model='~'"), SUITE),
    (("merge", "base.path=base", "experts=[]", "out=out"), ()),
    (("merge", "base.path=base", "experts=[a,7]", "out=out"), ()),
    (("merge", "base.path=base", "experts=[a,null]", "out=out"), ()),
    (("merge", "base.path=base", "experts=7", "out=out"), ()),
    (("merge", "base.path=base", "experts=[a,[b]]", "out=out"), ()),
    (("merge", "base.path=base", "experts=[a,a]", "out=base"), ()),
)

YAMLS: dict[str, bytes] = {
    "open list": b"about: [x\n",
    "tab": b"a:\n\t- b\n",
    "python": b"about: !!python/object/apply:os.system ['touch canary']\n",
    "unknown tag": b"about: !nope x\n",
    "binary": b"about: !!binary aGk=\n",
    "set": b"pools: !!set {a, b}\n",
    "date": b"name: 2020-01-01\n",
    "laughs": b"a: &a [x, x]\n"
    + b"".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n".encode() for i in range(22)),
    "cycle": b"about: &a [*a]\n",
    "undefined": b"about: *nope\n",
    "two documents": b"name: a\n---\nname: b\n",
    "list": b"- a\n",
    "number": b"7\n",
    "string": b"hello\n",
    "null": b"",
    "utf16": "name: x\n".encode("utf-16"),
    "latin": b"name: \xe9\n",
    "nul": b"name: a\0b\n",
    "nested": b"about: " + b"[" * 5000,
    "flow": b"about: " + b"{a: " * 200 + b"1" + b"}" * 200,
    "twice": b"name: a\nname: b\n",
    "numeric key": b"7: a\n",
    "null key": b"null: a\n",
    "list key": b"? [a]\n: b\n",
    "merge key": b"<<: 7\n",
    "nan": b"seed: .nan\n",
    "inf": b"statistics: {confidence: .inf}\n",
    "bool": b"name: yes\n",
    "octal": b"seed: 0o777777777777777777777777\n",
    "sexagesimal": b"seed: 1:30\n",
    "huge": b"about: '" + b"x" * 3_000_000 + b"'\n",
    "defaults number": b"defaults: 7\n",
    "defaults list": b"defaults: [7]\n",
    "defaults nope": b"defaults: [/suite: nope]\n",
    "defaults itself": b"defaults: [/experiment: bad]\n",
    "defaults self": b"defaults: [bad]\n",
    "defaults up": b"defaults: [../../../../etc/passwd]\n",
    "defaults null": b"defaults: [null]\n",
    "defaults optional": b"defaults: [optional /suite: nope]\n",
    "defaults override": b"defaults: [override /suite: 7]\n",
    "defaults interpolation": b"defaults: ['/suite: ${nope}']\n",
    "hydra": b"hydra: {run: {dir: x}}\n",
    "searchpath": b"hydra: {searchpath: ['file:///etc']}\n",
    "target": b"_target_: os.system\n",
    "interpolation loop": b"name: ${runs}\nruns: ${name}\n",
    "interpolation": b"name: ${oc.env:HOME}\n",
    "resolver": b"name: ${nope:x}\n",
    "unknown key": b"nope: 1\n",
    "pool list": b"pools: [a]\n",
    "pool number": b"pools: {mine: 7}\n",
    "pool null": b"pools: {mine: null}\n",
    "method null": b"methods: {x: null}\n",
    "method list": b"methods: {x: [1]}\n",
    "markup": b"name: '[/red]'\n",
    "markup key": b"methods: {'[/red]': {method: linear}}\n",
    "escape": b'name: "\\e[31mEVIL"\n',
    "escape key": b'methods: {"\\e[31mEVIL": {method: linear}}\n',
    "newline": b'name: "a\\nb"\n',
    "about": b"about: 7\n",
    "missing": b"name: ???\n",
    "comment": b"# only\n",
    "bom": b"\xef\xbb\xbfname: x\n",
}
HEAD = b"# @package _global_\n"
STUDY = b"pools: {mine: {base: {path: base}, experts: {a: {path: a}, b: {path: b}}}}\n"
STUDY += b"methods: {weighted: {method: linear}}\n"


def cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    """A name and a command line for every case but those of YAML files."""
    for command, prefix, kind in SECTIONS:
        for field in dataclasses.fields(kind):
            for value in VALUES:
                text = f"{prefix}.{field.name}={value}"
                yield f"{command[0]} {text}"[:120], (*command, text)
    for command, texts in OTHERS:
        yield f"{command[0]} {' '.join((*command[1:2], *texts))}"[:120], (*command, *texts)


def write_yaml(name: str, folder: Path, whole: bool) -> tuple[str, ...]:
    """Write a hostile experiment below ``folder`` (``whole``: in a sound study); returns its command."""
    file = folder / "bad" / "experiment" / "bad.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "other.yaml").write_bytes(b"name: other\n")
    file.write_bytes(HEAD + (STUDY if whole else b"") + YAMLS[name])
    return ("sweep", "--config-dir", "bad", "+experiment=bad", *SUITE)
