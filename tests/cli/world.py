"""A stranger's folder: a base and three experts of its own making, data, an lm-eval task and configurations."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: ["4", "6", "8"]
doc_to_target: "{{['4', '6', '8'].index(completion)}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
STUDY = """# @package _global_
name: ours
pools:
  mine:
    base: {path: base}
    experts: {a: {path: a}, b: {path: b}, c: {path: c}}
methods:
  weighted: {method: linear, weight: [1, 2, 3]}
"""
ROWS = [{"prompt": f"{i % 7}+{i % 5}=", "completion": str(4 + 2 * (i % 3))} for i in range(20)]


def make_world(folder: Path) -> None:
    """Fill a folder: ``base``, ``a``, ``b``, ``c``, a JSONL for each, ``tasks``, ``broken`` and ``conf``."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 .,:?+=\n"
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *letters])}
    characters = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name in ("base", "a", "b", "c"):
            if name != "base":
                model.load_state_dict({key: w + 0.1 * torch.randn_like(w) for key, w in base.items()})
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "base.jsonl").rename(folder / "mine.jsonl")
    for place, text in (("tasks", TASK), ("broken", TASK.replace("doc_to_choice: [", "doc_to_choice: [[: "))):
        (folder / place).mkdir()
        (folder / place / "sums.yaml").write_text(text.replace("DATA", str(folder / "mine.jsonl")))
    for name, text in (
        ("experiment/ours", STUDY),
        ("experiment/beside", STUDY + "base: {path: base}\n"),
        ("experiment/nobase", STUDY.replace("base: {path: base}", "seed: 0")),
        ("experiment/broken", STUDY + "about: [x\nkeep: none\n"),
        ("task/own", "path: mine.jsonl\n"),
        ("task/broken", "path: mine.jsonl\n  prompt: prompt\n"),
    ):
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
