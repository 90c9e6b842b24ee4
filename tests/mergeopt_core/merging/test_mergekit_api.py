from pathlib import Path

import pytest
import torch
from golden_calls import merge_model
from mergekit.merge_methods import registry
from mergekit.merge_methods.api import merge_tensors
from omegaconf import OmegaConf

from mergeopt_core.merging import check_parameters, describe, names

CONF = Path(__file__).resolve().parents[3] / "conf" / "method"
STOCK = [n for n in names() if not describe(n).ours]
WRAPPERS = ("consensus", "core_space", "knots", "lines", "subspace_boosting", "svc")


def tensors(count: int, shape=(33, 17), seed: int = 0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g) * 0.05
    return base.to(dtype), [(base + 1e-3 * torch.randn(shape, generator=g)).to(dtype) for _ in range(count)]


def experts_for(name: str) -> int:
    info = describe(name)
    return min(info.max_experts or 3, max(3, info.min_experts))


def merge(name, base, experts, ids=None, parameters=None, seed=0, tensor="model.layers.0.mlp.up_proj.weight", **more):
    ids = ids or [f"e{k}" for k in range(len(experts))]
    whole = {tensor: base}, [{tensor: expert} for expert in experts]
    return merge_model(name, *whole, parameters or {}, seed=seed, ids=ids, **more)[tensor]


@pytest.mark.parametrize("name", names())
def test_each_method_has_a_yaml_with_its_parameters_and_defaults(name):
    given = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert given.pop("method") == name
    assert given == {p.name: p.default for p in describe(name).parameters}
    experts = describe(name).max_experts or 3
    assert check_parameters(name, given, experts) == check_parameters(name, {}, experts)


def test_no_yaml_without_a_method():
    assert {f.stem for f in CONF.glob("*.yaml")} == set(names())


@pytest.mark.parametrize("name", names())
def test_each_method_says_what_it_computes(name):
    assert len(describe(name).doc) > 30


@pytest.mark.parametrize("name", [n for n in STOCK if not describe(n).random])
def test_stock_methods_equal_mergekits_own_call(name):
    base, experts = tensors(experts_for(name))
    declared = {p.name for p in registry.get(name).spec.parameters}
    parameters = {k: v for k, v in check_parameters(name, {}, len(experts)).items() if k in declared}
    inputs = [base, *experts] if describe(name).needs_base else experts
    own = merge_tensors(inputs, name, parameters=parameters, base_index=0 if describe(name).needs_base else None)
    extra = {"reference": True} if any(p.name == "reference" for p in describe(name).parameters) else {}
    assert torch.equal(merge(name, base, experts, parameters=extra), own)


@pytest.mark.parametrize("name", [n for n in names() if describe(n).random and n not in WRAPPERS])
def test_random_methods_depend_on_seed_and_tensor_only(name):
    base, experts = tensors(experts_for(name))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = merge(name, base, experts)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert torch.equal(merge(name, base, experts), one)
    if name != "arcee_fusion":  # samples only tensors above a million entries
        assert not torch.equal(merge(name, base, experts, seed=1), one)
        assert name == "mixup" or not torch.equal(merge(name, base, experts, tensor="other"), one)


def test_a_random_base_method_keeps_its_seed():
    base, experts = tensors(3)
    given = {"base_method": "dare", "base_parameters": {"drop_rate": 0.5}}
    one = merge("subspace_boosting", base, experts, parameters=given)
    assert torch.equal(merge("subspace_boosting", base, experts, parameters=given), one)
    assert not torch.equal(merge("subspace_boosting", base, experts, parameters=given, seed=1), one)


def test_what_mergekit_cannot_merge_is_named():
    base = torch.ones(4)
    turned = [base + torch.tensor([*row, 0.0, 0.0]) for row in ([1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0])]
    with pytest.raises(ValueError, match=r"up_proj.*multislerp cannot merge it"):
        merge("multislerp", base, turned)


@pytest.mark.parametrize("name", names())
def test_bits_do_not_depend_on_threads_or_on_the_order_of_experts(name):
    count = experts_for(name)
    base, experts = tensors(count, shape=(301, 263))
    statistics = [torch.eye(263) * (k + 1) for k in range(count)] if describe(name).statistics == "gram" else None
    if describe(name).statistics == "fisher":
        statistics = [torch.rand(301, 263) for _ in range(count)]
    ids = [f"e{k}" for k in range(count)]
    one = merge(name, base, experts, ids, statistics=statistics)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(merge(name, base, experts, ids, statistics=statistics), one)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    if not describe(name).ordered:
        turned = statistics[::-1] if statistics else None
        assert torch.equal(merge(name, base, experts[::-1], ids[::-1], statistics=turned), one)


def test_float32_arithmetic_whatever_the_inputs():
    base, experts = tensors(3, dtype=torch.bfloat16)
    merged = merge("task_arithmetic", base, experts, parameters={"lambda": 0.5})
    by_hand = base.float() + 0.5 * sum(e.float() - base.float() for e in experts)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, by_hand, rtol=0, atol=1e-7)


def test_per_expert_values_as_scalar_list_and_mapping():
    base, experts = tensors(2)
    a, b = experts
    by_hand = base + 0.25 * (a - base) + 0.5 * (b - base)
    for weight in ([0.25, 0.5], {"b": 0.5, "a": 0.25}):
        merged = merge("task_arithmetic", base, experts, ["a", "b"], {"weight": weight})
        torch.testing.assert_close(merged, by_hand, rtol=0, atol=1e-8)
    reversed_order = merge("task_arithmetic", base, [b, a], ["b", "a"], {"weight": [0.5, 0.25]})
    assert torch.equal(reversed_order, merge("task_arithmetic", base, experts, ["a", "b"], {"weight": [0.25, 0.5]}))


def test_the_same_expert_twice():
    _, experts = tensors(1)
    merged = merge("linear", None, [experts[0], experts[0]], ["a", "a"])
    torch.testing.assert_close(merged, experts[0], rtol=1e-6, atol=0)


def test_the_base_is_no_input_of_linear():
    base, experts = tensors(2)
    assert describe("linear").needs_base is False
    torch.testing.assert_close(merge("linear", base, experts), (experts[0] + experts[1]) / 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "parameters", "experts", "words"),
    [
        ("tise", {}, 2, "no merge method 'tise': did you mean ties"),
        ("ties", {"densty": 0.1}, 2, "did you mean density"),
        ("ties", {"density": 1.5}, 2, "between 0.0 and 1.0"),
        ("ties", {"density": "much"}, 2, "density is a number"),
        ("ties", {"normalize": "maybe"}, 2, "true or false"),
        ("ties", {"lambda": [0.1, 0.2]}, 2, "one float for all experts"),
        ("ties", {"weight": [1.0]}, 2, "1 values for 2 experts"),
        ("ties", {"weight": float("nan")}, 2, "weight is a number"),
        ("karcher", {"max_iter": 1.5}, 2, "whole number"),
        ("slerp", {}, 2, "takes 1 experts, not 2"),
        ("model_stock", {}, 1, "takes 2 to any number of experts, not 1"),
    ],
)
def test_bad_parameters_name_what_is_valid(name, parameters, experts, words):
    with pytest.raises(ValueError, match=words):
        check_parameters(name, parameters, experts)


def test_a_mapping_must_name_the_experts():
    base, experts = tensors(2)
    with pytest.raises(ValueError, match="the experts are"):
        merge("ties", base, experts, ["a", "b"], {"weight": {"a": 1.0, "c": 1.0}})


def test_mergekits_own_defaults_where_asked():
    assert check_parameters("ties", {}, 2)["density"] == 0.2
    assert check_parameters("ties", {}, 2, defaults="mergekit")["density"] == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", names())
def test_values_that_are_not_finite_name_tensor_and_expert(name, value):
    base, experts = tensors(experts_for(name))
    experts[-1][3, 4] = value
    with pytest.raises(ValueError, match=rf"up_proj.*expert e{len(experts) - 1} holds 1 values"):
        merge(name, base, experts)


def test_large_finite_values_are_no_error():
    base = torch.full((64, 64), 3e38)
    assert torch.equal(merge("linear", None, [base]), base)


def test_shapes_that_differ_are_named():
    base, experts = tensors(2)
    with pytest.raises(ValueError, match=r"up_proj.*expert e1 has shape \[3, 3\]"):
        merge("linear", base, [experts[0], torch.zeros(3, 3)])


def test_whole_numbers_are_copied_or_refused():
    position = torch.arange(5)
    assert torch.equal(merge("ties", position, [position.clone(), position.clone()]), position)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge("ties", position, [position, position + 1])


@pytest.mark.parametrize("name", [n for n in names() if describe(n).ours])
def test_ours_answer_to_mergekits_own_call(name):
    base, experts = tensors(3)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.to(dtype) for t in (base, *experts)]
        own = merge_tensors(inputs, name, parameters={}, base_index=0, name="model.layers.0.mlp.up_proj.weight")
        ours = merge(name, inputs[0], inputs[1:], ids=["1", "2", "3"])  # mergekit counts from the base
        assert own.dtype == dtype
        assert torch.equal(own, ours.to(dtype))
    with pytest.raises(TypeError, match="Unknown parameter"):
        merge_tensors(inputs, name, parameters={"densty": 1.0}, base_index=0)


def test_lambda_has_its_own_name_in_mergekits_registry():
    base, experts = tensors(2)
    name = "model.layers.0.mlp.up_proj.weight"
    one = merge_tensors([base, *experts], "iso_c", parameters={"lambda": 1.0}, base_index=0, name=name)
    half = merge_tensors([base, *experts], "iso_c", parameters={"lambda": 0.5}, base_index=0, name=name)
    torch.testing.assert_close(half - base, (one - base) / 2, rtol=1e-3, atol=1e-6)
