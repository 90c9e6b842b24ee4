"""One stream, two ends: the live model and the folder on disk hold the same bits, and mergekit's where it is exact."""

from __future__ import annotations

import random

import pytest
import torch
import yaml
from merge_helpers import assert_same, merge_of, save, weights
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import UserError
from mergeopt_core import merging
from pipelines.merge import stream
from pipelines.merge.live import merge_into
from pipelines.merge.stream import Merge
from pipelines.merge.write import write_merge

METHODS = [name for name in merging.names() if not merging.describe(name).statistics]
"""All methods, mergekit's and ours, that need no data."""
SYMMETRIC = [n for n in METHODS if not merging.describe(n).ordered and merging.describe(n).max_experts is None]


def live(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def experts_for(method, experts):
    most = merging.describe(method).max_experts
    return experts[: min(most or 3, 3)]


@pytest.mark.parametrize("method", METHODS)
def test_in_memory_is_on_disk_bitwise(pool, tmp_path, method):
    base, experts = pool
    merge = merge_of(base, experts_for(method, experts), method, seed=3)
    model = live(base)
    merge_into(model, merge)
    write_merge(merge_of(base, experts_for(method, experts), method, seed=3), tmp_path / "out")
    assert_same(dict(model.state_dict()), weights(tmp_path / "out"))
    assert_same(dict(model.state_dict()), dict(live(tmp_path / "out").state_dict()))
    changed = [n for n, t in weights(base).items() if not torch.equal(t, weights(tmp_path / "out")[n])]
    assert changed, "the merge did nothing"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scored", [torch.float32, torch.bfloat16])
def test_live_logits_are_those_of_the_written_model(make_pool, tmp_path, tied, stored, scored):
    base, experts = make_pool(2, dtype=stored, tie_word_embeddings=tied)
    tokens = torch.arange(12).reshape(2, 6)
    model = live(base, scored)
    merge_into(model, merge_of(base, experts, "task_arithmetic", {"lambda": 0.7}))
    write_merge(merge_of(base, experts, "task_arithmetic", {"lambda": 0.7}), tmp_path / "out")
    loaded = live(tmp_path / "out", scored)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, loaded(tokens).logits)
        assert not torch.equal(model(tokens).logits, live(base, scored)(tokens).logits)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert {t.dtype for t in weights(tmp_path / "out").values()} == {stored}


def test_a_second_merge_leaves_nothing_of_the_first(pool):
    base, experts = pool
    model, fresh = live(base), live(base)
    merge_into(model, merge_of(base, experts, "ties"))
    merge_into(model, merge_of(base, experts[:2], "linear"))
    merge_into(fresh, merge_of(base, experts[:2], "linear"))
    assert_same(dict(model.state_dict()), dict(fresh.state_dict()))


DETERMINISTIC = {
    "linear": {"weight": [0.5, 0.3, 0.9]},
    "task_arithmetic": {"weight": [0.5, 0.3, 0.9], "lambda": 0.8},
    "ties": {"weight": 1.0, "density": 0.4},
    "breadcrumbs": {"weight": 0.6, "density": 0.7, "gamma": 0.05},
    "model_stock": {},
    "sce": {"select_topk": 0.3},
    "karcher": {},
}


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_mergekits_own_run(make_pool, tmp_path, method, dtype):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    base, experts = make_pool(3, dtype=dtype)
    merge = merge_of(base, experts, method, DETERMINISTIC[method])
    # mergekit sums in the order it is given, this program by the experts' ids
    order = sorted(range(3), key=lambda k: merge.ids[k])
    parameters = {k: [v[i] for i in order] if isinstance(v, list) else v for k, v in DETERMINISTIC[method].items()}
    in_order = merge_of(base, [experts[i] for i in order], method, parameters)
    text = in_order.recipe.with_parameters({k: v for k, v in in_order.parameters.items() if k != "reference"})
    config = yaml.safe_load(text.mergekit_yaml(str(dtype).removeprefix("torch.")))
    run_merge(MergeConfiguration.model_validate(config), str(tmp_path / "theirs"), MergeOptions(quiet=True))
    write_merge(merge, tmp_path / "ours")
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    rtol = 2**-7 if dtype == torch.bfloat16 else 1e-6  # one step of rounding
    same = 0
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rtol, atol=1e-7, msg=name)
        same += int((ours[name] == theirs[name]).sum())
    if dtype == torch.bfloat16:
        assert same > 0.99 * sum(t.numel() for t in ours.values())


@pytest.mark.parametrize("method", SYMMETRIC)
def test_the_order_of_experts_and_the_number_of_threads_change_no_bit(pool, method, monkeypatch):
    monkeypatch.setattr(stream, "WORTH_THREADS", 0)
    base, experts = pool
    reference = dict(merge_of(base, experts, method, seed=5).tensors())
    before = torch.get_num_threads()
    try:
        for threads, order in ((1, (2, 0, 1)), (2, (1, 2, 0))):
            torch.set_num_threads(threads)
            assert_same(reference, dict(merge_of(base, [experts[i] for i in order], method, seed=5).tensors()))
    finally:
        torch.set_num_threads(before)


def test_parameters_stay_with_their_expert_in_any_order(pool):
    base, experts = pool
    one = merge_of(base, experts, "task_arithmetic", {"weight": [0.1, 0.5, 0.9]})
    other = merge_of(base, experts[::-1], "task_arithmetic", {"weight": [0.9, 0.5, 0.1]})
    by_name = merge_of(
        base, experts, "task_arithmetic", {"weight": {"expert0": 0.1, str(experts[1]): 0.5, "expert2": 0.9}}
    )
    wrong = merge_of(base, experts[::-1], "task_arithmetic", {"weight": [0.1, 0.5, 0.9]})
    assert_same(dict(one.tensors()), dict(other.tensors()))
    assert_same(dict(one.tensors()), dict(by_name.tensors()))
    assert not torch.equal(dict(one.tensors())["lm_head.weight"], dict(wrong.tensors())["lm_head.weight"])


def test_random_masks_depend_on_the_seed_and_leave_torchs_state(pool):
    base, experts = pool
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = dict(merge_of(base, experts, "dare_linear", seed=1).tensors())
    random.seed(0)
    torch.rand(7)
    again = dict(merge_of(base, experts, "dare_linear", seed=1).tensors())
    other = dict(merge_of(base, experts, "dare_linear", seed=2).tensors())
    assert_same(first, again)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    torch.manual_seed(11)
    dict(merge_of(base, experts, "dare_linear", seed=1).tensors())
    assert torch.equal(torch.get_rng_state(), state)


def test_arithmetic_is_in_float32_with_one_cast(make_pool):
    base, experts = make_pool(3, dtype=torch.bfloat16)
    merged = dict(merge_of(base, experts, "task_arithmetic", {"lambda": 0.3}).tensors())
    wide = dict(merge_of(base, experts, "task_arithmetic", {"lambda": 0.3}, dtype="float32").tensors())
    for name, tensor in weights(base).items():
        start = tensor.double()
        exact = start + 0.3 * sum(weights(e)[name].double() - start for e in experts)
        torch.testing.assert_close(wide[name].double(), exact, rtol=1e-6, atol=1e-7)
        assert torch.equal(merged[name], wide[name].bfloat16())


@pytest.fixture(scope="module")
def narrow_and_wide(make_pool, tmp_path_factory):
    """The same bfloat16 values stored in bfloat16 and in float32."""
    base, experts = make_pool(3, dtype=torch.bfloat16)
    root = tmp_path_factory.mktemp("wide")
    wide = [save(live(m, torch.float32), root / m.name) for m in (base, *experts)]
    return (base, experts), (wide[0], wide[1:])


@pytest.mark.parametrize("method", METHODS)
def test_how_weights_are_stored_changes_no_bit(narrow_and_wide, method):
    (base, experts), (wide_base, wide_experts) = narrow_and_wide
    ids = ["a", "b", "c"]
    made = []
    for b, e in ((base, experts), (wide_base, wide_experts)):
        merge = merge_of(b, experts_for(method, e), method, dtype="float32")
        made.append(dict(Merge(merge.recipe, merge.base, merge.experts, ids[: len(merge.experts)]).tensors()))
    assert_same(*made)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_recipes_dtype_is_the_result_of_one_cast(pool, tmp_path, dtype):
    base, experts = pool
    write_merge(merge_of(base, experts, "linear", dtype=dtype), tmp_path / "out")
    full = dict(merge_of(base, experts, "linear").tensors())
    assert_same(weights(tmp_path / "out"), {n: t.to(getattr(torch, dtype)) for n, t in full.items()})
    assert live(tmp_path / "out", "auto").dtype == getattr(torch, dtype)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("w1 w2").input_ids == [2, 3]


def test_the_same_expert_twice(pool):
    base, experts = pool
    twice = dict(merge_of(base, [experts[0]] * 2, "task_arithmetic", {"weight": 0.5}).tensors())
    for name, tensor in twice.items():
        torch.testing.assert_close(tensor, weights(experts[0])[name])
    dare = merge_of(base, [experts[0]] * 2, "dare_linear", {"density": 0.5})
    assert all(t.isfinite().all() for _, t in dare.tensors())


def test_a_value_that_is_not_finite_is_named(pool, tmp_path):
    base, experts = pool
    bad = weights(experts[1])
    bad["model.norm.weight"][3] = float("nan")
    (tmp_path / "broken").mkdir()
    save_file(bad, tmp_path / "broken" / "model.safetensors")
    (tmp_path / "broken" / "config.json").write_text((experts[1] / "config.json").read_text())
    with pytest.raises(UserError, match=r"model.norm.weight: expert broken holds 1 values that are not finite"):
        dict(merge_of(base, [experts[0], tmp_path / "broken"], "ties").tensors())
