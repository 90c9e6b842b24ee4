"""AlpacaEval's judge: the package compares the outputs with its reference's; 1 is a win, 0 a loss.

The length-controlled win rate (Dubois et al., 2024, https://arxiv.org/abs/2404.04475) is the package's own: the win
rate that a logistic regression on length, instruction and model predicts for outputs as long as the reference's.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from conf.schema import Judge

GAMED = "tatsu-lab/alpaca_eval/df_gamed.csv"
"""In a mirror: what the package's regression knows of the instructions."""


def numbered(documents: Any) -> Any:
    """The documents with their place in the data set, by which the package knows an instruction's difficulty."""
    return documents.map(lambda document, place: {**document, "place": place}, with_indices=True)


def keep(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The output beside its instruction and the reference's output; judging wants all of them together."""
    row = {"instruction": doc["instruction"], "output": results[0], "reference": doc["output"]}
    row |= {"place": str(doc["place"]), "generator": doc.get("generator") or "reference"}
    return {"win_rate": row, "length_controlled_win_rate": row}


def win_rate(rows: list[dict[str, Any]], judge: Judge, metric: str, mirror: str | None) -> float:
    """Mean preference for the outputs over the reference's, in [0, 1]."""
    preferred = [row["preference"] - 1 for row in _judged(rows, judge) if row["preference"] is not None]
    return sum(preferred) / len(preferred)


def length_controlled_win_rate(rows: list[dict[str, Any]], judge: Judge, metric: str, mirror: str | None) -> float:
    """The win rate at equal length, in [0, 1]; NaN where another metric is reported, as it fetches a file."""
    if metric != "length_controlled_win_rate":
        return math.nan
    import pandas
    from alpaca_eval.metrics import glm_winrate

    if mirror is not None and (gamed := Path(mirror).expanduser() / GAMED).is_file():
        glm_winrate.hf_hub_download = lambda **_: str(gamed)
    places = {row["instruction"]: int(row["place"]) for row in rows}
    judged = pandas.DataFrame(_judged(rows, judge))
    judged.index = pandas.Index([places[instruction] for instruction in judged["instruction"]], name="index")
    return glm_winrate.get_length_controlled_winrate(judged, save_weights_dir=None)["length_controlled_winrate"] / 100


def _judged(rows: list[dict[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """The package's annotations of the outputs; the judge is asked once for both metrics."""
    return _annotations(tuple(tuple(row.items()) for row in rows), tuple(vars(judge).items()))


@functools.lru_cache(maxsize=1)
def _annotations(rows: tuple[Any, ...], judge: tuple[Any, ...]) -> list[dict[str, Any]]:
    import alpaca_eval

    documents = [dict(row) for row in rows]
    ours = [{"instruction": row["instruction"], "output": row["output"], "generator": "model"} for row in documents]
    theirs = [{**row, "output": document["reference"], "generator": document["generator"]}
              for row, document in zip(ours, documents, strict=True)]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        _, judged = alpaca_eval.evaluate(
            model_outputs=ours,
            reference_outputs=theirs,  # those that stand with the instructions, so that the package fetches none
            annotators_config=_annotator(Judge(**dict(judge)), Path(folder)),
            name="model",
            output_path=None,
            precomputed_leaderboard=None,
            fn_metric="get_winrate",
            sort_by="win_rate",
            is_return_instead_of_print=True,
            caching_path=None,  # its cache lies beside its code, and does not read back with pandas 3
        )
    if all(row["preference"] is None or math.isnan(row["preference"]) for row in judged):
        raise RuntimeError("alpaca_eval judged nothing: see its messages above, and check the judge's key")
    return judged


def _annotator(judge: Judge, folder: Path) -> str:
    """The annotator's configuration; where another model is asked, a copy of it in ``folder`` that says so."""
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    known = Path(EVALUATORS_CONFIG_DIR) / Path(judge.annotator).expanduser()  # an absolute path stays
    if judge.model is None:
        return str(known)
    configs = yaml.safe_load((known / "configs.yaml").read_text())
    asked = {"model_name": judge.model, "requires_chatml": True, "client_config_path": os.devnull}
    if judge.address is not None:
        asked |= {"openai_api_base": judge.address, "openai_api_keys": [os.environ.get("OPENAI_API_KEY", "none")]}
    for config in configs.values():
        config["prompt_template"] = str(known.parent / config["prompt_template"])
        config["completions_kwargs"] = {**config.get("completions_kwargs", {}), **asked}
    place = folder / known.name
    place.mkdir()
    (place / "configs.yaml").write_text(yaml.safe_dump(configs))
    return str(place)
