"""The one error that is meant for people."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, what: str, *, where: str = "", do: str = ""):
        self.what, self.where, self.do = what, where, do
        super().__init__(what + (f" ({where})" if where else "") + (f": {do}" if do else ""))


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words for the valid names nearest to a misspelt one: ``did you mean ties, ties_sb?``."""
    names = sorted({str(k) for k in known})
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"valid names: {shown}" if names else "there are none"
