"""What vLLM 0.33 documents of the calls that are made of it, on the CPU, by transformers' model of a folder.

Weights begin random (``load_format="dummy"``) and are padded to a multiple of 64 rows; updates have to be started and
finished; the prefix cache remembers answers until it is reset; what is not documented is refused.
"""

import importlib.machinery
import importlib.metadata
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    max_tokens: int = 16
    skip_special_tokens: bool = True


@dataclass
class WeightTransferConfig:
    backend: str = "nccl"


@dataclass
class IPCTrainerInitInfo:
    rank: int
    packed: bool = False


class ModuleSource:
    def __init__(self, module):
        self.module = module

    def iter_full(self):
        yield from self.module.named_parameters()


class Sender:
    def __init__(self, init_info, client, source):
        assert init_info.rank == 0
        self.client, self.source = client, source
        client.init_weight_transfer_engine({"packed": init_info.packed})

    def send_weights(self):
        self.client.start_weight_update()
        for name, tensor in self.source.iter_full():  # in pieces, as with packed=True
            self.client.update_weights({"names": [name], "tensors": [tensor.detach().clone()]})
        self.client.finish_weight_update()


class LLM:
    started: ClassVar[list] = []
    tied_head_stays = False
    keeps_cache = False

    def __init__(
        self, model, *, tokenizer, trust_remote_code, dtype, max_model_len, seed, load_format, generation_config,
        hf_overrides, gpu_memory_utilization, weight_transfer_config,
    ):  # fmt: skip
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        assert (load_format, generation_config, weight_transfer_config.backend) == ("dummy", "vllm", "ipc")
        assert 0 < gpu_memory_utilization < 1
        config = AutoConfig.from_pretrained(model, **hf_overrides)
        self.rows, config.vocab_size = config.vocab_size, -(-config.vocab_size // 64) * 64
        with torch.random.fork_rng():
            torch.manual_seed(99)
            self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        self.tokenizer, self.longest = AutoTokenizer.from_pretrained(tokenizer), max_model_len
        self.tied, self.updating, self.cache, self.asked = config.tie_word_embeddings, None, {}, []
        if self.tied and self.tied_head_stays:
            self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        LLM.started.append(self)

    def init_weight_transfer_engine(self, request):
        assert request["init_info"] == {"packed": True}
        self.updating = False

    def start_weight_update(self):
        assert self.updating is False
        self.updating = True

    def update_weights(self, request):
        assert self.updating
        known = dict(self.model.named_parameters())
        for name, tensor in zip(request["update_info"]["names"], request["update_info"]["tensors"], strict=True):
            if not (name == "lm_head.weight" and self.tied):
                known[name].data[: len(tensor)] = tensor

    def finish_weight_update(self, weight_version=None):
        assert self.updating
        self.updating = False

    def reset_prefix_cache(self):
        if not self.keeps_cache:
            self.cache.clear()
        return not self.keeps_cache

    def apply_model(self, func):
        return [func(self.model)]

    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert self.updating is False
        outputs, bar = [], use_tqdm(total=len(prompts), desc="Processed prompts")
        for prompt, params in zip(prompts, sampling_params, strict=True):
            self.asked.append(params)
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._write(prompt, params))]))
            bar.update(1)
        bar.close()
        return outputs

    def _write(self, prompt, params):
        tokens, said = list(prompt["prompt_token_ids"]), []
        assert len(tokens) + params.max_tokens <= self.longest
        chance = torch.Generator().manual_seed(params.seed)
        while len(said) < params.max_tokens:
            logits = self._logits((*tokens, *said))
            seen = torch.tensor(sorted({*tokens, *said}))
            logits[seen] = torch.where(
                logits[seen] > 0, logits[seen] / params.repetition_penalty, logits[seen] * params.repetition_penalty
            )
            if params.temperature == 0:
                said.append(int(logits.argmax()))
            else:
                said.append(int(torch.multinomial((logits / params.temperature).softmax(-1), 1, generator=chance)))
            text = self.tokenizer.decode(said, skip_special_tokens=params.skip_special_tokens)
            if said[-1] in (*params.stop_token_ids, self.tokenizer.eos_token_id) or any(s in text for s in params.stop):
                break
        return said

    def _logits(self, tokens):
        if tokens not in self.cache:
            with torch.no_grad():
                self.cache[tokens] = self.model(torch.tensor([tokens])).logits[0, -1, : self.rows]
        return self.cache[tokens].clone()


def install(monkeypatch):
    """Have ``import vllm`` find this; the class of its engines."""
    weight_transfer = {
        "ModuleSource": ModuleSource,
        "WeightTransferTrainerFactory": SimpleNamespace(trainer_init=Sender),
    }
    modules = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.config": {"WeightTransferConfig": WeightTransferConfig},
        "vllm.distributed": {},
        "vllm.distributed.weight_transfer": weight_transfer,
        "vllm.distributed.weight_transfer.ipc_engine": {"IPCTrainerInitInfo": IPCTrainerInitInfo},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content, __spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    versions = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.33.0" if name == "vllm" else versions(name))
    monkeypatch.setattr("pipelines.evaluate.requests.version", importlib.metadata.version)
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    monkeypatch.setattr(LLM, "started", [])
    return LLM
