"""What merges share is found again, in memory and on disk, within its bound; merged bits do not depend on it."""

import torch

from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.merge.cache import MergeCache
from pipelines.merge.recipe import Recipe
from pipelines.merge.stream import Merge


def factors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(64, 4, generator=generator) for name in ("U", "V")}


def test_factors_outlive_the_process_and_small_things_do_not(tmp_path):
    kept = MergeCache(tmp_path / "a")
    kept["factors", "gram", "e", "t"] = factors(0)
    kept["product", "e", "e", "t"] = torch.ones(3)
    again = MergeCache(tmp_path / "a")
    assert torch.equal(again.get(("factors", "gram", "e", "t"))["U"], factors(0)["U"])
    assert again.get(("product", "e", "e", "t")) is None
    assert torch.equal(kept.get(("product", "e", "e", "t")), torch.ones(3))
    assert kept.get(("factors", "gram", "other", "t")) is None


def test_memory_is_bounded_and_the_oldest_goes_first(tmp_path):
    kept = MergeCache(tmp_path / "a", memory=3 * 5000)
    for number in range(4):
        kept["product", str(number)] = torch.zeros(1000)
        kept.get(("product", "0"))
    assert kept.get(("product", "1")) is None
    assert kept.get(("product", "0")) is not None
    assert kept.get(("product", "3")) is not None


def test_merged_bits_do_not_depend_on_what_is_kept(tiny_pool, tmp_path):
    base = open_checkpoint(tiny_pool.base)
    experts = [open_checkpoint(path) for path in tiny_pool.experts]
    kept = MergeCache(tmp_path / "factors")
    for method in ("tsv_m", "ties", "model_stock", "ties_global", "iso_c", "task_arithmetic_sb"):
        for chosen in ([0, 1], [0, 2], [0, 1, 2], [2, 1]):
            recipe = Recipe(tiny_pool.base, tuple(tiny_pool.experts[i] for i in chosen), method)
            some = [experts[i] for i in chosen]
            fresh = dict(Merge(recipe, base, some).tensors())
            for name, tensor in Merge(recipe, base, some, cache=kept).tensors():
                assert torch.equal(tensor, fresh[name]), (method, chosen, name)
    assert list((tmp_path / "factors").glob("*.safetensors"))
