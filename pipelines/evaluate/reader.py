"""What a suite asks of the checkpoint whose tokenizer and configuration its models are read with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.errors import UserError, nearest
from conf.schema import Suite
from pipelines.checkpoints.code import check_code
from pipelines.checkpoints.load import load_tokenizer


def open_tokenizer(folder: Path, suite: Suite) -> Any:
    """The tokenizer, whose chat template is the one that the suite wants. Raises UserError where it has none."""
    tokenizer = load_tokenizer(folder, suite.trust_remote_code)
    if suite.chat_template:
        template = tokenizer.chat_template or {}
        known = template if isinstance(template, dict) else {"default": template}
        name = "default" if suite.chat_template is True else suite.chat_template
        if name not in known:
            do = nearest(name, known) if known else "suite.chat_template=false"
            raise UserError(f"the tokenizer has no chat template {name!r}", where=str(folder), do=do)
        tokenizer.chat_template = known[name]  # lm-eval's own code takes the default, whatever it is told
    return tokenizer


def check_reader(folder: str, suite: Suite) -> list[UserError]:
    """What is wrong with a checkpoint for a suite, known before any weight is read."""
    try:
        check_code(folder, suite.trust_remote_code)
        if suite.chat_template:
            open_tokenizer(Path(folder), suite)
    except UserError as error:
        return [error]
    return []
