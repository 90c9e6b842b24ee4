"""Golden rows as calls of our methods: which method and parameters follow the convention that a row states."""

from mergeopt_core.merging import describe, merge_tensor, prepare


def merge_model(name, base, experts, parameters, seed=0, ids=None, cache=None, **more):
    """All tensors of a model in sorted order, with the passes that the method asks for."""
    ids = ids or [f"e{k:02d}" for k in range(len(experts))]

    def models():
        return ((tensor, base[tensor], [e[tensor] for e in experts]) for tensor in sorted(base))

    prepared = prepare(name, models, parameters, ids, seed=seed, cache=cache)
    return {
        tensor: merge_tensor(
            name,
            base[tensor] if describe(name).needs_base else None,
            [e[tensor] for e in experts],
            tensor_name=tensor,
            ids=ids,
            parameters=parameters,
            seed=seed,
            prepared=prepared,
            cache=cache,
            **more,
        )
        for tensor in sorted(base)
    }


def _ties(row, p):
    v = row["variant"]
    if "global" in v:
        given = {"lambda": p["lambda"], "zero_sign": "majority"}
        if v.startswith("MergeLM"):
            return "ties_global", {**given, "density": 1 - p["param_value_mask_rate"], "count": "mergelm"}
        return "ties_global", {**given, "density": p["topk_percent"] / 100, "merge": p["merge_func"]}
    if "1/n" in v:
        return "ties", {"density": p["density"], "normalize": False, "lambda": p["lambda"] / row["T"]}
    return "ties", {"density": p["density"], "normalize": p["normalize"], "lambda": p["lambda"], "weight": p["weights"]}


def _model_stock(row, p):
    if "fusion_bench" in row["variant"]:
        return "model_stock", {"average": "angle", "clamp": 0.0, "eps": 1e-8}
    return "model_stock", {"filter_wise": p.get("filter_wise", False), "clamp": p.get("norm_product_clamp_min", 0.0)}


def _spectral(row, p):
    given = {"lambda": p.get("lambda", 1.0), "normalize": p.get("normalize", False)}
    if "2-D" in str(p.get("svd_tensors", "")) or row["variant"].startswith("official"):
        given["tensors"] = "matrices"
    if given["normalize"]:
        given["rest_scale"] = 1 / row["T"]
    if "rank_tol" in p:
        given["rank_tolerance"] = p["rank_tol"]
    if row["method"] == "iso_cts":
        given["common_fraction"] = p["common_space_fraction"]
    return row["method"], given


def _boosting(row, p):
    if "density" in p:
        given = {key: p[key] for key in ("beta", "density", "lambda", "normalize")}
        return "ties_sb", {**given, "boosted": "sum" if "before" in row["variant"] else "mean"}
    given = {key: p[key] for key in ("beta", "lambda", "normalize")}
    return "task_arithmetic_sb", {**given, "rank_tolerance": p.get("rank_tol", 0.0)}


def _wudi(row, p):
    everything = row["variant"] == "fusion_bench"
    return "wudi", {
        "iterations": p["iter_num"],
        "lr": p["lr"],
        "tensors": "matrices" if everything else "linear",
        "rest": "mean" if everything else "base",
    }


def _dare(row, p):
    scales = {"1/(1-p)": "paper", "1/mean(mask)": "realised", "none": "none"}
    rate = p["drop_rate"] if "drop_rate" in p else 1 - p["density"]
    return "dare", {
        "drop_rate": rate,
        "rescale": scales.get(p["rescale"], "l1"),
        "lambda": p["lambda"],
        "normalize": p.get("normalize", False),
        "base_method": "ties" if "dare_ties" in row["variant"] else "task_arithmetic",
        "matrices_only": ">=2-D only" in p.get("tensors", ""),
    }


def _m3(row, p):
    if "lambdas" in p:
        return "mixup", {"weights": "p_series", "p": p["p"], "scale": p["s"]}
    first = p["lambda1"]
    given = {"weight": [first, 1 - first] + [1.0] * (row["T"] - 2)}
    if row["variant"] == "average":
        return "mixup", {**given, "base_method": "average"}
    if row["variant"] == "TIES":
        return "mixup", {**given, "base_method": "ties", "density": 1 - p["param_value_mask_rate"], "scale": p["s"]}
    if "drop_rate" in p:
        return "mixup", {**given, "base_method": "dare", "drop_rate": p["drop_rate"], "scale": p["s"]}
    return "mixup", {**given, "scale": p["s"]}


def call(row):
    """Method name and parameters of a golden row."""
    p, method = row["params"], row["method"]
    if method == "task_arithmetic":
        return method, {"lambda": p["lambda"], "normalize": p["normalize"], "weight": p["weights"]}
    if method == "weight_average":
        return "linear", {"weight": p["weights"], "normalize": p["normalize"]}
    table = {
        "ties": _ties,
        "model_stock": _model_stock,
        "subspace_boosting": _boosting,
        "wudi": _wudi,
        "dare": _dare,
        "m3": _m3,
    }
    return table.get(method, _spectral)(row, p)
