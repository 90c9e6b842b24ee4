"""Vocabularies that differ, brought together by token string.

With V the merged vocabulary and m a model, row t of m's aligned embedding (or head) is

- m's own row of token t, where m's tokenizer has it (and m has a row for it);
- else the base's row of t;
- else, for a token that the base has not, the mean of the rows of the experts that have it.

``base`` keeps the base's tokenizer and number of rows. ``union`` adds the tokens that only experts have, after the
base's, in the order of the experts' fingerprints and of their ids; rows that pad the base's matrix are used first. Rows
that are no token keep the base's values. mergekit gives tokens the same rows; it drops padding rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import UserError
from pipelines.checkpoints.fingerprint import VOCABULARY_FILES
from pipelines.checkpoints.headers import Mismatch
from pipelines.checkpoints.load import load_tokenizer
from pipelines.checkpoints.untrusted import AGAIN, read_json


@dataclass
class Vocabulary:
    """How the rows of each model go into the merged vocabulary."""

    rows: int
    """Rows of the merged embedding."""
    own: list[dict[int, int]] = field(default_factory=list)
    """For the base, then each expert: merged row → own row, where it has one."""
    added: list[tuple[str, int, Path]] = field(default_factory=list)
    """Tokens that the base has not: string, merged row, folder of a tokenizer that has it."""
    order: list[int] = field(default_factory=list)
    """Experts (from 1) in the order in which means are summed: that of their ids."""

    def align(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The models' tensors ``[own rows, …]`` with their rows at the merged places ``[rows, …]``; None stays None."""
        base = tensors[0]
        assert base is not None
        default = base.new_zeros((self.rows, *base.shape[1:]))
        for row in range(self.rows):
            if row in self.own[0]:
                continue
            given = [t[self.own[k][row]] for k in self.order if (t := tensors[k]) is not None and row in self.own[k]]
            if given:
                default[row] = torch.stack(given).mean(dim=0) if len(given) > 1 else given[0]
        default = _with_rows(default, base, self.own[0])
        rest = zip(tensors[1:], self.own[1:])
        return [default, *(None if t is None else _with_rows(default, t, own) for t, own in rest)]


def _with_rows(default: Tensor, tensor: Tensor, own: Mapping[int, int]) -> Tensor:
    """The default rows with a model's own in their places."""
    result = default.clone()
    if own:
        result[torch.tensor(list(own))] = tensor[torch.tensor(list(own.values()))]
    return result


def tokens(folder: Path) -> Mapping[str, int]:
    """Token strings and their ids, from tokenizer.json where there is one; empty where there is no tokenizer."""
    file = folder / "tokenizer.json"
    if file.is_file():
        return _stored_tokens(file, *_stamp(file))
    if not any((folder / name).is_file() for name in (*VOCABULARY_FILES, "vocab.txt")):
        return {}
    return dict(load_tokenizer(folder).get_vocab())


@lru_cache(maxsize=16)
def _stored_tokens(file: Path, _size: int, _changed: int) -> Mapping[str, int]:
    stored = read_json(file)
    try:
        vocabulary = stored.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # unigram models store pairs of token and score
            vocabulary = {pair[0]: i for i, pair in enumerate(vocabulary)}
        found = {**vocabulary, **{token["content"]: token["id"] for token in stored.get("added_tokens") or []}}
        sound = all(type(i) is int and 0 <= i < 1 << 31 and isinstance(token, str) for token, i in found.items())
    except (AttributeError, TypeError, KeyError, IndexError):
        sound = False
    if not sound:
        raise UserError("the tokenizer's tokens have no ids", where=str(file), do=AGAIN)
    return found


def same_tokenizer(a: Path, b: Path) -> bool:
    """Whether two folders hold the same tokenizer.json to the byte."""
    one, other = a / "tokenizer.json", b / "tokenizer.json"
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    return one.samefile(other) or _digest(one, *_stamp(one)) == _digest(other, *_stamp(other))


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1024)
def _digest(file: Path, _size: int, _changed: int) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def clash_problem(who: str, own: Mapping[str, int], first: str, base: Mapping[str, int], rows: int) -> Mismatch | None:
    """The problem of a tokenizer that gives the same words other ids than that of the base (or the ``first`` model)."""
    found = [t for t, i in own.items() if i < rows and base.get(t, i) != i and base[t] < rows]
    if not found:
        return None
    token, more = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    what = f"has a tokenizer that gives {token!r} id {own[token]}, {first}'s {base[token]}{more}"
    return Mismatch("", who, what, "set vocab=base or vocab=union")


def make_vocabulary(mode: str, folders: Sequence[Path], rows: Sequence[int], ids: Sequence[str]) -> Vocabulary | None:
    """The merged vocabulary of a base and its experts (``folders``, embedding ``rows``); None where nothing differs.

    A model without a tokenizer is taken to have the base's.
    """
    base = tokens(folders[0])
    tables = [base if k == 0 or same_tokenizer(folders[0], f) else (tokens(f) or base) for k, f in enumerate(folders)]
    tables = [{t: i for t, i in table.items() if i < rows[k]} for k, table in enumerate(tables)]
    if all(table == tables[0] for table in tables) and len(set(rows)) == 1:
        return None
    order = [1 + k for k in sorted(range(len(ids)), key=lambda k: ids[k])]
    merged = dict(tables[0])
    added: list[tuple[str, int, Path]] = []
    if mode == "union":
        free = max(tables[0].values(), default=-1) + 1
        for k in order:
            for token in sorted(tables[k], key=lambda t: tables[k][t]):
                if token not in merged:
                    merged[token] = free + len(added)
                    added.append((token, merged[token], folders[k]))
    total = max([rows[0], *(i + 1 for i in merged.values())])
    own: list[dict[int, int]] = [{i: table[t] for t, i in merged.items() if t in table} for table in tables]
    own[0] = {**{i: i for i in range(rows[0]) if i not in {a[1] for a in added}}, **own[0]}
    return Vocabulary(total, own, added, order)


def union_tokenizer(base: Path, vocabulary: Vocabulary) -> Any:
    """The base's tokenizer with the added tokens, each set up as in the tokenizer that it comes from."""
    tokenizer = load_tokenizer(base)
    settings: dict[Path, dict[str, Any]] = {}
    for token, row, folder in vocabulary.added:
        if folder not in settings:
            given = load_tokenizer(folder).added_tokens_decoder.values()
            settings[folder] = {str(known.content): known for known in given}
        tokenizer.add_tokens([settings[folder].get(token, token)])
        if tokenizer.convert_tokens_to_ids(token) != row:
            what = f"the base's tokenizer puts new tokens at {tokenizer.convert_tokens_to_ids(token)}, not at {row}"
            raise UserError(what, where=str(base), do="set vocab=base")
    return tokenizer
