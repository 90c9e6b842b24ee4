"""The one error that is meant for people."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

UNSEEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069"  # not the line break
    "\ud800-\udfff\ufffe\uffff]"  # halves of surrogate pairs, and what XML may not hold
)
"""Control characters, and those that change a line's direction or are none of a text."""


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2. Where more is wrong than one line tells,
    ``others`` has the rest: ``-v`` and ``--json`` print them too.
    """

    def __init__(self, what: str, *, where: str = "", do: str = "", others: Sequence["UserError"] = ()):
        self.what, self.where, self.do, self.others = what, where, do, tuple(others)
        more = f" (and {len(self.others)} more; -v lists them all)" if self.others else ""
        super().__init__(what + (f" ({where})" if where else "") + (f": {do}" if do else "") + more)

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
    place = f"{mark.name}:{mark.line + 1}" if mark else where
    return UserError(f"the file is no YAML: {getattr(error, 'problem', None) or error}", where=place, do="mend it")


def printable(text: str) -> str:
    """Text whose control characters, but for line breaks, are spelt out, so that a terminal does nothing by them."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)


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
