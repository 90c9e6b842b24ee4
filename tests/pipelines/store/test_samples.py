"""Kept prompts and answers, written as lm-eval writes them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import UserError
from pipelines.store.samples import SAMPLES, write_samples
from pipelines.store.store import Store
from tests.hostile_store import scored


def result(store, key, rows):
    with store.commit("results", key, scored(names=["a/b"])) as draft:
        (draft / "lm_eval.json").write_text(f'{{"key": "{key}"}}')
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), draft / SAMPLES)


def test_a_folder_of_lm_evals_form_for_each_result_with_samples(tmp_path):
    store, out = Store(tmp_path / "store"), tmp_path / "out"
    with pytest.raises(UserError, match="no result was stored with its answers"):
        write_samples(store, out)
    rows = [
        {
            "task": "g",
            "document": f"{name}:{k}",
            "lm_eval_task": name,
            "sample": json.dumps({"doc_id": k, "said": "ä\n"}),
        }
        for name in ("x/y", "z")
        for k in (0, 3)
    ]
    result(store, "a" * 32, rows)
    result(store, "b" * 32, [])
    assert write_samples(store, out) == (1, 4)
    (folder,) = out.iterdir()
    assert folder.name == "base_a_b__aaaaaaaa"
    files = {path.name.rpartition("_")[0]: path for path in folder.iterdir()}
    assert set(files) == {"results", "samples_x__y", "samples_z"}
    assert json.loads(files["results"].read_text()) == {"key": "a" * 32}
    lines = [json.loads(line) for line in files["samples_z"].read_text().splitlines()]
    assert lines == [{"doc_id": 0, "said": "ä\n"}, {"doc_id": 3, "said": "ä\n"}]
    with pytest.raises(UserError, match="not empty"):
        write_samples(store, out)
