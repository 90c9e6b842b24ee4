"""Broken and hostile checkpoints: each kind damages a copy of a good one; a good one is never damaged in place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], Any]

MARKUP = "[/red][bold]\x1b[31m\x1b]0;owned\x07<script>alert(1)</script>\nsecond\rline"
"""A name with rich markup, ANSI escapes, HTML and line breaks."""
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NESTED = b"[" * 100_000
GB = 10**9


class Canary:
    """Unpickling this makes a file: code was run."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.file}",))


def _split(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of the weights."""
    blob = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def _join(folder: Path, header: bytes, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + data)


def raw(header: bytes | None = None, length: int | None = None, keep: int | None = None) -> Damage:
    """Another header, another length in front of it, or only the first ``keep`` bytes (from the end where below 0)."""

    def damage(folder: Path) -> None:
        own, data = _split(folder)
        _join(folder, json.dumps(own).encode() if header is None else header, data)
        blob = (folder / WEIGHTS).read_bytes()
        if length is not None:
            blob = struct.pack("<Q", length) + blob[8:]
        (folder / WEIGHTS).write_bytes(blob if keep is None else blob[:keep])

    return damage


def entry(field: str | None, value: Any) -> Damage:
    """One field of one tensor's header entry (or the whole entry) is something else; ``...`` takes it out."""

    def damage(folder: Path) -> None:
        header, data = _split(folder)
        name = next(n for n in header if n.endswith("q_proj.weight"))
        if field is None:
            header[name] = value
        elif value is ...:
            del header[name][field]
        else:
            header[name][field] = value(header[name][field]) if callable(value) else value
        _join(folder, json.dumps(header).encode(), data)

    return damage


def renamed(name: str) -> Damage:
    """One tensor has another name."""

    def damage(folder: Path) -> None:
        header, data = _split(folder)
        own = next(n for n in header if n.endswith("q_proj.weight"))
        header[name] = header.pop(own)
        _join(folder, json.dumps(header).encode(), data)

    return damage


def _twice(folder: Path) -> None:
    header, data = _split(folder)
    text = json.dumps(header)
    name = next(n for n in header if n.endswith("q_proj.weight"))
    _join(folder, (text[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode(), data)


def _many(folder: Path) -> None:
    header, data = _split(folder)
    extra = {f"extra.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2} for i in range(300_000)}
    _join(folder, json.dumps({**header, **extra}).encode(), data)


def metadata(value: Any) -> Damage:
    """The header's ``__metadata__`` is something else."""

    def damage(folder: Path) -> None:
        header, data = _split(folder)
        _join(folder, json.dumps({**header, "__metadata__": value}).encode(), data)

    return damage


def tensor(change: Callable[[Any], Any], which: str = "q_proj.weight") -> Damage:
    """One tensor is another, in a file that is well formed."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / WEIGHTS)
        name = next(n for n in weights if n.endswith(which))
        weights[name] = change(weights[name]).contiguous()
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def without(*names: str) -> Damage:
    """Files that are not there."""
    return lambda folder: [(folder / name).unlink() for name in names if (folder / name).exists()] and None


def file(name: str, content: Any, size: int = 0) -> Damage:
    """A file with other bytes or JSON, sparsely made ``size`` bytes long."""

    def damage(folder: Path) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
        if size:
            os.truncate(folder / name, size)

    return damage


def fields(name: str, **values: Any) -> Damage:
    """Some fields of a JSON file are others."""

    def damage(folder: Path) -> None:
        stored = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**stored, **values}))

    return damage


def link(name: str, target: str) -> Damage:
    """A file is a symbolic link; ``SECRET`` is a file outside the folder."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder.parent / "secret.txt").write_text('{"secret": "hunter2"}')
        (folder / name).symlink_to(target.replace("SECRET", str(folder.parent / "secret.txt")))

    return damage


def folder_at(name: str) -> Damage:
    """A folder stands where a file should be."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def _fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _config_fifo(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def index(weight_map: Any, whole: Any = ...) -> Damage:
    """The weights lie in one shard named by an index that says something else; ``SHARD`` is the shard's name."""

    def damage(folder: Path) -> None:
        header, _ = _split(folder)
        shard = "model-00001-of-00001.safetensors"
        (folder / WEIGHTS).rename(folder / shard)
        shutil.copy(folder / shard, folder.parent / "outside.safetensors")
        places = {name: shard for name in header if name != "__metadata__"}
        made = weight_map(places) if callable(weight_map) else weight_map
        content = {"metadata": {}, "weight_map": made} if whole is ... else whole
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / INDEX).write_bytes(data)

    return damage


def shard_named(name: str) -> Damage:
    """The weights are one shard with a strange name, and there is no index."""
    return lambda folder: (folder / WEIGHTS).rename(folder / name) and None


def _pickled(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Canary(folder.parent / "canary")))

    return damage


def remote_code(name: str, **values: Any) -> Damage:
    """A file names code in the folder that leaves a canary when it is run."""

    def damage(folder: Path) -> None:
        (folder / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w').close()\n")
        fields(name, **values)(folder)

    return damage


def adapter(**values: Any) -> Damage:
    """A LoRA adapter, some fields of whose configuration are others; ``_a`` and ``_b`` change its tensors."""

    def damage(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        stored = json.loads((folder / CONFIG).read_text())
        width = stored["hidden_size"]
        given = dict(values)
        change = [given.pop(part, lambda t: t) for part in ("_a", "_b")]
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
        pair = zip("AB", change, (torch.ones(2, width), torch.ones(width, 2)))
        tensors = {name.format(part): made(part_tensor) for part, made, part_tensor in pair}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **given}))
        for other in (WEIGHTS, CONFIG):
            (folder / other).unlink()

    return damage


def adapter_file(content: Any, size: int = 0) -> Damage:
    """A LoRA adapter whose configuration file is something else."""

    def damage(folder: Path) -> None:
        adapter()(folder)
        file("adapter_config.json", content, size)(folder)

    return damage


def both(*damages: Damage) -> Damage:
    """Several damages one after another."""
    return lambda folder: [damage(folder) for damage in damages] and None


BAD_JSON: dict[str, Any] = {
    "list": [],
    "null": None,
    "number": 7,
    "string": "x",
    "empty": b"",
    "garbage": b"\x00\xff\xfe{",
    "open": b'{"a": ',
    "nested": b'{"a": ' + NESTED,
    "deep": b'{"a":' * 300 + b"1" + b"}" * 300,
    "utf16": '{"a": 1}'.encode("utf-16"),
    "surrogate": b'{"\\ud800": "\\udfff"}',
    "bignumber": b'{"a": ' + b"9" * 10_000 + b"}",
}
"""What a JSON file may hold instead of its fields."""

HEADERS: dict[str, Damage] = {
    "no bytes": file(WEIGHTS, b""),
    "four bytes": raw(keep=4),
    "length only": raw(keep=8),
    "length 0": raw(length=0),
    "length 2^31": raw(length=2**31),
    "length 2^63": raw(length=2**63),
    "length 2^64": raw(length=2**64 - 1),
    "length short": raw(length=20),
    "cut in header": raw(keep=100),
    "cut in data": raw(keep=-100),
    "cut by one": raw(keep=-1),
    "bytes behind": both(raw(), lambda f: (f / WEIGHTS).open("ab").write(b"xx") and None),
    "sparse 100 GB behind": lambda f: os.truncate(f / WEIGHTS, 100 * GB),
    "sparse 100 GB header": file(WEIGHTS, struct.pack("<Q", 100 * GB - 8), 100 * GB),
    "sparse 3 GB header": file(WEIGHTS, struct.pack("<Q", 3 * GB - 8) + b"{", 3 * GB),
    "sparse 90 MB header": file(WEIGHTS, struct.pack("<Q", 90_000_000) + b"{", GB),
    **{
        f"header {name}": raw(value if isinstance(value, bytes) else json.dumps(value).encode())
        for name, value in BAD_JSON.items()
    },
    "header bom": raw(b"\xef\xbb\xbf{}"),
    "header no tensors": raw(b"{}"),
    "header wide": raw(b'{"a":[' + b"{}," * 3_000_000 + b"{}]}"),
    **{f"dtype {v!r}": entry("dtype", v) for v in (7, None, ["F32"], {}, True, "F99", "f32", "F4", "")},
    "dtype smaller": entry("dtype", "F16"),
    "dtype same size": entry("dtype", "I32"),
    **{
        f"shape {str(v)[:20]}": entry("shape", v)
        for v in (
            "16",
            None,
            {},
            7,
            [16.0, 16.0],
            [-16, -16],
            [True, 256],
            [[16], 16],
            ["16", "16"],
            [2**62, 16],
            [2**31, 2**33],
            [0, 2**70],
            [16],
            [256],
            [1] * 256,
            [4, 64],
        )
    },
    **{
        f"offsets {str(v)[:24]}": entry("data_offsets", v)
        for v in (
            None,
            [],
            [0],
            [0, 1, 2],
            ["0", "1024"],
            [0.0, 1024.0],
            {},
            7,
            [True, False],
            [-1024, 0],
            [1024, 0],
            [2**63, 2**63 + 1024],
            [10**30, 10**30 + 1024],
        )
    },
    "offsets overlapping": entry("data_offsets", lambda o: [o[0] - 512, o[1] - 512]),
    "offsets of another": entry("data_offsets", [0, 1024]),
    **{f"entry {v!r}": entry(None, v) for v in (None, [], 7, "F32", {})},
    **{f"entry without {field}": entry(field, ...) for field in ("dtype", "shape", "data_offsets")},
    "name twice": _twice,
    "name surrogate": renamed("model.\ud800.weight"),
    "name markup": renamed(MARKUP),
    "name empty": renamed(""),
    "name long": renamed("x" * 1_000_000),
    "name nul": renamed("a\0b"),
    "name path": renamed("../../../etc/passwd"),
    "metadata list": metadata([1]),
    "metadata numbers": metadata({"format": 7}),
    "metadata null": metadata(None),
    "metadata tensor": metadata({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
    "300000 tensors": _many,
    "weights folder": folder_at(WEIGHTS),
    "weights fifo": _fifo,
    "weights /dev/zero": link(WEIGHTS, "/dev/zero"),
    "weights loop": link(WEIGHTS, WEIGHTS),
    "weights dangling": link(WEIGHTS, "nowhere"),
    "weights secret": link(WEIGHTS, "SECRET"),
    "weights pickle": file(WEIGHTS, pickle.dumps({"a": 1})),
    "pickle with code": _pickled("pytorch_model.bin"),
    "pickle as safetensors": _pickled(WEIGHTS),
    "no weights": without(WEIGHTS),
    "tensor nan": tensor(lambda t: t * float("nan")),
    "tensor inf": tensor(lambda t: t + float("inf")),
    "tensor int": tensor(lambda t: t.long()),
    "tensor scalar": tensor(lambda t: t.sum()),
    "tensor empty": tensor(lambda t: t[:0]),
    "tensor 1-d": tensor(lambda t: t.flatten()),
    "embedding empty": tensor(lambda t: t[:0], "embed_tokens.weight"),
    "embedding scalar": tensor(lambda t: t.sum(), "embed_tokens.weight"),
    "norm long": tensor(lambda t: t.repeat(3), "norm.weight"),
    "tensor bool": tensor(lambda t: t > 0),
    "tensor complex": tensor(lambda t: t.cfloat()),
}

INDEXES: dict[str, Damage] = {
    **{f"index {name}": index(None, value) for name, value in BAD_JSON.items()},
    "index leaves": index(lambda m: dict.fromkeys(m, "../outside.safetensors")),
    "index absolute": index(lambda m: dict.fromkeys(m, "/etc/passwd")),
    "index itself": index(lambda m: dict.fromkeys(m, INDEX)),
    "index config": index(lambda m: dict.fromkeys(m, CONFIG)),
    "index missing": index(lambda m: dict.fromkeys(m, "model-9.safetensors")),
    "index list map": index([]),
    "index null map": index(None),
    "index string map": index("x"),
    "index number files": index(lambda m: dict.fromkeys(m, 7)),
    "index null files": index(lambda m: dict.fromkeys(m)),
    "index list files": index(lambda m: {key: ["a"] for key in m}),
    "index no map": index(None, {"metadata": {}}),
    "index empty map": index({}),
    "index other names": index(lambda m: {"other": next(iter(m.values()))}),
    "index nul": index(lambda m: dict.fromkeys(m, "a\0b.safetensors")),
    "index empty name": index(lambda m: dict.fromkeys(m, "")),
    "index dot": index(lambda m: dict.fromkeys(m, ".")),
    "index surrogate": index(lambda m: dict.fromkeys(m, "\ud800.safetensors")),
    "index markup": index(lambda m: dict.fromkeys(m, MARKUP)),
    "index long": index(lambda m: dict.fromkeys(m, "x" * 5000)),
    "index sparse 3 GB": both(index(lambda m: m), file(INDEX, b"{", 3 * GB)),
    "index 500000 files": index({str(i): f"{i}.safetensors" for i in range(500_000)}),
    "index folder": folder_at(INDEX),
    "index harmless": index(lambda m: m),
    "shards of many": shard_named("model-00001-of-99999999999.safetensors"),
    "shards of words": shard_named("model-x-of-y.safetensors"),
    "shards of none": shard_named("model-00001-of-00000.safetensors"),
    "shards of negative": shard_named("model-00001-of--0001.safetensors"),
}

CONFIGS: dict[str, Damage] = {
    **{f"config {name}": file(CONFIG, value) for name, value in BAD_JSON.items()},
    "config missing": without(CONFIG),
    "config folder": folder_at(CONFIG),
    "config fifo": _config_fifo,
    "config secret": link(CONFIG, "SECRET"),
    "config /etc/passwd": link(CONFIG, "/etc/passwd"),
    "config /dev/zero": link(CONFIG, "/dev/zero"),
    "config loop": link(CONFIG, CONFIG),
    "config sparse 3 GB": file(CONFIG, b"{", 3 * GB),
    "config 100 MB": file(CONFIG, b'{"a": "' + b"x" * 100_000_000 + b'"}'),
    "config empty object": file(CONFIG, {}),
    **{
        f"{name} {str(value)[:20]}": fields(CONFIG, **{name: value})
        for name, values in {
            "hidden_size": ("16", -16, 0, None, 10**7, 16.5, 10**30, [16], float("nan")),
            "num_hidden_layers": (0, -1, 10**9, "1", None, 3, 1.5, [1]),
            "num_attention_heads": (0, -2, 3, 10**9, "2", None),
            "num_key_value_heads": (0, -1, 7, "x"),
            "intermediate_size": (0, 64, 10**9, "32"),
            "vocab_size": (0, -1, 7, 10**9, "46", None, float("inf")),
            "head_dim": (0, -8, 10**6, "8"),
            "max_position_embeddings": (0, -1, 10**18, "64", None),
            "rms_norm_eps": (float("nan"), "x", -1.0, None),
            "model_type": ("unknown", [], None, 7, "", "t5", "bert", "gpt2", MARKUP, "../../x"),
            "architectures": (7, "x", [7], ["Nope"], None),
            "text_config": ([], 7, "x", {"hidden_size": 1}),
            "quantization_config": (7, [], {"quant_method": "x"}, {"quant_method": []}),
            "tie_word_embeddings": ("yes", True, []),
            "rope_scaling": (7, "x", {"rope_type": "x"}, {"rope_type": "linear", "factor": "x"}, {"type": []}),
            "rope_parameters": (7, [], {"rope_type": "nope"}, {"rope_theta": "x", "rope_type": "default"}),
            "dtype": ("float3", 7, [], {}, "__import__"),
            "torch_dtype": ("float3", 7),
            "hidden_act": ("nope", 7, [], "__class__"),
            "pad_token_id": (10**9, -5, "x", [0]),
            "eos_token_id": ("x", [[]], 10**12),
            "bos_token_id": ({},),
            "attention_dropout": (2.0, "x", -1),
            "initializer_range": (-1.0, "x", float("nan")),
            "use_cache": ("x", 7),
            "_attn_implementation": ("nope", 7),
            "attn_implementation": ("evil/kernel", 7),
            "pruned_heads": ({"0": [0]}, 7),
            "id2label": (7, [1]),
            "num_labels": (10**9, "x"),
            "is_encoder_decoder": (True, "x"),
            "tokenizer_class": ("Nope", 7, "os.system"),
            "mlp_bias": (True, "x"),
            "attention_bias": (True,),
            "pretraining_tp": (0, 2),
            "transformers_version": (7, "x"),
            "_name_or_path": (7, "/etc"),
            "return_dict": (7,),
            "layer_types": (7, ["nope"]),
            "gradient_checkpointing": ("x",),
        }.items()
        for value in values
    },
    "config code": remote_code(
        CONFIG, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="evil"
    ),
    "config code known": remote_code(
        CONFIG, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    ),
    "config auto_map 7": fields(CONFIG, auto_map=7),
    "config auto_map list": fields(CONFIG, auto_map={"AutoConfig": [7]}),
    "config extra": fields(CONFIG, **{MARKUP: MARKUP}),
    "config generation": fields(CONFIG, generation_config=7, max_length="x", temperature=-1),
}

OTHERS: dict[str, Damage] = {
    **{f"generation {name}": file("generation_config.json", value) for name, value in BAD_JSON.items()},
    "generation types": fields("generation_config.json", temperature="hot", max_new_tokens=[], eos_token_id="x"),
    "generation sparse 3 GB": file("generation_config.json", b"{", 3 * GB),
    "generation secret": link("generation_config.json", "SECRET"),
    "generation nan": fields("generation_config.json", temperature=float("nan")),
    "generation folder": folder_at("generation_config.json"),
    **{f"tokenizer {name}": file("tokenizer.json", value) for name, value in BAD_JSON.items()},
    "tokenizer sparse 3 GB": file("tokenizer.json", b"{", 3 * GB),
    "tokenizer secret": link("tokenizer.json", "SECRET"),
    "tokenizer missing": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer folder": folder_at("tokenizer.json"),
    "tokenizer empty object": file("tokenizer.json", {}),
    **{
        f"tokenizer vocab {str(v)[:20]}": fields("tokenizer.json", model={"type": "BPE", "vocab": v, "merges": []})
        for v in (
            None,
            [],
            [[]],
            [7],
            7,
            "x",
            {"a": -1},
            {"a": 10**30},
            {"a": "x"},
            {"a": None},
            {"a": 10**6},
            {"\ud800": 0},
        )
    },
    **{
        f"tokenizer model {str(v)[:20]}": fields("tokenizer.json", model=v)
        for v in (None, [], 7, {"type": "Nope"}, {"type": "Unigram", "vocab": [["a"]]})
    },
    **{
        f"tokenizer added {str(v)[:20]}": fields("tokenizer.json", added_tokens=v)
        for v in (
            None,
            7,
            [7],
            [{}],
            [{"content": 7, "id": "x"}],
            [{"content": "x", "id": -1}],
            [{"content": [], "id": 0}],
            {"a": 1},
        )
    },
    "tokenizer regex": fields(
        "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "((a+)+)+$"}, "behavior": "Isolated", "invert": False},
    ),
    "tokenizer bad regex": fields(
        "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    ),
    **{f"tokenizer_config {name}": file("tokenizer_config.json", value) for name, value in BAD_JSON.items()},
    **{
        f"tokenizer_config {k} {str(v)[:20]}": fields("tokenizer_config.json", **{k: v})
        for k, v in (
            ("tokenizer_class", "Nope"),
            ("tokenizer_class", 7),
            ("tokenizer_class", "os.system"),
            ("eos_token", 7),
            ("eos_token", {"content": 7}),
            ("model_max_length", "x"),
            ("model_max_length", -1),
            ("model_max_length", 1e400),
            ("chat_template", 7),
            ("chat_template", "{% for"),
            ("chat_template", [7]),
            ("pad_token", []),
            ("extra_special_tokens", 7),
            ("added_tokens_decoder", 7),
            ("added_tokens_decoder", {"x": 7}),
            ("added_tokens_decoder", {"0": {"content": 7}}),
            ("padding_side", "up"),
            ("backend", "x"),
            ("is_local", 7),
            ("clean_up_tokenization_spaces", "x"),
        )
    },
    "tokenizer code": remote_code(
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        tokenizer_class="EvilTokenizer",
    ),
    **{f"special {name}": file("special_tokens_map.json", value) for name, value in BAD_JSON.items()},
    "special types": file("special_tokens_map.json", {"eos_token": 7, "additional_special_tokens": 9}),
    **{f"added_tokens {name}": file("added_tokens.json", value) for name, value in BAD_JSON.items()},
    "vocab secret": link("vocab.txt", "SECRET"),
    "template secret": link("chat_template.jinja", "SECRET"),
    "model secret": link("tokenizer.model", "SECRET"),
    "template broken": file("chat_template.jinja", b"{% for"),
    "template endless": file(
        "chat_template.jinja", b"{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    ),
    "template bytes": file("chat_template.jinja", b"\xff\xfe\x00"),
    "template sparse": file("chat_template.jinja", b"x", 3 * GB),
    "code secret": link("modeling.py", "SECRET"),
    "vocab sparse": file("vocab.txt", b"x", 3 * GB),
}

ADAPTERS: dict[str, Damage] = {
    "adapter harmless": adapter(),
    **{f"adapter {name}": adapter_file(value) for name, value in BAD_JSON.items()},
    "adapter sparse 3 GB": adapter_file(b"{", 3 * GB),
    "adapter empty object": adapter_file({}),
    **{
        f"adapter {k} {str(v)[:20]}": adapter(**{k: v})
        for k, values in {
            "r": ("x", None, 0, -1, [2]),
            "lora_alpha": ("x", None, [], {}, float("nan"), float("inf"), 1e308, True),
            "alpha_pattern": ([], 7, {"((": 1}, {"q_proj": "x"}, {"(.*)*z(.*)*x": 1}, {"q_proj": None}),
            "rank_pattern": ([], {"q_proj": "x"}),
            "peft_type": ([], None, 7, "IA3", MARKUP),
            "target_modules": (7, None, {}),
            "use_rslora": ("x", []),
            "use_dora": ("x", True),
            "init_lora_weights": (7, [], "pissa"),
            "base_model_name_or_path": (7, "../x"),
            "fan_in_fan_out": (True, "x"),
            "modules_to_save": (7,),
            MARKUP: (MARKUP,),
            "ensure_weight_tying": ("x",),
        }.items()
        for v in values
    },
    "adapter a 1-d": adapter(_a=lambda t: t.flatten()),
    "adapter a scalar": adapter(_a=lambda t: t.sum()),
    "adapter a empty": adapter(_a=lambda t: t[:0]),
    "adapter b short": adapter(_b=lambda t: t[:3].contiguous()),
    "adapter a int": adapter(_a=lambda t: t.long()),
    "adapter b 3-d": adapter(_b=lambda t: t[None]),
    "adapter no weights": both(adapter(), without("adapter_model.safetensors")),
    "adapter code": both(
        adapter(),
        without("adapter_model.safetensors"),
        lambda f: (f / "adapter_model.bin").write_bytes(pickle.dumps(Canary(f.parent / "canary"))) and None,
    ),
}

KINDS: dict[str, Damage] = {**HEADERS, **INDEXES, **CONFIGS, **OTHERS, **ADAPTERS}
