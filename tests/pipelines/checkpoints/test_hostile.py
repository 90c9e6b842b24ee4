"""Broken and hostile checkpoints at the door; benchmarks/hostile.py runs every kind in every command."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import UserError
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.load import load_tokenizer
from pipelines.checkpoints.untrusted import check_file, parse_json
from tests import hostile, hostile_attacks
from tests.cli.world import make_world

ROOT = Path(__file__).resolve().parents[3]
LARGE = (
    "header wide", "300000 tensors", "index 500000 files", "config 100 MB", "vocabulary huge", "merges huge",
    "pickle zip bomb", "added many", "post processor large",
)  # fmt: skip
REFUSED = (
    *(k for k in hostile.HEADERS if k.startswith(("length", "cut", "header", "shape", "offsets", "entry", "sparse"))),
    *(k for k in hostile.INDEXES if k not in ("index harmless", "index folder", "index other names")),
    *(f"config {name}" for name in hostile.BAD_JSON), "config secret", "config sparse 3 GB", "tokenizer secret",
    "vocab secret", "template secret", "code secret", "weights pickle", "pickle with code", "name twice",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


def test_every_kind_is_opened_or_refused_in_one_line(world, tmp_path):
    harmless = ("shape [4, 64]", "shape [256]")
    for number, kind in enumerate(kind for kind in hostile_attacks.KINDS if kind not in LARGE):
        folder = hostile_attacks.make(kind, world / "a", tmp_path / str(number) / "bad")
        told = ""
        try:
            open_checkpoint(str(folder)).fingerprint()
        except UserError as error:
            told = str(error)
        assert len(told) < 3000, kind
        assert told or kind not in REFUSED or kind in harmless, kind
        assert not (folder.parent / "canary").exists(), kind


def test_tokenizers_and_templates_that_blow_up_are_refused_before_they_are_used(world, tmp_path):
    bombs = [f"bomb replace {how}" for how in ("doubles", "long", "regex")]
    bombs += [f"pattern {how}" for how in ("nested", "dots", "braces", "backward")]
    bombs += [f"template {how}" for how in ("loops", "times", "power", "doubles", "adds", "format")]
    for number, kind in enumerate(bombs):
        folder = hostile_attacks.make(kind, world / "a", tmp_path / str(number))
        with pytest.raises(UserError, match=r"may take forever|times as long|the chat template"):
            load_tokenizer(folder)
    for number, kind in enumerate(("pattern of gpt", "template raises", "template escape", "added far"), len(bombs)):
        assert load_tokenizer(hostile_attacks.make(kind, world / "a", tmp_path / str(number)))("1+1=").input_ids


def test_pickled_weights_are_plain_tensors_or_refused(world, tmp_path):
    opened = []
    for number, kind in enumerate(k for k in hostile_attacks.ATTACKS if k.startswith("pickle") and k not in LARGE):
        folder = hostile_attacks.make(kind, world / "a", tmp_path / str(number) / "bad")
        with contextlib.suppress(UserError):
            checkpoint = open_checkpoint(str(folder), allow_pickle=True)
            assert all(checkpoint.tensor(name).numel() < 10**6 for name in checkpoint.header), kind
            opened.append(kind.removeprefix("pickle "))
        assert not (folder.parent / "canary").exists(), kind
    assert opened == ["harmless", "old format", "state_dict", "ordered"]


def test_a_name_in_two_shards_is_refused_and_shards_are_read(world, tmp_path):
    with pytest.raises(UserError, match=r"is in model-00001-of-00002.safetensors and in model-00002"):
        open_checkpoint(str(hostile_attacks.make("shards doubled", world / "a", tmp_path / "doubled")))
    shards = open_checkpoint(str(hostile_attacks.make("shards harmless", world / "a", tmp_path / "harmless")))
    assert shards.header == open_checkpoint(str(world / "a")).header


def test_a_sample_of_commands_ends_as_it_should():
    counted = subprocess.run(
        [sys.executable, "benchmarks/hostile.py", "sample"], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert counted.returncode == 0, counted.stdout + counted.stderr
    assert "'runs': " in counted.stdout


def test_links_lead_to_a_file_of_the_same_name_or_into_the_hubs_cache(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    for folder in (blobs, snapshot, tmp_path / "other"):
        folder.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    for target, good in ((blobs / "123", True), (tmp_path / "other/config.json", True), (tmp_path / "secret", False)):
        link = snapshot / "config.json"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        if good:
            check_file(link)
        else:
            with pytest.raises(ValueError, match="link"):
                check_file(link)


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}]}', '{"a": "\\ud83d\\ude00"}', '{"a": Infinity}', "{}"])
def test_sound_json_is_read_as_it_stands(text):
    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"\\ud800": 1}', "[]", "", "{" * 2000, '{"a":' * 65 + "1" + "}" * 65]
)
def test_unsound_json_is_refused_in_words(text):
    with pytest.raises(ValueError, match="it "):
        parse_json(text.encode(), strict=True)
