"""The one error that is meant for people."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069"  # not the line break
    "\ud800-\udfff\ufffe\uffff]"  # halves of surrogate pairs, and what XML may not hold
)
"""Control characters, and those that change a line's direction or are none of a text."""


SECRET = re.compile(
    r"""\bhf_[a-zA-Z0-9]{16,}|\bsk-[\w-]{32,}|(?<=://)[^\s/@"']+@|(?i:\bbearer\s+)[\w.~+/=-]{8,}"""
    r"""|(?<=[?&])\w*(?:token|key|secret|password|signature)=[^\s&#"']+"""
)
"""Tokens of the hub and of model services, user and password in an address, and secrets in its query."""
MARKS = ("hf_", "sk-", "://", "bearer", "?", "&")
"""One of these is in every text that ``SECRET`` finds something in: looking for them takes a hundredth of the time."""
NAMED_SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD)$")
"""Environment variables whose values are told nowhere."""
SHORTEST = 12
"""Characters of such a value at least: shorter ones may be words."""


def redacted(text: str) -> str:
    """Text without secrets: those of this process's environment, and whatever has the form of one."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    small = text.lower()
    return SECRET.sub("***", text) if any(mark in small for mark in MARKS) else text


@cache
def _secrets() -> list[str]:
    found = [value for name, value in os.environ.items() if NAMED_SECRET.search(name) and len(value) >= SHORTEST]
    return sorted(found, key=len, reverse=True)


def disk_full(error: BaseException) -> bool:
    """Whether an error of any library says that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error).lower() for words in ("no space left", "os error 28", "disk quota exceeded"))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the host or of a device ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's allocator on the CPU


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2. Where more is wrong than one line tells,
    ``others`` has the rest: ``-v`` and ``--json`` print them too.
    """

    def __init__(self, what: str, *, where: str = "", do: str = "", others: Sequence["UserError"] = ()):
        self.what, self.where, self.do = redacted(what), redacted(where), redacted(do)
        self.others = tuple(others)
        more = f" (and {len(self.others)} more; -v lists them all)" if self.others else ""
        where, do = (f" ({self.where})" if where else ""), (f": {self.do}" if do else "")
        super().__init__(self.what + where + do + more)

    def to_dict(self) -> dict[str, Any]:
        """Everything that is wrong, for machines."""
        told = [{"what": error.what, "where": error.where, "do": error.do} for error in (self, *self.others)]
        return {"error": str(self), "problems": told}


def raise_all(errors: Sequence[UserError]) -> None:
    """Raise the first of several errors, which holds the others; nothing where there is none."""
    if errors:
        first = errors[0]
        raise UserError(first.what, where=first.where, do=first.do, others=errors[1:])


def no_yaml(error: Exception, where: str) -> UserError:
    """What is said of a file that is no YAML: its line, where the reader of YAML knows it, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f"{where if mark.name.startswith('<') else mark.name}:{mark.line + 1}" if mark else where
    return UserError(f"the file is no YAML: {getattr(error, 'problem', None) or error}", where=place, do="mend it")


def printable(text: str) -> str:
    """Text for a terminal or log: control characters, but for line breaks, are spelt out, and secrets left out."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), redacted(text))


def markdown_text(value: object) -> str:
    """One line of Markdown, a cell of a table too, in which a text from outside is no markup."""
    line = " ".join(printable(str(value)).split("\n")).replace("|", "\\|")
    return re.sub("<(?=[a-zA-Z/!?])", "&lt;", line)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words for the valid names nearest to a misspelt one: ``did you mean ties, ties_sb?``."""
    names = sorted({str(k) for k in known})
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"valid names: {shown}" if names else "there are none"
