"""What an entry says of how its result came about, in columns and for people."""

import json

from pipelines.store.provenance import apart, asked_of, provenance, said, training_costs, training_of

TASK = {"num_fewshot": None, "limit": None, "split": None}
SETTINGS = {
    "tasks": {}, "seed": 1234, "dtype": "float32", "chat_template": False, "max_length": None, "share_prefix": True,
    "lm_eval": "0.4.13", "transformers": "5",
}  # fmt: skip


def about(**tasks):
    settings = {**SETTINGS, "tasks": {name: {**TASK, **told} for name, told in tasks.items()}}
    base = {"path": "/somewhere/models--org--base/snapshots/abc"}
    return {"settings": settings, "base": base, "experts": [], "recipe": None, "model": {}, "suite": "mine"}


def test_a_limit_says_how_its_documents_were_chosen():
    chosen = {"a": {"limit": 20}, "b": {"limit": 20, "sample": "first"}, "c": {"limit": 0.1, "split": "test"}, "d": {}}
    told = [asked_of([task], about(**chosen)["settings"])["sample"] for task in chosen]
    assert told == ["20 drawn by seed 1234", "first 20", "10% of test drawn by seed 1234", "all"]
    assert provenance(about(**chosen))["sample"] == " + ".join(told)


def test_few_shots_and_base_are_named():
    told = provenance(about(a={"num_fewshot": 0}, b={"num_fewshot": 5}))
    assert (told["fewshot"], told["base"]) == ("0 + 5", "org/base")
    assert told["engine"] == "lm_eval 0.4.13, transformers 5, contexts shared"
    assert "fewshot 0" in said({"fewshot": 0, "attack": "none", "seed": None})


def test_a_training_is_told_by_what_is_not_a_default(tmp_path):
    from dataclasses import asdict

    from conf.schema import Optimizer, Training

    cost = {"seconds": 2.5, "tokens": 300, "memory": 10**9}
    cpu, gpu, elsewhere = (tmp_path / place for place in ("experts/cpu", "experts/gpu", "elsewhere"))
    for folder, summary in ((cpu, cost), (gpu, cost | {"device_memory": 7}), (elsewhere, cost)):
        folder.mkdir(parents=True)
        entry = {
            "kind": "experts", "key": folder.name, "made": 0.0, "name": "e", "base": {"path": "b", "fingerprint": "f"},
            "finetuning": {"method": "sam", "rho": 0.1, "include": [], "exclude": []},
            "optimizer": asdict(Optimizer(lr=1e-4, weight_decay=0.1)),
            "training": asdict(Training(batch_size=4, accumulation=2)), "epochs": 5.0, "seed": 7, "summary": summary,
        }  # fmt: skip
        (folder / "entry.json").write_text(json.dumps(entry))
    assert training_costs(str(gpu)) == {"train_seconds": 2.5, "train_tokens": 300, "train_memory": 7}
    assert training_costs(str(cpu))["train_memory"] == 10**9
    made = training_of(str(cpu))
    assert made == {"how": "sam rho=0.1, adamw lr=0.0001 weight_decay=0.1, 5 epochs of 8", "method": "sam", "seed": 7}
    assert training_of(str(elsewhere)) is None, "a folder that is not of a store says nothing of itself"
    assert training_costs(str(tmp_path / "nothing")) == {}


def test_rows_keep_what_tells_them_apart_and_share_the_rest():
    rows = [
        {"pool": p, "training": f"{p}, adamw", "seed": s, "twice": s, "device": "cpu", "mean": m}
        for m, (p, s) in enumerate([("plain", 0), ("sam", 0), ("sam", 1)])
    ]
    told, same = apart(rows, ["pool", "training"], ["mean"])
    assert told == [
        {"pool": "plain", "training": "plain", "seed": 0, "mean": 0},
        {"pool": "sam", "training": "sam", "seed": 0, "mean": 1},
        {"pool": "sam", "training": "sam", "seed": 1, "mean": 2},
    ]
    assert same == {"device": "cpu", "all training": "adamw"}
