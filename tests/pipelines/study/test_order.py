from itertools import pairwise

from conf.schema import Suite
from pipelines.merge.recipe import Recipe
from pipelines.study.order import by_inputs
from pipelines.study.sources import Source
from pipelines.study.trial import Trial


def trial(base: str, experts: str, method: str | None = None) -> Trial:
    sources = tuple(Source(name, name) for name in experts)
    recipe = Recipe(base, tuple(experts), method) if method else None
    kind = "merge" if method else "expert" if experts else "base"
    return Trial(kind, Source(base, base), sources, Suite(), {}, recipe)


def test_a_subset_is_loaded_once_for_all_methods_and_the_next_one_shares_most_with_it():
    subsets = ["ab", "cd", "abc", "bcd", "abcd", "ad"]
    given = [trial("m", ""), trial("m", "a"), trial("n", "")]
    given += [trial(base, s, method) for base in "mn" for method in ("linear", "ties") for s in subsets]
    made = by_inputs(given)
    assert sorted(map(id, made)) == sorted(map(id, given))
    assert [t.base.path for t in made] == ["m"] * 14 + ["n"] * 13
    assert made[:2] == given[:2]  # what is no merge comes first, as given
    merges = made[2:14]
    assert all(a.reads == b.reads for a, b in zip(merges[::2], merges[1::2]))
    new = sum(len(b.reads - a.reads) for a, b in pairwise(merges))
    as_given = sum(len(b.reads - a.reads) for a, b in pairwise([t for t in given if t.merge and t.base.path == "m"]))
    assert (new, as_given) == (5, 13)
