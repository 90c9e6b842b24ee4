"""Every kind of causal language model against lm_eval, document by document, in float32, float16 and bfloat16.

    python -m benchmarks.faithful DATA                       # all kinds, four tasks, 20 documents of each
    python -m benchmarks.faithful DATA --kinds gemma3 mamba --documents 200 --dtypes bfloat16

DATA holds benchmark files and ``make_hub_mirror.py``. Models are tiny, random and briefly trained on the documents'
text; windows and switches of rotary factors are shorter than most documents. Each is scored here (with a batch of 8)
and by ``lm_eval.evaluate`` on the same documents; a row counts the documents of which any metric differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator as lm_eval_evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from conf.schema import Suite, SuiteTask
from pipelines.evaluate.evaluator import Evaluator
from pipelines.process import silence

TASKS = {"arc_easy": 0, "winogrande": 2, "boolq": 0, "hellaswag": 0}
"""Tasks and their examples."""

WINDOW, SWITCH, LONGEST = 16, 64, 512
"""A window, where rotary factors switch, and the context length, in tokens."""

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {**SIZES, **LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK |= {"num_key_value_heads": 2, "n_group": 1, "topk_group": 1}
MAMBA2 = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1}
HYBRID = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {f"linear_{part}": 2 for part in ("num_key_heads", "num_value_heads")}
LINEAR |= {f"linear_{part}_head_dim": 16 for part in ("key", "value")}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "rope_theta": 1e4}


def sliding(**more: Any) -> dict[str, Any]:
    """Windows in three layers of four."""
    return {**GROUPED, "num_hidden_layers": 4, "sliding_window": WINDOW, **more}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}}


KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("llama", GROUPED, True),
    "llama, llama3 rope": (
        "llama",
        GROUPED | rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=SWITCH),
        True,
    ),
    "llama, yarn": ("llama", GROUPED | rope("yarn", original_max_position_embeddings=SWITCH), True),
    "llama, dynamic rope": ("llama", GROUPED | rope("dynamic") | {"max_position_embeddings": SWITCH}, False),
    "mistral": ("mistral", GROUPED | {"sliding_window": 4096}, True),
    "mistral, window": ("mistral", GROUPED | {"sliding_window": WINDOW}, False),
    "ministral, window": ("ministral", sliding(), False),
    "mixtral": ("mixtral", GROUPED | LOCAL | {"sliding_window": None}, True),
    "qwen2": ("qwen2", GROUPED, True),
    "qwen2, window": ("qwen2", sliding(use_sliding_window=True, max_window_layers=1), False),
    "qwen2_moe": ("qwen2_moe", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 24}, True),
    "qwen3": ("qwen3", GROUPED, True),
    "qwen3_moe": ("qwen3_moe", GROUPED | EXPERTS, True),
    "qwen3_next": (
        "qwen3_next",
        GROUPED | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 24, "full_attention_interval": 2},
        False,
    ),
    "gemma": ("gemma", GROUPED, True),
    "gemma2": ("gemma2", sliding(), False),
    "gemma3": ("gemma3_text", sliding(), False),
    "gpt_oss": ("gpt_oss", sliding(**LOCAL), False),
    "gpt2": ("gpt2", GPT | {"n_positions": LONGEST}, True),
    "gpt_bigcode": ("gpt_bigcode", GPT, True),
    "gpt_neo": ("gpt_neo", SIZES | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}, False),
    "gpt_neox": ("gpt_neox", SIZES, True),
    "gptj": ("gptj", GPT | {"rotary_dim": 8, "n_positions": LONGEST}, True),
    "opt": ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": LONGEST}, True),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, False),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 1024}, False),
    "falcon": ("falcon", SIZES | {"multi_query": True}, True),
    "falcon, alibi": ("falcon", SIZES | {"alibi": True, "multi_query": True}, False),
    "falcon_h1": ("falcon_h1", GROUPED | HYBRID | {"mamba_d_ssm": 64}, False),
    "phi": ("phi", SIZES, True),
    "phi3": ("phi3", SIZES, True),
    "phi3, longrope": (
        "phi3",
        SIZES | {"rope_parameters": LONGROPE, "original_max_position_embeddings": SWITCH},
        False,
    ),
    "stablelm": ("stablelm", SIZES | {"num_key_value_heads": 1}, True),
    "starcoder2": ("starcoder2", SIZES | {"num_key_value_heads": 1, "sliding_window": None}, True),
    "starcoder2, window": ("starcoder2", SIZES | {"num_key_value_heads": 1, "sliding_window": WINDOW}, False),
    "olmo": ("olmo", SIZES, True),
    "olmo2": ("olmo2", SIZES, True),
    "olmo3": ("olmo3", sliding(), False),
    "olmoe": ("olmoe", GROUPED | EXPERTS, True),
    "cohere": ("cohere", SIZES, True),
    "cohere2": ("cohere2", sliding(), False),
    "granite": ("granite", SIZES, True),
    "granitemoe": ("granitemoe", SIZES | LOCAL, True),
    "granitemoehybrid": ("granitemoehybrid", SIZES | LOCAL | HYBRID | {"layer_types": ["mamba", "attention"]}, False),
    "glm": ("glm", GROUPED, True),
    "glm4": ("glm4", GROUPED, True),
    "glm4_moe": ("glm4_moe", GROUPED | EXPERTS | {"n_routed_experts": 4}, True),
    "smollm3": ("smollm3", GROUPED, True),
    "exaone4": ("exaone4", sliding(), False),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK, True),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK, True),
    "llama4": ("llama4_text", GROUPED | LOCAL | {"intermediate_size_mlp": 48, "attention_chunk_size": WINDOW}, False),
    "minimax": ("minimax", GROUPED | LOCAL | {"block_size": WINDOW}, False),
    "lfm2": ("lfm2", SIZES | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}, False),
    "jamba": (
        "jamba",
        SIZES | {"num_key_value_heads": 1, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
        False,
    ),
    "bamba": ("bamba", SIZES | HYBRID | {"num_key_value_heads": 1, "attn_layer_indices": [1]}, False),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False),
    "mamba2": ("mamba2", MAMBA2, False),
    "recurrent_gemma": ("recurrent_gemma", GROUPED | {"num_hidden_layers": 3, "attention_window_size": WINDOW}, False),
    "rwkv": ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}, False),
    "helium": ("helium", GROUPED, True),
    "ernie4_5": ("ernie4_5", GROUPED, True),
    "nemotron": ("nemotron", GROUPED, True),
    "arcee": ("arcee", GROUPED, True),
    "apertus": ("apertus", GROUPED, True),
    "seed_oss": ("seed_oss", GROUPED, True),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", GROUPED, True),
}
for _name in ("ministral", "gemma2", "gemma3_text", "gpt_oss", "olmo3", "cohere2", "exaone4"):
    KINDS[f"{_name}, wide window"] = (
        _name,
        sliding(sliding_window=2048, **(LOCAL if _name == "gpt_oss" else {})),
        True,
    )
"""Kinds of models: model type, settings, and whether prefixes are shared in float32."""


def random_model(kind: str, vocabulary: int) -> PreTrainedModel:
    """A seeded random model of a kind whose tokens matter to their neighbours."""
    name, settings, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[name](vocab_size=vocabulary, pad_token_id=0, **settings)
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def words(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of 2,000 pieces learnt from the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>"]
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="</s>")


def train(model: PreTrainedModel, tokens: torch.Tensor, steps: int) -> None:
    """A few steps of AdamW on rows of 128 tokens."""
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 128, (4,), generator=draw)
        rows = torch.stack([tokens[s : s + 128] for s in starts])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


Values = dict[tuple[str, str, str], float]
"""Values by task, document and metric."""


class Bench:
    """Tokenizer, tasks and documents, made once for all models."""

    def __init__(self, data: Path, folder: Path, documents: int, dtypes: list[str]):
        self.folder, self.mirror = folder, folder / "mirror"
        script = [sys.executable, str(data / "make_hub_mirror.py"), str(data), str(self.mirror)]
        subprocess.run(script, check=True)
        texts = [line for task in TASKS for file in sorted(data.glob(f"{task}/*.jsonl")) for line in file.open()][:9000]
        self.tokenizer = words(texts)
        self.tokenizer.save_pretrained(folder)
        self.tokens = torch.tensor([t for row in self.tokenizer(texts[:3000])["input_ids"] for t in row])
        tasks = {task: SuiteTask(num_fewshot=shots) for task, shots in TASKS.items()}
        self.ours = {}
        for dtype in dtypes:
            suite = Suite(name="faithful", tasks=tasks, limit=documents, batch_size=8, dtype=dtype, max_length=LONGEST)
            self.ours[dtype] = Evaluator(suite, folder, datasets=str(self.mirror))
        evaluator = self.ours[dtypes[0]]
        self.chosen = {leaf.name: leaf.ids for task in evaluator.tasks for leaf in task.leaves}
        os.chdir(self.mirror)
        self.theirs = get_task_dict(list(TASKS), TaskManager())

    def here(self, model: PreTrainedModel, dtype: str) -> tuple[Values, bool]:
        """Our values, and whether prefixes were shared."""
        evaluation = self.ours[dtype].evaluate(model)
        if evaluation.errors:
            raise RuntimeError(str(evaluation.errors))
        rows = evaluation.documents.to_pylist()
        values = {(r["task"], r["document"], r["metric"]): r["value"] for r in rows}
        return values, evaluation.versions["share_prefix"]

    def lm_eval(self, model: PreTrainedModel) -> Values:
        """The values of ``lm_eval.evaluate`` on the same documents."""
        for name, task in self.theirs.items():
            task.set_config(key="num_fewshot", value=TASKS[name])
            task.set_fewshot_seed(seed=1234)
        with silence(), contextlib.redirect_stderr(io.StringIO()):
            lm = HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=8, max_length=LONGEST)
            result = lm_eval_evaluator.evaluate(lm, self.theirs, samples=self.chosen, bootstrap_iters=0)
        return {
            (task, str(sample["doc_id"]), metric): sample[metric]
            for task, samples in result["samples"].items()
            for sample in samples
            for metric in sample["metrics"]
        }


def differing(ours: Values, theirs: Values) -> int:
    """Documents of which any metric differs."""
    if ours.keys() != theirs.keys():
        raise RuntimeError("the two scored other documents or metrics")
    return len({key[:2] for key, value in ours.items() if value != theirs[key]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--documents", type=int, default=20, help="of each task")
    parser.add_argument("--steps", type=int, default=40, help="of training")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments.data.resolve(), Path(name), arguments.documents, arguments.dtypes)
        for kind in arguments.kinds:
            model = random_model(kind, len(bench.tokenizer))
            train(model, bench.tokens, arguments.steps)
            for dtype in arguments.dtypes:
                model.to(getattr(torch, dtype))
                start = time.perf_counter()
                ours, shared = bench.here(model, dtype)
                middle = time.perf_counter()
                theirs = bench.lm_eval(model)
                seconds = f"{middle - start:6.1f} s, lm_eval {time.perf_counter() - middle:6.1f} s"
                count, how = differing(ours, theirs), "shared" if shared else "plain"
                wrong += count
                documents = sum(map(len, bench.chosen.values()))
                print(f"{kind:28} {dtype:9} {how:7} {count:4} of {documents} differ  {seconds}", flush=True)
    print(f"{wrong} differing documents")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
