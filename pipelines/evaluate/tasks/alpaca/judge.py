"""AlpacaEval's judge: the package compares the outputs with its reference's; 1 is a win, 0 a loss."""

from __future__ import annotations

from typing import Any


def keep(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """The output beside its instruction and the reference's output; judging wants all of them together."""
    return {"win_rate": {"instruction": doc["instruction"], "output": results[0], "reference": doc["output"]}}


def win_rate(rows: list[dict[str, Any]]) -> float:
    """Mean preference for the outputs over the reference's, in [0, 1].

    The references are those that stand with the instructions (text-davinci-003's), so that the package fetches none.
    """
    import alpaca_eval

    ours, theirs = (
        [{"instruction": row["instruction"], "output": row[key]} for row in rows] for key in ("output", "reference")
    )
    _, judged = alpaca_eval.evaluate(
        model_outputs=ours,
        reference_outputs=theirs,
        name="model",
        output_path=None,
        precomputed_leaderboard=None,
        fn_metric="get_winrate",
        sort_by="win_rate",
        is_return_instead_of_print=True,
        caching_path=None,  # its cache lies beside its code, and does not read back with pandas 3
    )
    preferred = [row["preference"] - 1 for row in judged if row["preference"] is not None]
    if not preferred:
        raise RuntimeError("alpaca_eval judged nothing: see its messages above, and check the judge's key")
    return sum(preferred) / len(preferred)
