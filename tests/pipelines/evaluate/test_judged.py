"""LiveBench's instructions, scored by IFEval's package."""

import pytest

from pipelines.evaluate.tasks.livebench import checks


def test_livebench_instructions_by_ifevals_checkers():
    pytest.importorskip("langdetect")
    names = ["punctuation:no_comma", "length_constraints:number_words"]
    doc = {"turns": ["Say something."], "instruction_id_list": names}
    doc["kwargs"] = [{}, {"num_words": 3, "relation": "at least"}]
    assert checks.instruction(doc, ["one two three four"]) == {"score": 1.0}
    assert checks.instruction(doc, ["one, two, three"]) == {"score": 0.25}  # not all, half of them
    assert checks.instruction(doc, ["one, two"]) == {"score": 0.0}
    assert checks.instruction(doc, [""]) == {"score": 0.0}
