"""Opening checkpoints: headers, tensors, fingerprints, and one line about what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from merge_helpers import SMALL, weights
from safetensors.torch import load_file, save_file

from conf.errors import UserError
from pipelines.checkpoints import hashes
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.headers import TensorInfo, read_safetensors_header


def test_header_and_tensors_are_those_of_the_file(pool):
    base, _ = pool
    checkpoint = open_checkpoint(str(base))
    expected = load_file(base / "model.safetensors")
    assert checkpoint.header.keys() == expected.keys()
    for name, tensor in expected.items():
        assert checkpoint.header[name] == TensorInfo("float32", tuple(tensor.shape))
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert checkpoint.size_bytes == sum(t.numel() * 4 for t in expected.values())
    assert checkpoint.config["hidden_size"] == SMALL["hidden_size"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int64", "uint8", "bool", "float8_e4m3fn"])
def test_every_dtype_reads_as_safetensors_reads_it(tmp_path, dtype):
    tensor = (torch.arange(24) % 2).reshape(2, 3, 4).to(getattr(torch, dtype))
    save_file({"b": tensor, "a": torch.tensor(3.5), "empty": torch.zeros(0, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(str(tmp_path))
    assert torch.equal(checkpoint.tensor("b").to(torch.float32), tensor.to(torch.float32))
    assert checkpoint.tensor("a").item() == 3.5
    assert checkpoint.tensor("empty").shape == (0, 4)


def test_bytes_that_are_not_aligned_are_read_right(tmp_path):
    entries = {
        "small": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    header = json.dumps(entries).encode()
    data = b"\x07" + torch.tensor([1.25, -2.5]).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    assert open_checkpoint(str(tmp_path)).tensor("odd").tolist() == [1.25, -2.5]


def test_shards_are_one_checkpoint(pool, tmp_path):
    base, _ = pool
    whole = weights(base)
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, members in parts.items():
        save_file({n: whole[n] for n in members}, tmp_path / file)
    shutil.copy(base / "config.json", tmp_path)
    assert open_checkpoint(str(tmp_path)).header == open_checkpoint(str(base)).header  # no index
    index = {"weight_map": {n: file for file, members in parts.items() for n in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = open_checkpoint(str(tmp_path))
    assert all(torch.equal(sharded.tensor(n), whole[n]) for n in names)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"incomplete.*model-00002-of-00002"):
        open_checkpoint(str(tmp_path))


def test_writing_to_a_view_does_not_reach_the_file(pool, tmp_path):
    shutil.copytree(pool[0], tmp_path / "m")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    checkpoint.tensor("model.norm.weight").fill_(7)
    assert not torch.equal(weights(tmp_path / "m")["model.norm.weight"], torch.full((16,), 7.0))


def test_released_pages_come_back(tmp_path):
    big = torch.arange(2**20, dtype=torch.float32)
    save_file({"big": big}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    checkpoint = open_checkpoint(str(tmp_path))
    view = checkpoint.tensor("big")
    checkpoint.release("big")
    assert torch.equal(view, big)


class TestErrors:
    """What a person gets to read."""

    def test_missing_folder(self):
        with pytest.raises(UserError, match=r"no such folder: \./nowhere"):
            open_checkpoint("./nowhere")

    def test_a_file(self, pool):
        with pytest.raises(UserError, match="is a file"):
            open_checkpoint(str(pool[0] / "config.json"))

    def test_a_folder_that_is_no_model(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(UserError, match=r"no model weights \(it holds notes.txt\)"):
            open_checkpoint(str(tmp_path))

    def test_weights_without_config(self, pool, tmp_path):
        shutil.copy(pool[0] / "model.safetensors", tmp_path)
        with pytest.raises(UserError, match=r"no config\.json"):
            open_checkpoint(str(tmp_path))

    def test_hub_id_that_is_not_cached_and_offline(self):
        with pytest.raises(UserError, match=r"neither a folder here nor in the local hub cache.*online=true"):
            open_checkpoint("nobody-here/no-such-model", online=False)

    def test_unknown_hub_id_and_hub_out_of_reach(self, monkeypatch):
        import huggingface_hub
        from huggingface_hub import errors

        kinds = ("RepositoryNotFoundError", "LocalEntryNotFoundError", "RevisionNotFoundError", "GatedRepoError")
        raised = [kind.__new__(kind) for kind in (getattr(errors, name) for name in kinds)]
        said = ["nor a model on the hub", "check the network", "no revision 'v9'", "gated"]
        for error, words in zip(raised, said):

            def fail(*_args, _error=error, **_kwargs):
                raise _error

            monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            with pytest.raises(UserError, match=words):
                open_checkpoint("nobody-here/no-such-model", revision="v9")

    @pytest.mark.parametrize("keep", [4, 100, 3000])
    def test_a_file_that_is_cut_short(self, pool, tmp_path, keep):
        shutil.copytree(pool[0], tmp_path / "m")
        file = tmp_path / "m" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(UserError, match="cut short"):
            _ = open_checkpoint(str(tmp_path / "m")).header

    def test_a_dtype_that_is_not_known(self, tmp_path):
        header = b'{"q": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
        with pytest.raises(UserError, match="q has dtype F4"):
            read_safetensors_header(tmp_path / "model.safetensors")

    def test_pickled_weights_need_a_flag(self, pool, tmp_path):
        shutil.copy(pool[0] / "config.json", tmp_path)
        torch.save(weights(pool[0]), tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="pickled"):
            open_checkpoint(str(tmp_path))
        checkpoint = open_checkpoint(str(tmp_path), allow_pickle=True)
        assert checkpoint.header == open_checkpoint(str(pool[0])).header
        assert all(torch.equal(checkpoint.tensor(n), t) for n, t in weights(pool[0]).items())

    def test_pickled_code_is_not_run(self, pool, tmp_path):
        shutil.copy(pool[0] / "config.json", tmp_path)
        torch.save({"a": Boom(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="more than weights"):
            _ = open_checkpoint(str(tmp_path), allow_pickle=True).header
        assert not (tmp_path / "ran").exists()


class Boom:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


class TestFingerprint:
    """A hash over what can change a number."""

    def test_same_content_elsewhere_is_the_same(self, pool, tmp_path):
        shutil.copytree(pool[0], tmp_path / "copy")
        (tmp_path / "copy" / "README.md").write_text("another card")
        assert open_checkpoint(str(tmp_path / "copy")).fingerprint() == open_checkpoint(str(pool[0])).fingerprint()

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_one_changed_byte_is_another(self, pool, tmp_path, file):
        shutil.copytree(pool[0], tmp_path / "m")
        before = open_checkpoint(str(tmp_path / "m")).fingerprint(tmp_path / "cache")
        content = bytearray((tmp_path / "m" / file).read_bytes())
        place = content.rindex(b"0") if file != "model.safetensors" else len(content) - 1
        content[place] ^= 1
        (tmp_path / "m" / file).write_bytes(content)
        assert open_checkpoint(str(tmp_path / "m")).fingerprint(tmp_path / "cache") != before

    def test_where_a_config_came_from_does_not_matter(self, pool, tmp_path):
        shutil.copytree(pool[0], tmp_path / "m")
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        config |= {"_name_or_path": "elsewhere", "transformers_version": "9.9"}
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        assert open_checkpoint(str(tmp_path / "m")).fingerprint() == open_checkpoint(str(pool[0])).fingerprint()

    def test_known_files_are_not_read_again(self, pool, tmp_path, monkeypatch):
        shutil.copytree(pool[0], tmp_path / "m")
        for file in (tmp_path / "m").iterdir():
            os.utime(file, (time.time() - 60, time.time() - 60))
        first = open_checkpoint(str(tmp_path / "m")).fingerprint(tmp_path / "cache")
        monkeypatch.setattr(hashes, "read_hash", lambda file: pytest.fail(f"read {file}"))
        assert open_checkpoint(str(tmp_path / "m")).fingerprint(tmp_path / "cache") == first

    def test_a_file_of_the_hub_cache_is_not_read(self, pool, tmp_path, monkeypatch):
        shutil.copytree(pool[0], tmp_path / "m")
        file = tmp_path / "m" / "model.safetensors"
        blob = tmp_path / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir()
        shutil.move(file, blob)
        file.symlink_to(blob)
        plain = open_checkpoint(str(pool[0])).fingerprint()
        read = hashes.read_hash

        def not_the_blob(path):
            assert path != blob
            return read(path)

        monkeypatch.setattr(hashes, "read_hash", not_the_blob)
        assert open_checkpoint(str(tmp_path / "m")).fingerprint() == plain
