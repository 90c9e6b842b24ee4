"""What mergekit does not say about its own methods: equations, argued defaults, valid ranges.

θ0 is the base, θ_k an expert, Δ_k = θ_k − θ0, w_k its weight, λ the scale; all per tensor.
"""

from __future__ import annotations

from typing import Any

_GTA = "W = θ0 + λ · Σ_k w_k s(Δ_k) [/ Σ_k w_k with normalize]"
_SIGN = "only entries whose sign is that of Σ_k w_k s(Δ_k) are summed (0 counts as +), and normalize divides by their weights"

EQUATIONS: dict[str, str] = {
    "linear": "Weighted mean of the experts' weights.\n\nW = Σ_k w_k θ_k / Σ_k w_k (without the division when normalize is off).",
    "task_arithmetic": "Scaled sum of task vectors.\n\n" + _GTA + ", s = identity.",
    "ties": "Trim, elect signs, merge: task vectors keep their largest entries, and the entries that agree with the elected "
    "sign are averaged.\n\n" + _GTA + f"; s keeps the max(1, ⌊density·n⌋) largest |Δ| of the tensor; {_SIGN}.",
    "dare_linear": "Random drop of task-vector entries, then a weighted sum.\n\n"
    + _GTA
    + "; s keeps an entry with probability density and, with rescale, restores the tensor's L1 norm.",
    "dare_ties": "Random drop of task-vector entries, then TIES' sign election.\n\n"
    + _GTA
    + f"; s keeps an entry with probability density and, with rescale, restores the tensor's L1 norm; {_SIGN}.",
    "breadcrumbs": "Task arithmetic without the smallest entries and without the largest outliers.\n\n"
    + _GTA
    + "; s drops the ⌊gamma·n⌋ largest |Δ| and then all but ⌊density·n⌋ of the rest.",
    "breadcrumbs_ties": "Model Breadcrumbs, then TIES' sign election.\n\n"
    + _GTA
    + f"; s drops the ⌊gamma·n⌋ largest |Δ| and then all but ⌊density·n⌋ of the rest; {_SIGN}.",
    "della": "Random drop that spares large entries, then TIES' sign election.\n\n"
    + _GTA
    + "; s keeps entry i of a row with a probability that rises with its rank from density − epsilon to "
    + f"density + epsilon and, with rescale, restores the tensor's L1 norm; {_SIGN}.",
    "della_linear": "Random drop that spares large entries, then a weighted sum.\n\n"
    + _GTA
    + "; s keeps entry i of a row with a probability that rises with its rank from density − epsilon to "
    "density + epsilon and, with rescale, restores the tensor's L1 norm.",
    "model_stock": "Interpolation between the base and the experts' mean by the angle between task vectors.\n\n"
    "W = t · mean_k θ_k + (1 − t) θ0, t = N c / (1 + (N − 1) c), c = mean pairwise cosine of the Δ_k "
    "(of each row with filter_wise).",
    "slerp": "Spherical interpolation between the base and one expert.\n\n"
    "W = sin((1−t)Ω)/sin Ω · θ0 + sin(tΩ)/sin Ω · θ1, Ω the angle between the flattened tensors.",
    "nuslerp": "Spherical interpolation between two experts (between their task vectors where a base is given).\n\n"
    "t = w_2 / (w_1 + w_2); per row or column of a tensor, or on the flattened tensor.",
    "multislerp": "Weighted barycentre of several experts on the sphere, in the tangent space at their mean.\n\n"
    "W = ‖·‖-average · exp_m(Σ_k w_k log-projection_m(u_k)), u_k the unit vector of θ_k (of Δ_k where a base is given).",
    "karcher": "Karcher mean of the experts on the sphere, rescaled to their mean norm.\n\n"
    "m = argmin_u Σ_k d(u, u_k)², W = mean_k ‖θ_k‖ · m.",
    "sce": "Select entries of high variance across experts, weigh experts by energy, erase minority signs.\n\n"
    "W = θ0 + Σ_k c_k Δ_k / Σ_k c_k over the entries of the majority sign, c_k ∝ mean(Δ_k²).",
    "ram": "Entries that one expert changed are taken whole, entries that several changed are averaged.\n\n"
    "W = θ0 + Σ_k Δ_k [|Δ_k| > epsilon] / number of experts with |Δ| > epsilon.",
    "ramplus_tl": "RAM with the unshared entries scaled up.\n\n"
    "As ram; unshared entries times 1 + r · min(ρ, alpha), ρ = shared / unshared entries of the expert in this tensor.",
    "nearswap": "Moves the base towards one expert where the two are already close.\n\n"
    "W = (1 − q) θ0 + q θ1, q = clip(t / |θ1 − θ0|, 0, 1) entrywise.",
    "arcee_fusion": "Takes one expert's entries where a KL-weighted change is an outlier, the base's elsewhere.\n\n"
    "importance = |θ1 − θ0| · KL(softmax θ1 ‖ softmax θ0) per row; kept above median + 1.5 · interquartile range.",
    "passthrough": "One expert as it is, times scale where one is given.\n\nW = scale · θ1.",
}

RANDOM = {"dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion"}
"""Draw from torch's global generator."""

ELEMENTWISE = {"linear", "task_arithmetic", "nearswap", "ram", "passthrough"}
"""Every output entry depends on the inputs' same entry only, so bits do not depend on the number of threads."""

DEFAULTS: dict[tuple[str, str], Any] = {
    # mergekit has no default
    ("slerp", "t"): 0.5,
    ("nearswap", "t"): 1e-4,
    # mergekit's default of 1.0 keeps every entry: the method would be task arithmetic under another name
    ("ties", "density"): 0.2,
    ("dare_linear", "density"): 0.1,
    ("dare_ties", "density"): 0.1,
    ("della", "density"): 0.5,
    ("della_linear", "density"): 0.5,
    ("breadcrumbs", "density"): 0.9,
    ("breadcrumbs_ties", "density"): 0.9,
}
"""Defaults of ours for mergekit's methods; each is argued for in docs/faithfulness.md."""

REQUIRED_WEIGHT = 1.0
"""Default of ``weight`` where mergekit demands one: all experts alike."""

RANGES: dict[str, tuple[float | None, float | None]] = {
    "density": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "epsilon": (0.0, None),
    "select_topk": (0.0, 1.0),
    "drop_rate": (0.0, 1.0),
    "beta": (0.0, 1.0),
    "max_iter": (0, None),
    "tol": (0.0, None),
    "eps": (0.0, None),
}
"""Valid values by parameter name."""
