"""Scores of the TRACE tasks, as the release scores them (``exact_match``, ``rouge_l_trace``, ``sari_trace``) and beside
those the field's usual ones: accuracy of a letter or a number, ROUGE-L of a summary, SARI of a simplification.

https://github.com/BeyonderXX/TRACE (``metrics.py`` and ``evaluations/``): equality of strings; ROUGE-L of the package
``rouge``; Hugging Face's SARI with the whole prompt as the source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Any

from rouge_score.rouge_scorer import RougeScorer, _backtrack_norec, _lcs_table
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_LETTER = re.compile(
    r"\s*(?:answer\s*:?\s*)?\(?(?:([B-E])|(A)(?! +(?-i:[a-z])))(?![a-z0-9'’])", re.IGNORECASE | re.ASCII
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_PARAGRAPH = re.compile(r"Paragraph:\s*(.*?)\s*Simplification:?\s*$", re.DOTALL)


def letter(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the output is the answer, and whether it begins with the answer's letter ("A long time ago" does not)."""
    given, wanted = (m and (m[1] or m[2]).upper() for m in map(_LETTER.match, (results[0], doc["answer"])))
    return {**_exact(doc["answer"], results[0]), "acc": float(given is not None and given == wanted)}


def reasoned(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The same of answers with reasons behind their letter; the release compares the first characters."""
    return {**letter(doc, results), **_exact(doc["answer"].strip()[:1], results[0].strip()[:1])}


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the output is the answer, and whether its first number equals the answer."""
    given, wanted = _NUMBER.search(results[0]), _NUMBER.search(str(doc["answer"]))
    right = given and wanted and float(given[0].replace(",", "")) == float(wanted[0].replace(",", ""))
    return {**_exact(str(doc["answer"]), results[0]), "acc": float(bool(right))}


def _exact(answer: str, output: str) -> dict[str, float]:
    """Equality of the strings, space around them aside (tokenizers differ in keeping a leading one); never of none."""
    return {"exact_match": float(output.strip() == answer.strip() != "")}


def summary(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE-L F1 (Lin, 2004) of the output against the answer, by ``rouge-score`` and as the release computes it."""
    rouge = RougeScorer(["rougeL"]).score(doc["answer"], results[0])["rougeL"].fmeasure
    return {"rouge_l": rouge, "rouge_l_trace": rouge_l_trace(doc["answer"], results[0])}


def rouge_l_trace(answer: str, output: str) -> float:
    """ROUGE-L F1 of package ``rouge`` 1.0.1, called as (answer, output).

    Sentences end at ".", words at space; case and marks count. With U the different words in longest common
    subsequences of any two sentences: P = |U| / different words of the answer, R = |U| / those of the output.
    """
    ours, theirs = ([part.split() or [""] for part in text.split(".") if part] for text in (output, answer))
    words, wanted = (len({word for part in text for word in part}) for text in (ours, theirs))
    if not words or not wanted:
        return 0.0
    shared = {b[i] for a, b in product(ours, theirs) for i in _backtrack_norec(_lcs_table(b, a), b, a)}
    recall, precision = len(shared) / words, len(shared) / wanted
    return 2 * precision * recall / (precision + recall + 1e-8)


def simplification(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """SARI of the output against the answer; the source is the paragraph that the prompt quotes, or the prompt."""
    quoted = _PARAGRAPH.search(doc["prompt"])
    sources = {"sari": quoted[1] if quoted else doc["prompt"], "sari_trace": doc["prompt"]}
    return {name: sari(source, results[0], [doc["answer"]]) for name, source in sources.items()}


def sari(source: str, output: str, references: list[str]) -> float:
    """SARI in [0, 1] (Xu et al., TACL 2016): mean of what was kept (F1), added (F1) and deleted (precision) rightly.

    Averaged over n-grams of length 1 to 4, text lower-cased and tokenised as sacreBLEU's 13a does; recall of kept
    n-grams is the corrected one (sum over sum). As in Hugging Face's implementation, no text is one empty word.
    """
    cut = Tokenizer13a()
    read, written, *wanted = (cut(text.lower()).split(" ") for text in (source, output, *references))
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
