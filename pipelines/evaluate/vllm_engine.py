"""Generation through vLLM: one engine beside the live model, given the weights of one model after another.

The engine is a process of its own on the live model's GPU. Weights reach it by vLLM's weight transfer with the backend
``ipc`` (https://docs.vllm.ai/en/stable/training/weight_transfer/): a sender in this process, which drives the engine
through a client of four calls. What is generated is cut and read as lm-eval's ``HFLM`` does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import nn

from conf.errors import UserError
from conf.schema import Suite
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.checkpoints.code import runs_code
from pipelines.checkpoints.fingerprint import parameter_hashes
from pipelines.evaluate.generation import VLLM_SETTINGS
from pipelines.process import give_back

INSTEAD = "see what vLLM wants of this machine, or generate with transformers: suite.generate_with=transformers"
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}
"""Settings of both that matter only where tokens are drawn, and transformers' defaults."""
SAYS_NOTHING = {"transformers_version", "use_cache", "max_length", "do_sample", "_from_model_config"}
SAYS_NOTHING |= {"cache_implementation", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Fields of a generation configuration that change no token, or that are set in any case."""


class _Fixed(NamedTuple):
    """What an engine is started with, and keeps."""

    model: str
    tokenizer: str
    dtype: str
    max_length: int
    vocabulary: int
    tied: bool
    seed: int
    trusted: bool


class VllmEngine:
    """The engine of one worker: started when it is first needed, and anew where it is to be of another shape.

    ``memory`` is the share of the GPU's memory that vLLM may take; ``make_room`` gives memory back before it starts.
    """

    def __init__(self, memory: float = 0.5, make_room: Callable[[], bool] = bool):
        self.memory, self.make_room = memory, make_room
        self._fixed: _Fixed | None = None
        self._llm: Any = None

    def close(self) -> None:
        """End the engine's process."""
        self._fixed = self._llm = None
        give_back()

    def load(self, model: Any, tokenizer: str, max_length: int, suite: Suite) -> None:
        """Send a live model's weights into the engine, and forget what it computed with others.

        Raises UserError where vLLM does not start or take them, and where the ends of the two models differ
        afterwards: a tied head may have stayed behind.
        """
        folder, embedding = model.name_or_path, model.get_input_embeddings().weight  # [V, d]
        ends = (embedding, model.get_output_embeddings().weight)
        rows = {n: len(p) for n, p in model.named_parameters(remove_duplicate=False) if any(p is end for end in ends)}
        tied, trusted = ends[0] is ends[1], runs_code(folder, suite.trust_remote_code)
        fixed = _Fixed(folder, tokenizer, suite.dtype, max_length, len(embedding), tied, suite.seed, trusted)
        _check_model(model, folder, rows)
        try:
            if fixed != self._fixed:
                self.close()
                self.make_room()
                self._llm, self._fixed = _start(fixed, self.memory), fixed
            _send(model, self._llm)
            forgotten = self._llm.reset_prefix_cache()
            (found,) = self._llm.apply_model(partial(parameter_hashes, rows=rows))
        except Exception as error:
            self.close()
            raise UserError(f"vLLM did not take the model: {_line(error)}", where=folder, do=INSTEAD) from error
        if not forgotten:
            self.close()
            raise UserError("vLLM kept what it had computed with other weights", where=folder, do=INSTEAD)
        ours = parameter_hashes(model, rows)
        # a tied head may have no name of its own there
        if differ := [n for n, own in ours.items() if found.get(n, own if tied and found else None) != own]:
            self.close()
            what = f"after the transfer vLLM's {' and '.join(differ)} is not the model's"
            raise UserError(what, where=folder, do=INSTEAD)

    def answer(self, lm: HFLM, requests: list[Instance], tick: Callable[[int], None]) -> list[str]:
        """Written answers to lm-eval's requests, in their order, as the model that was loaded gives them."""
        from vllm import SamplingParams, TokensPrompt

        assert self._fixed is not None
        eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
        prompts, params, stops = [], [], []
        for place, request in enumerate(requests):
            text, given = request.args
            settings, until = sampling(given, lm.model.generation_config.to_dict(), lm.max_gen_toks, eos)
            room = lm.max_length - settings["max_tokens"]
            if room < 1:
                what = f"an answer of {settings['max_tokens']} tokens leaves no room in a context of {lm.max_length}"
                raise UserError(what, do="set a smaller max_gen_toks")
            tokens, _ = lm.tok_batch_encode([text], left_truncate_len=room)  # [1, T]
            prompts.append(TokensPrompt(prompt_token_ids=tokens[0].tolist()))
            params.append(SamplingParams(**settings, seed=self._fixed.seed + place))
            stops.append(until)
        outputs = self._llm.generate(prompts, params, use_tqdm=_bar(tick))
        return [_read(lm, list(out.outputs[0].token_ids), until) for out, until in zip(outputs, stops, strict=True)]


def sampling(
    given: dict[str, Any], usual: Mapping[str, Any], longest: int, eos: str
) -> tuple[dict[str, Any], list[str]]:
    """vLLM's sampling parameters for lm-eval's ``gen_kwargs``, and the stop sequences that an answer is cut at.

    ``usual`` is the model's generation configuration, which transformers' ``generate`` fills up with. Raises UserError
    for a setting that vLLM lacks, or that means something else there.
    """
    chosen: dict[str, Any] = dict(normalize_gen_kwargs(given, longest))
    until = handle_stop_sequences(chosen.pop("until"), eos=eos)
    drawn, longest = bool(chosen.pop("do_sample")), chosen.pop("max_gen_toks")
    if drawn and not chosen.get("temperature"):
        raise UserError("do_sample=true wants a temperature above 0", where="gen_kwargs")
    if "" in until:
        raise UserError("an empty stop sequence ends every answer at once", where="gen_kwargs")
    if lacking := sorted(chosen.keys() - VLLM_SETTINGS):
        raise UserError(f"vLLM has no {', '.join(lacking)} as transformers has it", where="gen_kwargs", do=INSTEAD)
    _check_usual(usual)
    settings: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}
    settings |= SAMPLING if drawn else {}
    for name in settings.keys() - {"temperature"}:
        settings[name] = next((v for v in (chosen.get(name), usual.get(name)) if v is not None), settings[name])
    settings = {name: value for name, value in settings.items() if value is not None}
    if drawn:
        settings["temperature"] = chosen["temperature"]
        if settings.get("min_p") and settings["top_p"] < 1:
            what = "min_p and top_p together: vLLM applies them in another order"
            raise UserError(what, where="gen_kwargs", do="set one of them, or generate_with=transformers")
    ends = usual.get("eos_token_id")
    settings["stop_token_ids"] = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    # a stop sequence may be a special token: it is looked for in a text that has them
    return {**settings, "stop": until, "max_tokens": longest, "skip_special_tokens": False}, until


def _check_model(model: Any, folder: str, ends: Mapping[str, int]) -> None:
    """UserError for a model that cannot be sent: by the names of its tensors in the checkpoint, from the first GPU."""
    header = open_checkpoint(folder).header
    if packed := [name for name, _ in model.named_parameters() if name not in header and name not in ends]:
        what = f"{packed[0]} has another name or form in the checkpoint, by which vLLM is sent weights"
        raise UserError(what, where=folder, do="generate with transformers: suite.generate_with=transformers")
    if model.device.index:
        do = f"choose the GPU by CUDA_VISIBLE_DEVICES={model.device.index}, and executor.device=cuda"
        raise UserError(f"vLLM runs on the first GPU that it sees, the model is on {model.device}", do=do)


def _check_usual(usual: Mapping[str, Any]) -> None:
    """UserError for a generation configuration with settings that vLLM lacks."""
    from transformers import GenerationConfig

    known = {*SAMPLING, *SAYS_NOTHING, "repetition_penalty"}
    neutral = GenerationConfig._get_default_generation_params()
    for name, value in usual.items():
        if name not in known and value is not None and value != neutral.get(name, False):
            what = f"the model's generation_config.json has {name}={value}, which vLLM has not as transformers has it"
            raise UserError(what, do=INSTEAD)


class _Client:
    """The calls by which vLLM's sender drives an engine (its protocol ``VLLMWeightSyncClient``)."""

    def __init__(self, llm: Any):
        self.llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update(weight_version)


def _start(fixed: _Fixed, memory: float) -> Any:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # handles of this GPU's memory, to a process of our own
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    return LLM(
        model=fixed.model,
        tokenizer=fixed.tokenizer,
        trust_remote_code=fixed.trusted,
        dtype=fixed.dtype,
        max_model_len=fixed.max_length,
        seed=fixed.seed,
        load_format="dummy",  # all weights are sent
        generation_config="vllm",  # no defaults but those of ``sampling``
        hf_overrides={"vocab_size": fixed.vocabulary, "tie_word_embeddings": fixed.tied},
        gpu_memory_utilization=memory,
        weight_transfer_config=WeightTransferConfig(backend="ipc"),
    )


def _send(model: nn.Module, llm: Any) -> None:
    from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    sender = WeightTransferTrainerFactory.trainer_init(
        init_info=IPCTrainerInitInfo(rank=0, packed=True),  # in pieces, not all at once
        client=_Client(llm),
        source=ModuleSource(model),
    )
    sender.send_weights()


def _bar(tick: Callable[[int], None]) -> Callable[..., Any]:
    """What vLLM makes its bar with: nothing is shown, and answers that are done are told."""
    from tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            if self.desc.startswith("Processed prompts"):
                tick(int(n or 0))
            return super().update(n)

    return lambda *args, **options: Bar(*args, **{**options, "file": io.StringIO()})


def _read(lm: HFLM, tokens: list[int], until: list[str]) -> str:
    """The answer in what was generated, as ``HFLM.generate_until`` reads it."""
    end = lm.think_end_token
    if isinstance(end, int):
        thought = max((place for place, token in enumerate(tokens) if token == end), default=-1) + 1
        text = lm.tok_decode(tokens[thought:]).lstrip()
    else:
        text = lm.tok_decode(tokens)
    return postprocess_generated_text(text, until, end if isinstance(end, str) else None)


def _line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]
