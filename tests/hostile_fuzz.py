"""Checkpoints damaged by chance, from a seed: bytes, fields and files changed, swapped, doubled; and odd places."""

# ruff: noqa: E501
from __future__ import annotations

import json
import math
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import hostile
from tests.hostile import CONFIG, INDEX, MARKUP, WEIGHTS, Damage, adapter, both, fields, file, tensor
from tests.hostile_attacks import sharded

TEXTS = (CONFIG, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json", INDEX)
VALUES = (
    None, True, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf, "", "x", "1", MARKUP,
    "../../etc/passwd", "\0", "\ud800", "x" * 70_000, [], [None], [[]], [0, 1], {}, {"a": {}}, {"": None}, "float32",
    "llama", "[PAD]", "{{ x }}", "(a+)+$",
)  # fmt: skip
"""What may stand in place of any value."""


def flipped(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, doubled or put elsewhere; the first ones more often."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 50))):
        place = int(len(found) * chance.random() ** chance.choice((1, 4)))
        size = chance.choice((1, 1, 2, 8, 200))
        part = found[place : place + size]
        how = chance.randrange(5)
        if how == 0:
            found[place : place + size] = chance.randbytes(len(part))
        elif how == 1:
            del found[place : place + size]
        elif how == 2:
            found[place:place] = part
        elif how == 3:
            found[place : place + size] = bytes([chance.choice((0, 9, 34, 44, 45, 91, 123, 125, 255))]) * len(part)
        else:
            other = chance.randrange(len(found) + 1)
            found[other:other] = part
    return bytes(found)


def mutated(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, left out, swapped, renamed or wrapped."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        node = value
        while isinstance(node, (dict, list)) and node:  # a walk down to some node that has parts
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key, other = chance.choice(keys[:40] if chance.random() < 0.7 else keys), chance.choice(keys)
            below = node[key]
            if isinstance(below, (dict, list)) and below and chance.random() < 0.75:
                node = below
                continue
            how = chance.randrange(6)
            if how == 0:
                del node[key]
            elif how == 1:
                node[key], node[other] = node[other], node[key]
            elif how == 2 and isinstance(node, dict):
                node[str(chance.choice(VALUES))] = node.pop(key)
            elif how == 3:
                node[key] = [below]
            else:
                node[key] = chance.choice(VALUES)
            break
    return value


def fuzz(seed: int) -> Damage:
    """A checkpoint, an adapter or one in shards, damaged as a seed says."""

    def damage(folder: Path) -> None:
        chance = random.Random(seed)
        form = chance.randrange(3)
        if form:
            adapter()(folder) if form == 1 else sharded(lambda folder, index: None)(folder)
        names = [name for name in TEXTS if (folder / name).is_file()]
        weights = sorted(f.name for f in folder.glob("*.safetensors"))
        how = seed % 5
        if how == 0:  # bytes
            place = folder / chance.choice([*names, *weights])
            place.write_bytes(flipped(place.read_bytes(), chance))
        elif how in (1, 2):  # fields
            place = folder / chance.choice(names)
            place.write_text(json.dumps(mutated(json.loads(place.read_text()), chance)), errors="surrogatepass")
        elif how == 3:  # fields of a header, whose length is right
            place = folder / chance.choice(weights)
            blob = place.read_bytes()
            (length,) = struct.unpack("<Q", blob[:8])
            header = json.dumps(mutated(json.loads(blob[8 : 8 + length]), chance)).encode(errors="surrogatepass")
            place.write_bytes(struct.pack("<Q", len(header)) + header + blob[8 + length :])
        else:  # files in each other's places
            one, other = chance.choice([*names, *weights]), chance.choice([*names, *weights])
            (folder / one).rename(folder / "x")
            if one != other:
                (folder / other).rename(folder / one)
            (folder / "x").rename(folder / other if chance.random() < 0.8 else folder / other.upper())

    return damage


def _socket(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
        os.chdir(here)

    return damage


def _device(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        try:
            os.mknod(folder / name, 0o020644, os.makedev(1, 5))  # /dev/zero
        except OSError:
            (folder / name).symlink_to("/dev/zero")

    return damage


def _fifo(name: str) -> Damage:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def _closed(name: str) -> Damage:
    return lambda folder: (folder / name).chmod(0)


def _bom(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())


def _doubled(name: str, key: str, value: Any) -> Damage:
    """A key that stands twice in a JSON file: first as it is, then as something else."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text().rstrip()
        (folder / name).write_text(f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}")

    return damage


def _crowd(folder: Path) -> None:
    for i in range(20_000):
        (folder / f"extra-{i}.json").touch()


def _copied(*names: str) -> Damage:
    """Files under long or strange names beside the good ones."""
    return lambda folder: [shutil.copy(folder / CONFIG, folder / name) for name in names] and None


def _many_shards(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    for i, (name, weight) in enumerate(weights.items(), 1):
        save_file(
            {name: weight}, folder / f"model-{i:05d}-of-{len(weights):05d}.safetensors", metadata={"format": "pt"}
        )
    (folder / WEIGHTS).unlink()


def _tokenizer(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        stored = json.loads((folder / "tokenizer.json").read_text())
        change(stored)
        (folder / "tokenizer.json").write_text(json.dumps(stored))

    return damage


def _model(**model: Any) -> Damage:
    return _tokenizer(lambda stored: stored.update(model=model))


VOCABULARY = [[letter, -1.0] for letter in ["<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789+="]]
PLACES: dict[str, Damage] = {
    **{f"{how} {name}": damage(name) for how, damage in (
        ("fifo", _fifo), ("socket", _socket), ("device", _device), ("closed", _closed))
       for name in (CONFIG, WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json")},
    **{f"fifo more {name}": _fifo(name) for name in (
        "chat_template.jinja", "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt", "evil.py",
        INDEX, "adapter_config.json", "tangent.json", "preprocessor_config.json", "README.md", "tokenizer.model",
        "additional_chat_templates", "custom_generate", "spiece.model", "mergebench_recipe.json", "video.safetensors",
        "training_args.bin", "entry.json")},
    **{f"bom {name}": _bom(name) for name in (CONFIG, "tokenizer.json", "tokenizer_config.json")},
    "closed folder": lambda folder: folder.chmod(0), "closed to lists": lambda folder: folder.chmod(0o100),
    "crowd": _crowd, "long names": _copied("x" * 255, "é" * 127, "config.json.bak\n", "[red]\x1b[31mEVIL"),
    "name of bytes": lambda folder: os.mkdir(os.fsencode(folder) + b"/\xff\xfe"),
    "folder loop": lambda folder: (folder / "up").symlink_to(".."),
    "templates loop": lambda folder: (folder / "additional_chat_templates").symlink_to("."),
    "templates file": file("additional_chat_templates", b"x"),
    "itself": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "a fifo": lambda folder: (shutil.rmtree(folder), os.mkfifo(folder)),
    "tangent garbage": file("tangent.json", b"\xff{"), "tangent list": file("tangent.json", []),
    "tangent number": file("tangent.json", {"linearised_at": 7}), "tangent empty": file("tangent.json", {}),
    "tangent nowhere": file("tangent.json", {"linearised_at": "/nowhere"}),
    "tangent itself": lambda folder: (folder / "tangent.json").write_text(json.dumps({"linearised_at": str(folder)})),
    "tangent sparse": file("tangent.json", b"{", 3 * 10**9),
    "recipe garbage": file("mergebench_recipe.json", b"\xff{"), "readme front": file("README.md", b"---\n[: {\n---\n"),
    "readme licence": file("README.md", b"---\nlicense: [7]\nbase_model: {a: 1}\n---\n"),
    "metrics garbage": file("metrics.jsonl", b"\xff{"),
}  # fmt: skip

MEANT: dict[str, Damage] = {
    "index twice": both(sharded(lambda f, i: None), _doubled(INDEX, "weight_map", {"a": "b"})),
    "index subset": sharded(lambda f, i: i["weight_map"].pop(next(iter(i["weight_map"])))),
    "index and single": both(lambda f: shutil.copy(f / WEIGHTS, f / "x"), sharded(lambda f, i: None),
                             lambda f: (f / "x").rename(f / WEIGHTS)),
    "config twice": _doubled(CONFIG, "hidden_size", 7), "config twice type": _doubled(CONFIG, "model_type", "gpt2"),
    "adapter twice": both(adapter(), _doubled("adapter_config.json", "lora_alpha", "x")),
    "many shards": _many_shards, "head rows": tensor(lambda t: t[:-1], "lm_head.weight"),
    "head and embedding rows": both(tensor(lambda t: t[:-1], "lm_head.weight"), tensor(lambda t: t[:-1], "embed_tokens.weight")),
    "both of one row": both(tensor(lambda t: t[:1], "lm_head.weight"), tensor(lambda t: t[:1], "embed_tokens.weight"),
                            fields(CONFIG, vocab_size=1)),
    "no rows at all": both(tensor(lambda t: t[:0], "lm_head.weight"), tensor(lambda t: t[:0], "embed_tokens.weight"),
                           fields(CONFIG, vocab_size=0)),
    "embedding wide": tensor(lambda t: t.repeat(1, 2), "embed_tokens.weight"),
    "embedding 3-d": tensor(lambda t: t[None], "embed_tokens.weight"), "head scalar": tensor(lambda t: t.sum(), "lm_head.weight"),
    "norm scalar": tensor(lambda t: t.sum(), "norm.weight"), "norm 2-d": tensor(lambda t: t[None], "norm.weight"),
    "one nan": tensor(lambda t: t.index_fill(0, t.new_zeros(1).long(), float("nan"))),
    "embedding nan": tensor(lambda t: t * float("nan"), "embed_tokens.weight"),
    "head inf": tensor(lambda t: t + float("inf"), "lm_head.weight"),
    "norm huge": tensor(lambda t: t * 3e38, "norm.weight"), "weights huge": tensor(lambda t: t * 0 + 3e38, "down_proj.weight"),
    "weights tiny": tensor(lambda t: t * 1e-44), "norm zero": tensor(lambda t: t * 0, "norm.weight"),
    "embedding int": tensor(lambda t: t.long(), "embed_tokens.weight"), "head bool": tensor(lambda t: t > 0, "lm_head.weight"),
    "head float8": tensor(lambda t: t.to(__import__("torch").float8_e4m3fn), "lm_head.weight"),
    "norm complex": tensor(lambda t: t.cfloat(), "norm.weight"), "vocab 2**40": fields(CONFIG, vocab_size=2**40),
    **{f"{name} {value}": fields(CONFIG, **{name: value}) for name, values in {
        "sliding_window": (-1, 0, 10**12, "x"), "attention_dropout": (-1.0, 1.0, 0.5, float("nan")), "hidden_dropout": (-1,),
        "max_position_embeddings": (1, 2, 3), "num_hidden_layers": (True, 1.0), "attn_logit_softcapping": (0, "x"),
        "attention_multiplier": (float("nan"), "x"), "logit_scale": ("x",), "rope_theta": (0, -1, "x", float("inf")),
        "layer_types": (["sliding_attention"], ["full_attention"] * 10**5), "pad_token_id": (7, -1, 2**63, 10**6, True),
        "eos_token_id": ([], [10**9], -1, 2.5), "bos_token_id": (10**9, "x", []), "output_attentions": (True, "x"),
        "output_hidden_states": (True,), "use_return_dict": (False,), "torchscript": (True,), "is_decoder": (False,),
        "add_cross_attention": (True,), "chunk_size_feed_forward": (7, -1), "problem_type": ("x",), "name_or_path": (7,),
        "_attn_implementation": ("flash_attention_2", "paged|sdpa"), "dtype": ("float64", "int8", "complex64", "auto"),
        "max_length": (0, -1, 10**12), "suppress_tokens": ([-1], "x"), "quantization_config": ({"quant_method": "fp8"},
            {"quant_method": "awq"}, {"quant_method": "mxfp4"}, {"load_in_8bit": True}), "architectures": (["GPT2LMHeadModel"],),
        "model_type": ("mistral", "qwen2", "gemma", "gpt_neox", "clip", "clip_vision_model", "whisper", "rwkv", "falcon", "phi3"),
        "text_config": ({"model_type": "llama"}, {"model_type": "clip_text_model"}),
    }.items() for value in values},
    **{f"generation {name} {str(value)[:20]}": fields("generation_config.json", **{name: value}) for name, value in {
        "do_sample": "x", "temperature": -1, "top_k": -7, "max_length": -1, "num_beams": 10**9, "pad_token_id": 2**70,
        "cache_implementation": "x", "stop_strings": [7], "bad_words_ids": 7, "custom_generate": "evil/code",
        "_from_model_config": 7, "transformers_version": [], "watermarking_config": {"x": 1}}.items()},
    "tokenizer unigram nan": _model(type="Unigram", vocab=[["a", math.nan], ["b", math.inf]], unk_id=0),
    "tokenizer unigram": _model(type="Unigram", vocab=VOCABULARY, unk_id=0),
    "tokenizer unigram far": _model(type="Unigram", vocab=VOCABULARY, unk_id=10**9),
    "tokenizer unigram empty": _model(type="Unigram", vocab=[], unk_id=0),
    "tokenizer pieces": _model(type="WordPiece", vocab={"a": 0}, unk_token="[UNK]", max_input_chars_per_word=2**62),
    "tokenizer words": _model(type="WordLevel", vocab={"a": 0, "<unk>": 2**31}, unk_token="<unk>"),
    "tokenizer no unknown": _model(type="WordLevel", vocab={"a": 0}, unk_token="nope"),
    "tokenizer same ids": _model(type="BPE", vocab={"a": 0, "b": 0, "c": 0}, merges=[]),
    "tokenizer gaps": _model(type="BPE", vocab={"a": 0, "b": 40_000_000}, merges=[]),
    "tokenizer dropout": _tokenizer(lambda t: t["model"].update(dropout=1.0)),
    "tokenizer dropout nan": _tokenizer(lambda t: t["model"].update(dropout=math.nan)),
    "tokenizer fallback": _tokenizer(lambda t: t["model"].update(byte_fallback=True, continuing_subword_prefix="x" * 10**6)),
    "tokenizer charsmap": _tokenizer(lambda t: t.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    "tokenizer charsmap long": _tokenizer(lambda t: t.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/////////w=="})),
    "tokenizer strip": _tokenizer(lambda t: t.update(decoder={"type": "Strip", "content": "ab", "start": -1, "stop": 2**70})),
    "tokenizer prepend": _tokenizer(lambda t: t.update(normalizer={"type": "Prepend", "prepend": "x" * 10**7})),
    "tokenizer sequence": _tokenizer(lambda t: t.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}] * 5000})),
    "tokenizer post far": _tokenizer(lambda t: t.update(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"x": {"id": "x", "ids": [4_000_000_000], "tokens": ["x"]}}})),
    "tokenizer truncation": _tokenizer(lambda t: t.update(truncation={
        "max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"})),
    "tokenizer stride": _tokenizer(lambda t: t.update(truncation={
        "max_length": 2, "strategy": "LongestFirst", "stride": 9, "direction": "Left"})),
    "tokenizer version": _tokenizer(lambda t: t.update(version="9.9")),
    **{f"adapter {name}": adapter(**values) for name, values in {
        "r 10": {"r": 10}, "alpha 0": {"lora_alpha": 0}, "alpha negative": {"lora_alpha": -1e30}, "alpha 1e38": {"lora_alpha": 1e38},
        "redos": {"target_modules": "(a+)+$"}, "redos alpha": {"alpha_pattern": {"(q|q_proj|.*)*x": 4}},
        "redos three": {"alpha_pattern": {".*.*.*.*.*.*.*x": 4}}, "redos rank": {"rank_pattern": {"(.*)*x": 2}},
        "empty alternatives": {"alpha_pattern": {"(|a|b|c|d)(|a|b|c)": 4}}, "back reference": {"alpha_pattern": {r"(q)\1": 4}},
        "look behind": {"alpha_pattern": {"(?<=a)(?=b)(?!c)q_proj": 4}}, "many alpha": {"alpha_pattern": {
            f"m{i}": 1 for i in range(300_000)}}, "alpha nan by pattern": {"alpha_pattern": {"q_proj": math.nan}},
        "alpha inf by pattern": {"alpha_pattern": {"q_proj": math.inf}}, "alpha huge by pattern": {"alpha_pattern": {"q_proj": 10**400}},
        "saved": {"modules_to_save": ["lm_head"]}, "saved all": {"modules_to_save": ".*"}, "bias": {"bias": "all"},
        "layers": {"layers_to_transform": [10**9], "layers_pattern": "(a+)+$"}, "base zero": {"base_model_name_or_path": "/dev/zero"},
        "base secret": {"base_model_name_or_path": "../secret"}, "auto_mapping": {"auto_mapping": {"parent_library": "os"}},
        "megatron": {"megatron_config": {"a": 1}, "megatron_core": "os.system"}, "trainable": {"trainable_token_indices": [0]},
        "rslora 0": {"use_rslora": True, "lora_alpha": 1e-300}, "type lower": {"peft_type": "lora"}, "loftq": {"init_lora_weights": "LoFTQ"},
    }.items()},
    "adapter rank wide": adapter(_a=lambda t: t.repeat(500, 1), _b=lambda t: t.repeat(1, 500)),
    "adapter ranks differ": adapter(_a=lambda t: t.repeat(2, 1)), "adapter nan": adapter(_a=lambda t: t * float("nan")),
    "adapter inf": adapter(_b=lambda t: t + float("inf")), "adapter huge": adapter(_a=lambda t: t * 3e38, _b=lambda t: t * 3e38),
    "adapter bool": adapter(_a=lambda t: t > 0), "adapter float8": adapter(_a=lambda t: t.to(__import__("torch").float8_e5m2)),
    "adapter rank 0": adapter(_a=lambda t: t[:0], _b=lambda t: t[:, :0]), "adapter turned": adapter(_a=lambda t: t.T, _b=lambda t: t.T),
    "adapter beside model": both(lambda f: shutil.copy(f / WEIGHTS, f / "x"),
                                 lambda f: shutil.copy(f / CONFIG, f / "y"), adapter(),
                                 lambda f: ((f / "x").rename(f / WEIGHTS), (f / "y").rename(f / CONFIG))),
    "adapter in shards": both(adapter(), lambda f: (f / "adapter_model.safetensors").rename(
        f / "adapter_model-00001-of-00001.safetensors")),
    "code beside": both(hostile.remote_code(CONFIG, auto_map={"AutoModelForCausalLM": "evil--evil.Model"}),
                        fields("generation_config.json", custom_generate="evil")),
}  # fmt: skip

SEEDS = 150
KINDS: dict[str, Damage] = {**PLACES, **MEANT, **{f"fuzz {seed}": fuzz(seed) for seed in range(SEEDS)}}
"""From another angle than ``hostile_attacks.KINDS``."""
