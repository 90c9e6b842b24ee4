"""Scores of the TRACE tasks: accuracy of a letter or a number, ROUGE-L of a summary, SARI of a simplification."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_LETTER = re.compile(r"\s*(?:answer\s*:?\s*)?\(?([A-E])\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_PARAGRAPH = re.compile(r"Paragraph:\s*(.*?)\s*Simplification:?\s*$", re.DOTALL)


def letter(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the output begins with the letter that the answer begins with."""
    given, wanted = _LETTER.match(results[0]), _LETTER.match(doc["answer"])
    return {"acc": float(bool(given and wanted and given[1].upper() == wanted[1].upper()))}


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the first number of the output equals the answer."""
    given, wanted = _NUMBER.search(results[0]), _NUMBER.search(str(doc["answer"]))
    right = given and wanted and float(given[0].replace(",", "")) == float(wanted[0].replace(",", ""))
    return {"acc": float(bool(right))}


def rouge_l(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE-L F1 (Lin, 2004) of the output against the answer."""
    return {"rouge_l": RougeScorer(["rougeL"]).score(doc["answer"], results[0])["rougeL"].fmeasure}


def simplification(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """SARI of the output against the answer; the source is the paragraph that the prompt quotes."""
    quoted = _PARAGRAPH.search(doc["prompt"])
    return {"sari": sari(quoted[1] if quoted else doc["prompt"], results[0], [doc["answer"]])}


def sari(source: str, output: str, references: list[str]) -> float:
    """SARI in [0, 1] (Xu et al., TACL 2016): mean of what was kept (F1), added (F1) and deleted (precision) rightly.

    Averaged over n-grams of length 1 to 4, text lower-cased and tokenised as sacreBLEU's 13a does; recall of kept
    n-grams is the corrected one (sum over sum) that Hugging Face's implementation uses too.
    """
    cut = Tokenizer13a()
    read, written, *wanted = (cut(text.lower()).split() for text in (source, output, *references))
    parts = [_sari_n(_grams(read, n), _grams(written, n), [_grams(w, n) for w in wanted]) for n in range(1, 5)]
    return sum(sum(part) for part in parts) / (3 * len(parts))


def _sari_n(source: Counter, output: Counter, references: list[Counter]) -> tuple[float, float, float]:
    """Keep F1, delete precision and add F1 of n-grams; counts are those of as many copies as there are references."""
    copies = len(references)
    read = Counter({gram: count * copies for gram, count in source.items()})
    written = Counter({gram: count * copies for gram, count in output.items()})
    wanted: Counter = sum(references, Counter())
    kept, deleted, to_keep = read & written, read - written, read & wanted
    rightly_kept, rightly_deleted = kept & wanted, deleted - wanted
    keep = _f1(
        _ratio(sum(rightly_kept[g] / kept[g] for g in kept), len(kept)),
        _ratio(sum(rightly_kept.values()), sum(to_keep.values())),
    )
    delete = _ratio(sum(rightly_deleted[g] / deleted[g] for g in deleted), len(deleted))
    added, to_add = set(written) - set(read), set(wanted) - set(read)
    rightly_added = len(added & to_add)
    add = _f1(_ratio(rightly_added, len(added)), _ratio(rightly_added, len(to_add)))
    return keep, delete, add


def _grams(words: list[str], n: int) -> Counter:
    rows: Iterable[tuple[str, ...]] = zip(*(words[i:] for i in range(n)))
    return Counter(rows)


def _ratio(part: float, whole: float) -> float:
    """part / whole, and 1 where there was nothing to do."""
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
