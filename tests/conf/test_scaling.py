"""The small world: names of experts and tasks at the same place."""

from conf.compose import compose
from conf.scaling import _places, _renamed


def test_names_move_to_the_same_place():
    experts = _places([["math", "code", "lm"], ["code", "math"]], ["add", "dist"])
    assert experts == {"math": "add", "code": "dist", "lm": "add"}, "the first again after the last; earlier pools win"
    names = {
        "subsets": experts,
        "experts": experts,
        "order": experts,
        "task": {"gsm8k": "med"},
        "tasks": {"gsm8k": "med"},
    }
    sampler = {"sizes": [2], "subsets": [["math", "code"], {"experts": ["lm"], "tasks": ["gsm8k", "other"]}]}
    expected = {"sizes": [2], "subsets": [["add", "dist"], {"experts": ["add"], "tasks": ["med", "other"]}]}
    assert _renamed(sampler, "sampler", names) == expected
    where = {"task": "gsm8k", "order": "lm > code", "label": "math"}
    report = {"tables": {"math": {"where": where, "columns": ["task"]}}}
    moved = {"tables": {"math": {"where": where | {"task": "med", "order": "add > dist"}, "columns": ["task"]}}}
    assert _renamed(report, "report", names) == moved


def test_what_names_nothing_stays():
    ((config, _),) = compose(["+experiment=in_the_wild", "+scale=tiny", "sampler.sizes=[2,3]"])
    assert config.sampler.sizes == [2, 3]
    assert config.sampler.samples == 15
