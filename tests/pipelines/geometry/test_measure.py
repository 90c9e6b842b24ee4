"""Geometry of checkpoints on disk against float64 numpy on whole vectors, and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from conf.errors import UserError
from conf.schema import Geometry
from pipelines.checkpoints.checkpoint import open_checkpoint
from pipelines.geometry import write_geometry

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
FILE = "model.safetensors"


def save_models(folder, count: int, dtype=torch.float32, **config):
    """A base and experts, every second of which moves only the first half of the layers' weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **config}))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for k in range(count + 1):
        size = {name: 0.01 * bool(k and (k % 2 or "0" in name)) for name in start}
        moved = {n: t + size[n] * torch.randn(t.shape, generator=generator) for n, t in start.items()}
        model.load_state_dict(moved)
        model.to(dtype).save_pretrained(folder / (f"e{k}" if k else "base"))
        model.float()
    return folder / "base", {f"e{k}": folder / f"e{k}" for k in range(1, count + 1)}


def written(base, experts, out, **config):
    opened = {name: open_checkpoint(str(folder)) for name, folder in experts.items()}
    report = write_geometry(open_checkpoint(str(base)), opened, out, Geometry(**config))
    return report, {path.stem: pd.read_csv(path) for path in report.paths if path.parent == out}


def deltas(base, experts):
    """Per tensor in order of names, the task vectors `[K, n]` in float64."""
    start, *ends = ({n: t.double().numpy() for n, t in load_file(f / FILE).items()} for f in (base, *experts.values()))
    return {name: np.stack([end[name].ravel() - start[name].ravel() for end in ends]) for name in sorted(start)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_tables_equal_numpy_on_whole_vectors(tmp_path, dtype, tied):
    base, experts = save_models(tmp_path, 3, dtype, tie_word_embeddings=tied)
    report, tables = written(base, experts, tmp_path / "out")
    layers = deltas(base, experts)
    whole = np.concatenate(list(layers.values()), axis=1)
    assert (report.layers, report.total) == (len(layers), whole.shape[1])
    norms = [*np.linalg.norm(whole, axis=1), np.linalg.norm(whole.sum(axis=0))]
    np.testing.assert_allclose(tables["norms"]["norm"], norms, rtol=2e-6)
    size = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(
        tables["cosines"]["cosine"].to_numpy().reshape(3, 3), whole @ whole.T / np.outer(size, size), atol=2e-6
    )
    for row in tables["layers"].itertuples():
        i, j = (list(experts).index(name) for name in (row.expert_1, row.expert_2))
        products = [(d[i] @ d[j], np.linalg.norm(d[i]) * np.linalg.norm(d[j])) for d in layers.values()]
        signs = [np.sign(a / b) if b and abs(a / b) > 1e-6 else 0.0 for a, b in products]
        assert (row.positive, row.negative, row.zero) == tuple(signs.count(s) for s in (1.0, -1.0, 0.0))
    assert tables["layers"]["zero"].max() > 0, "an expert that leaves layers alone"
    for row, vector in zip(tables["laplace"].itertuples(), [*whole, whole.sum(axis=0)], strict=True):
        location, scale = stats.laplace.fit(vector)
        assert (row.entries, row.of, row.unmoved) == (len(vector), len(vector), pytest.approx((vector == 0).mean()))
        assert (row.location, row.scale) == pytest.approx((location, scale), rel=1e-5, abs=1e-9)
        assert row.ks_laplace == pytest.approx(stats.kstest(vector, "laplace", (location, scale)).statistic, abs=1e-5)
        law = vector.mean(), vector.std()
        assert row.ks_normal == pytest.approx(stats.kstest(vector, "norm", law).statistic, abs=1e-5)
        assert row.log_laplace == pytest.approx(stats.laplace.logpdf(vector, location, scale).mean(), rel=1e-4)
        assert row.log_normal == pytest.approx(stats.norm.logpdf(vector, *law).mean(), rel=1e-4)
    bars = tables["histogram"].query("vector == 'e1' and curve == 'entries'")
    counts, _ = np.histogram(whole[0], [*bars["low"], bars["high"].iloc[-1]])
    np.testing.assert_allclose(bars["y"] * (bars["high"] - bars["low"]) * len(whole[0]), counts, atol=1.5)
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {f"{f}.{e}" for f in ("cosines", "layers", "histogram") for e in ("png", "svg", "csv")} <= figures


def test_a_sample_is_seeded_said_and_close(tmp_path):
    base, experts = save_models(tmp_path, 2)
    report, every = written(base, experts, tmp_path / "all", parts=["laplace"])
    assert not report.notes
    report, some = written(base, experts, tmp_path / "some", parts=["laplace"], sample=4000)
    assert f"4,000 entries of {report.total:,}" in report.notes[0]
    again = written(base, experts, tmp_path / "again", parts=["laplace"], sample=4000)[1]
    pd.testing.assert_frame_equal(some["laplace"], again["laplace"])
    other = written(base, experts, tmp_path / "other", parts=["laplace"], sample=4000, seed=1)[1]
    assert not some["laplace"].equals(other["laplace"])
    np.testing.assert_allclose(some["laplace"]["scale"], every["laplace"]["scale"], rtol=0.1)


def test_an_expert_that_is_the_base_has_no_direction(tmp_path):
    base, experts = save_models(tmp_path, 1)
    report, tables = written(base, {**experts, "itself": base}, tmp_path / "out")
    assert ["itself is the base itself" in note for note in report.notes] == [True]
    unknown = tables["cosines"].query("expert_1 == 'itself' or expert_2 == 'itself'")
    assert unknown["cosine"].isna().tolist() == [True] * 3
    assert tables["norms"].set_index("expert")["norm"]["itself"] == 0
    assert list(tables["laplace"]["vector"]) == ["e1", "sum"]


def test_what_is_no_expert_of_the_base_is_told_in_one_line(tmp_path):
    base, experts = save_models(tmp_path, 1)
    other, _ = save_models(tmp_path / "other", 0, hidden_size=32)
    lacking = tmp_path / "lacking"
    save_models(lacking, 0)
    tensors = load_file(lacking / "base" / FILE)
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, lacking / "base" / FILE, {"format": "pt"})
    broken = tmp_path / "broken"
    save_models(broken, 0)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "base" / FILE, {"format": "pt"})
    for folder, message in (
        (other, r"base \S+ is \[.*32\], the base's is \[.*16\]: "),
        (lacking / "base", r"base model\.norm\.weight is missing: "),
        (broken / "base", r"model\.norm\.weight: two holds values that are not finite"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            written(base, {**experts, "two": folder}, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists(), "nothing is written"
    wrong = (
        ({"parts": ["norm"]}, "no part 'norm'"),
        ({"sample": 1}, "cannot be fitted"),
        ({"parts": []}, "asked for"),
    )
    for config, message in wrong:
        with pytest.raises(UserError, match=message):
            written(base, experts, tmp_path / "out", **config)
