"""Checkpoints that someone made to do harm: bombs, endless texts, code, files that lie about each other."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tests import hostile
from tests.hostile import CONFIG, INDEX, WEIGHTS, Damage, both, fields, file, tensor, without


def replaces(*pairs: tuple[str, str], kind: str = "String") -> Damage:
    """A tokenizer whose normalizer replaces one text by another, again and again."""
    steps = [{"type": "Replace", "pattern": {kind: old}, "content": new} for old, new in pairs]
    return fields("tokenizer.json", normalizer={"type": "Sequence", "normalizers": steps})


def splits(pattern: str) -> Damage:
    """A tokenizer that splits texts by a regular expression."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return fields("tokenizer.json", pre_tokenizer=step)


def template(text: str) -> Damage:
    """A chat template, told in both places."""
    return both(fields("tokenizer_config.json", chat_template=text), file("chat_template.jinja", text.encode()))


def sharded(change: Any) -> Damage:
    """Two shards with an index, changed by ``change(folder, index)``."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / WEIGHTS)
        names = sorted(weights)
        halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        for shard, own in halves.items():
            save_file({name: weights[name] for name in own}, folder / shard, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        index = {"metadata": {"total_size": 1}, "weight_map": {n: s for s, own in halves.items() for n in own}}
        change(folder, index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def _both_hold_all(folder: Path, index: dict[str, Any]) -> None:
    from safetensors.torch import load_file, save_file

    shards = sorted(folder.glob("model-*.safetensors"))
    whole = {name: t for shard in shards for name, t in load_file(shard).items()}
    for shard in shards:
        save_file(whole, shard, metadata={"format": "pt"})


def _linked(folder: Path, index: dict[str, Any]) -> None:
    (shard, _) = sorted(folder.glob("model-*.safetensors"))
    shutil.move(shard, folder.parent / "elsewhere.safetensors")
    shard.symlink_to(folder.parent / "elsewhere.safetensors")


def _cycle(folder: Path, index: dict[str, Any]) -> None:
    one, two = sorted(folder.glob("model-*.safetensors"))
    one.unlink(), two.unlink()
    one.symlink_to(two.name), two.symlink_to(one.name)


def saved(make: Any, zipped: bool = True, cut: int | None = None) -> Damage:
    """Weights as torch pickles them: what ``make(weights)`` gives, in either of its formats."""

    def damage(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        made = make(load_file(folder / WEIGHTS))
        torch.save(made, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        (folder / WEIGHTS).unlink()
        if cut is not None:
            data = (folder / "pytorch_model.bin").read_bytes()
            (folder / "pytorch_model.bin").write_bytes(data[:cut])

    return damage


def _one(change: Any) -> Any:
    def make(weights: dict[str, Any]) -> dict[str, Any]:
        name = next(n for n in weights if n.endswith("q_proj.weight"))
        return {**weights, name: change(weights[name])}

    return make


def _zip_bomb(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"\0" * (300 << 20))
        archive.writestr("archive/version", b"3")


def _raw_pickle(data: Any) -> Damage:
    return both(without(WEIGHTS), lambda f: (f / "pytorch_model.bin").write_bytes(data(f)) and None)


class _Calls:
    """Unpickling this calls a function of builtins, or of torch."""

    def __init__(self, target: Any, *args: Any):
        self.parts = target, args

    def __reduce__(self) -> Any:
        return self.parts


def _huge_vocabulary(folder: Path) -> None:
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["model"]["vocab"].update({f"t{i}": 100 + i for i in range(1_500_000)})
    (folder / "tokenizer.json").write_text(json.dumps(stored))


GPT2 = {"tokenizer_class": "GPT2TokenizerFast"}
ATTACKS: dict[str, Damage] = {
    "bomb replace doubles": replaces(*[("a", "aa"), ("1", "11")] * 40),
    "bomb replace long": replaces(("a", "a" * 1_000_000), ("b", "a" * 1_000)),
    "bomb replace regex": replaces((".", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), (".", "a" * 1000), kind="Regex"),
    "bomb replace empty": replaces(("", "aaaa"), ("", "aaaa"), kind="Regex"),
    "pattern nested": splits(r"((\d+)+)+$"), "pattern dots": splits("(.*)*z"),
    "pattern braces": splits("(a{1,99}){1,99}"),
    "pattern backward": splits(r"(?<=(a+)+)b"), "pattern long": splits("(" * 5000 + "a" + ")" * 5000),
    "pattern alternatives": splits("(a|a|a|aa)*$"),
    "pattern of gpt": splits(r"\p{L}+|(?:\p{N}){1,3}| ?[^\s\p{L}\p{N}]+"),
    "normalizer unknown": fields("tokenizer.json", normalizer={"type": "Nope"}),
    "normalizer nested": fields("tokenizer.json", normalizer=json.loads(
        '{"type":"Sequence","normalizers":[' * 25 + '{"type":"NFC"}' + "]}" * 25)),
    "post processor large": fields("tokenizer.json", post_processor={"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}] * 200_000, "pair": [], "special_tokens": {
            "<s>": {"id": "<s>", "ids": [0] * 1000, "tokens": ["<s>"] * 1000}}}),
    "truncation negative": fields("tokenizer.json", truncation={"max_length": -1, "strategy": "x", "stride": 10**30}),
    "padding huge": fields("tokenizer.json", padding={"strategy": {"Fixed": 10**10}, "direction": "Right",
                                                      "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                                                      "pad_token": "<s>"}),
    "vocabulary huge": _huge_vocabulary,
    "merges huge": both(fields("tokenizer_config.json", **GPT2), file("vocab.json", {"a": 0, "b": 1}),
                        file("merges.txt", b"#version: 0.2\n" + b"a b\n" * 10_000_000), without("tokenizer.json")),
    "merges unknown": both(fields("tokenizer_config.json", **GPT2), file("vocab.json", {"a": 0}),
                           file("merges.txt", b"x y\nz\n\n\0 \n"), without("tokenizer.json")),
    "merges types": fields("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": [7, ["a"], {}]}),
    "merges missing": fields("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
    "added empty": fields("tokenizer.json", added_tokens=[{"id": 0, "content": "", "special": True, "normalized": False,
                                                           "lstrip": True, "rstrip": True, "single_word": False}]),
    "added many": fields("tokenizer.json", added_tokens=[
        {"id": 60 + i, "content": f"<{i}>", "special": True, "normalized": False, "lstrip": False, "rstrip": False,
         "single_word": False} for i in range(50_000)]),
    "added far": file("added_tokens.json", {"x": 10**12, "y": -1}),
    "special large": fields("tokenizer_config.json", eos_token="x" * 1_000_000, pad_token="y" * 10**5),
    "class of another": fields("tokenizer_config.json", tokenizer_class="LlamaTokenizer", auto_map={"a": 7}),
    "tokenizer_file up": fields("tokenizer_config.json", tokenizer_file="../../etc/passwd", vocab_file="/etc/passwd"),
    **{f"template {name}": template(text) for name, text in {
        "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "globals": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "include": "{% include '/etc/passwd' %}", "import": "{% import 'os' as os %}{{ os }}",
        "raises": "{{ raise_exception('no') }}", "loops": "{% for a in range(99999) %}{% for b in range(99999) %}x"
        "{% endfor %}{% endfor %}", "times": "{{ 'x' * 10000000000 }}", "power": "{{ 10 ** 10 ** 10 }}",
        "doubles": "{% set a = 'xx' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
        "adds": "{% set a = 'xx' %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
        "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "deep": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "format": "{{ '%1000000000d' % 1 }}",
        "endless": "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "escape": "\x1b[31mEVIL[/red]", "null": "\0", "long": "x" * 3_000_000,
    }.items()},
    "shards harmless": sharded(lambda folder, index: None), "shards doubled": sharded(_both_hold_all),
    "shards linked": sharded(_linked), "shards cycle": sharded(_cycle),
    "shards up": sharded(lambda f, i: i["weight_map"].update(x="../elsewhere.safetensors")),
    "shards absolute": sharded(lambda f, i: i["weight_map"].update(x="/etc/passwd")),
    "shards without": sharded(lambda f, i: (f / "model-00002-of-00002.safetensors").unlink()),
    "shards swapped": sharded(lambda f, i: i["weight_map"].update(
        dict.fromkeys(i["weight_map"], "model-00001-of-00002.safetensors"))),
    "shards metadata": sharded(lambda f, i: i.update(metadata={"total_size": "x" * 100})),
    **{f"vocab_size {value:g}": fields(CONFIG, vocab_size=value) for value in (10**12, -(10**12), 2**63)},
    "sizes huge": fields(CONFIG, hidden_size=10**6, intermediate_size=10**6, num_hidden_layers=1000),
    "ties disagree": both(fields(CONFIG, tie_word_embeddings=True), tensor(lambda t: t + 1, "embed_tokens.weight")),
    "untied without head": both(fields(CONFIG, tie_word_embeddings=False), hostile.renamed("other.weight")),
    "config llava": fields(CONFIG, model_type="llava", text_config={"model_type": "llama"}, vision_config={}),
    "config quantised": fields(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1}),
    "config bitsandbytes": fields(CONFIG, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "config rope infinite": fields(CONFIG, rope_parameters={"rope_type": "yarn", "factor": 1e308, "rope_theta": 0}),
    "config experts": fields(CONFIG, model_type="mixtral", num_local_experts=10**6, num_experts_per_tok=10**6),
    "config mamba": fields(CONFIG, model_type="mamba", state_size=10**9, expand=10**6),
    "config composite": fields(CONFIG, model_type="encoder-decoder", encoder={"model_type": "bert"}, decoder=7),
    **{f"weights {name}": tensor(lambda t, dtype=name: _cast(t, dtype), "q_proj.weight") for name in (
        "float8_e4m3fn", "float8_e5m2", "uint64", "uint16", "uint8", "int8", "float64", "float16")},
    "weights all empty": tensor(lambda t: t[:0, :0]), "weights 9-d": tensor(lambda t: t.reshape(*[1] * 7, *t.shape)),
    "pickle harmless": saved(lambda w: w), "pickle old format": saved(lambda w: w, zipped=False),
    "pickle state_dict": saved(lambda w: {"state_dict": w}), "pickle nested": saved(lambda w: {"state_dict": {"a": w}}),
    "pickle list": saved(lambda w: list(w.values())), "pickle number": saved(lambda w: 7),
    "pickle ordered": saved(OrderedDict),
    "pickle numbers as names": saved(lambda w: dict(enumerate(w.values()))),
    "pickle strides": saved(_one(lambda t: t.flatten()[:1].as_strided((1 << 20, 1 << 20), (0, 0)))),
    "pickle sparse": saved(_one(lambda t: t.to_sparse())), "pickle text": saved(_one(lambda t: "x")),
    "pickle quantised": saved(_one(lambda t: _quantised(t))), "pickle meta": saved(_one(lambda t: t.to("meta"))),
    "pickle complex": saved(_one(lambda t: t.to(__import__("torch").complex128))),
    "pickle none": saved(_one(lambda t: None)),
    "pickle cut": saved(lambda w: w, cut=500), "pickle cut old": saved(lambda w: w, zipped=False, cut=500),
    "pickle emptied": saved(lambda w: w, cut=0), "pickle zip bomb": _zip_bomb,
    "pickle system": _raw_pickle(lambda f: pickle.dumps(hostile.Canary(f.parent / "canary"))),
    "pickle eval": _raw_pickle(lambda f: pickle.dumps({"a": _Calls(eval, f"open({str(f.parent / 'canary')!r}, 'w')")})),
    "pickle open": _raw_pickle(lambda f: pickle.dumps(_Calls(open, str(f.parent / "canary"), "w"))),
    "pickle memo": _raw_pickle(lambda f: b"\x80\x04" + b"(" * 100_000 + b"."),
    "pickle length": _raw_pickle(lambda f: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x."),
    "pickle protocol": _raw_pickle(lambda f: b"\x80\xff."),
    "pickle bytes": _raw_pickle(lambda f: bytes(range(256)) * 40),
}  # fmt: skip
KINDS: dict[str, Damage] = {**hostile.KINDS, **ATTACKS}


def _cast(t: Any, dtype: str) -> Any:
    import torch

    return t.abs().to(getattr(torch, dtype)) if t.ndim == 2 else t


def _quantised(t: Any) -> Any:
    import torch

    return torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)


def make(kind: str, good: Path, folder: Path) -> Path:
    """A damaged copy of a good checkpoint, at ``folder``."""
    shutil.copytree(good, folder)
    KINDS[kind](folder)
    return folder
