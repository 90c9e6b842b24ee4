"""AlpacaEval's judge: the package compares the outputs with its reference's; 1 is a win, 0 a loss."""

from __future__ import annotations

from typing import Any


def keep(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The output beside its instruction; judging wants all of them together."""
    return {"win_rate": {"instruction": doc["instruction"], "output": results[0], "generator": "model"}}


def win_rate(outputs: list[dict[str, Any]]) -> float:
    """Mean preference for the outputs over the reference's, in [0, 1]."""
    import alpaca_eval

    _, judged = alpaca_eval.evaluate(
        model_outputs=outputs, name="model", output_path=None, is_return_instead_of_print=True
    )
    preferred = [row["preference"] - 1 for row in judged if row["preference"] is not None]
    return sum(preferred) / len(preferred)
