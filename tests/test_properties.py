"""Hypothesis drives the readers and the overrides: whatever they are given, it is read or refused in one line.

MERGEBENCH_EXAMPLES=100000 runs them for long, from other seeds each time.
"""

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="the extra mergebench[dev] is not installed")
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conf.compose import compose
from conf.errors import UserError, printable, redacted
from conf.schema import Task
from pipelines.checkpoints.headers import read_safetensors_header
from pipelines.checkpoints.tokenizer import check_templates, check_tokenizer
from pipelines.checkpoints.untrusted import parse_json, read_json
from pipelines.finetune.data import read_rows
from pipelines.store.fields import FIELDS, misfit
from pipelines.store.integrity import ENTRY, read_entry
from tests.hostile_store import scored

EXAMPLES = int(os.environ.get("MERGEBENCH_EXAMPLES", "0"))


def some(count: int):
    return settings(
        max_examples=EXAMPLES or count, deadline=None, derandomize=not EXAMPLES, database=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip


PLAIN = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=20)
JSON = st.recursive(PLAIN, lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below))
TEXTS = st.text(max_size=60) | st.text(alphabet="{}[]()*+%$.,:='\"\\ \n\0abc019{%", max_size=60)


def one_line(act) -> None:
    """What comes of it is a value, or one error of a sane length."""
    told = "nothing"
    try:
        act()
    except UserError as error:
        told = str(error)
    assert 0 < len(told) < 9000  # a terminal shows 4000 letters of it


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@some(150)
@given(JSON | TEXTS.map(str), st.binary(max_size=8))
def test_json_is_a_table_or_no_value(value, tail):
    for data in (json.dumps(value).encode(), str(value).encode("utf-8", "surrogatepass") + tail, tail):
        for strict in (False, True):
            found = {}
            with contextlib.suppress(ValueError):
                found = parse_json(data, strict=strict)
            json.dumps(found, ensure_ascii=False, allow_nan=not strict).encode()


ENTRIES = st.fixed_dictionaries(
    {}, optional={"dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "x"]) | JSON, "data_offsets": JSON | st.lists(
        st.integers(-8, 80), max_size=3), "shape": JSON | st.lists(st.integers(-1, 9), max_size=3)}
)  # fmt: skip


@some(150)
@given(st.dictionaries(st.text(max_size=6), ENTRIES | JSON, max_size=4), st.binary(max_size=64), st.integers(-9, 9))
def test_a_header_is_tensors_that_fill_the_file_or_refused(place, header, data, off):
    file, text = place / "x.safetensors", json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", max(0, len(text) + off)) + text + data)

    def act():
        found = read_safetensors_header(file)
        assert sum(info.size for info, _ in found.values()) == file.stat().st_size - 8 - len(text) - off

    one_line(act)


@some(120)
@given(JSON, st.sampled_from(sorted(scored())), st.booleans())
def test_an_entry_has_the_fields_that_are_relied_on_or_is_damaged(place, value, name, gone):
    about = {"kind": "results", "key": "place", "made": 1.0, **scored(**{name: value})}
    if gone:
        del about[name]
    folder = place / "results" / "place"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ENTRY).write_text(json.dumps(about))
    one_line(lambda: read_entry("results", folder))
    for kind in FIELDS:
        assert isinstance(misfit(kind, value if isinstance(value, dict) else {"a": value}), str)


@some(120)
@given(st.lists(JSON, max_size=3), st.binary(max_size=30), st.sampled_from((".jsonl", ".json", ".csv", ".parquet")))
def test_data_are_rows_or_refused(place, rows, tail, ending):
    file = place / f"data{ending}"
    file.write_bytes("\n".join(json.dumps(row) for row in rows).encode() + tail)
    one_line(lambda: read_rows(Task(name="t", path=str(file)), 0))


@some(120)
@given(JSON, TEXTS)
def test_a_tokenizer_and_a_template_are_taken_or_refused(place, value, text):
    pattern = {"type": "Replace", "pattern": {"Regex": text}, "content": text * 3}
    for stored in ({"normalizer": value, "model": value}, {"normalizer": pattern}, value):
        (place / "tokenizer.json").write_text(json.dumps(stored))
        one_line(lambda: check_tokenizer(place))
    one_line(lambda: check_templates(text, place))
    one_line(lambda: check_templates({"a": text, "b": value}, place))
    one_line(lambda: read_json(place / "tokenizer.json"))


@some(200)
@given(TEXTS)
def test_what_a_terminal_shows_does_nothing_and_is_the_same_when_shown_again(text):
    assert all(letter == "\n" or letter.isprintable() or ord(letter) > 159 for letter in printable(text))
    assert redacted(redacted(text)) == redacted(text)


KEYS = ("seed", "training.steps", "optimizer.lr", "suite.limit", "executor.threads", "name", "methods", "pools.p.seed",
        "sampler.sizes", "store", "finetuning", "+methods.x", "~pools", "suite", "base.path", "experts")  # fmt: skip


@some(12)
@given(st.lists(st.tuples(st.sampled_from(KEYS), TEXTS | JSON.map(str)), min_size=1, max_size=3))
def test_overrides_are_a_configuration_or_refused(pairs):
    one_line(lambda: compose([f"{key}={value}" for key, value in pairs]))
