"""What mergekit does not say about its own methods: equations, argued defaults, valid ranges.

θ0 is the base, θ_k an expert, Δ_k = θ_k − θ0, w_k its weight, λ the scale; all per tensor.
"""

from __future__ import annotations

from typing import Any

_GTA = "W = θ0 + λ · Σ_k w_k s(Δ_k) [/ Σ_k w_k with normalize]"
_SIGN = (
    "only entries whose sign is that of Σ_k w_k s(Δ_k) are summed (0 counts as +), "
    "and normalize divides by their weights"
)
_LARGEST = "s keeps the max(1, ⌊density·n⌋) largest |Δ| of the tensor"
_DROP = "s keeps an entry with probability density and, with rescale, restores the tensor's L1 norm"
_OUTLIERS = "s drops the ⌊gamma·n⌋ largest |Δ| and then all but ⌊density·n⌋ of the rest"
_RANKED = (
    "s keeps an entry of a row with a probability that rises with its rank from density − epsilon to "
    "density + epsilon and, with rescale, restores the tensor's L1 norm"
)


def _text(summary: str, equation: str, *notes: str) -> str:
    return f"{summary}\n\n{'; '.join([equation, *notes])}."


EQUATIONS: dict[str, str] = {
    "linear": _text(
        "Weighted mean of the experts' weights.", "W = Σ_k w_k θ_k / Σ_k w_k (without the division if normalize is off)"
    ),
    "task_arithmetic": _text("Scaled sum of task vectors.", _GTA, "s is the identity"),
    "ties": _text(
        "Trim task vectors to their largest entries, elect a sign an entry, average what agrees with it.",
        _GTA,
        _LARGEST,
        _SIGN,
    ),
    "dare_linear": _text("Random drop of task-vector entries, then a weighted sum.", _GTA, _DROP),
    "dare_ties": _text("Random drop of task-vector entries, then TIES' sign election.", _GTA, _DROP, _SIGN),
    "breadcrumbs": _text("Task arithmetic without the smallest entries and the largest outliers.", _GTA, _OUTLIERS),
    "breadcrumbs_ties": _text("Model Breadcrumbs, then TIES' sign election.", _GTA, _OUTLIERS, _SIGN),
    "della": _text("Random drop that spares large entries, then TIES' sign election.", _GTA, _RANKED, _SIGN),
    "della_linear": _text("Random drop that spares large entries, then a weighted sum.", _GTA, _RANKED),
    "model_stock": _text(
        "Interpolation between the base and the experts' mean by the angle between task vectors.",
        "W = t · mean_k θ_k + (1 − t) θ0, t = N c / (1 + (N − 1) c), c = mean pairwise cosine of the Δ_k",
        "c is that of the whole tensor, or of each row with filter_wise",
        "a product of norms below clamp counts as clamp (mergekit: 1e-6, which shrinks c where updates are tiny), "
        "average: angle takes the cosine of the mean angle, eps is added to both denominators",
    ),
    "slerp": _text(
        "Spherical interpolation between the base and one expert.",
        "W = sin((1−t)Ω)/sin Ω · θ0 + sin(tΩ)/sin Ω · θ1, Ω the angle between the flattened tensors",
    ),
    "nuslerp": _text(
        "Spherical interpolation between two experts, or between their task vectors where a base is given.",
        "W = θ0 + slerp(Δ_1, Δ_2; t), t = w_2 / (w_1 + w_2)",
        "on the flattened tensor, or on each of its rows or columns",
    ),
    "multislerp": _text(
        "Weighted barycentre of several experts on the sphere, in the tangent space at their mean.",
        "W = Σ_k w_k ‖Δ_k‖ · exp_m(Σ_k w_k P_m u_k), u_k = Δ_k/‖Δ_k‖, m = Σ_k w_k u_k normalised, P_m u = u − ⟨u, m⟩ m",
        "Δ_k is θ_k itself where no base is given, and θ0 is added where one is",
    ),
    "karcher": _text(
        "Karcher mean of the experts on the sphere, rescaled to their mean norm.",
        "W = mean_k ‖θ_k‖ · argmin_u Σ_k angle(u, θ_k)²",
    ),
    "sce": _text(
        "Select entries of high variance across experts, weigh experts by energy, erase minority signs.",
        "W = θ0 + Σ_k c_k Δ_k / Σ_k c_k over the entries of the majority sign, c_k ∝ mean(Δ_k²)",
    ),
    "ram": _text(
        "Entries that one expert changed are taken whole, entries that several changed are averaged.",
        "W = θ0 + Σ_k Δ_k [|Δ_k| > epsilon] / number of experts with |Δ| > epsilon",
    ),
    "ramplus_tl": _text(
        "RAM with the unshared entries scaled up.",
        "W as for ram, unshared entries times 1 + r · min(ρ, alpha), ρ = shared / unshared entries of the expert here",
    ),
    "nearswap": _text(
        "Moves the base towards one expert where the two are already close.",
        "W = (1 − q) θ0 + q θ1, q = clip(t / |θ1 − θ0|, 0, 1) entrywise",
    ),
    "arcee_fusion": _text(
        "Takes one expert's entries where a KL-weighted change is an outlier, the base's elsewhere.",
        "W = θ0 + (θ1 − θ0) [h ≥ median + 1.5 · interquartile range], h = |θ1 − θ0| · KL(softmax θ1 ‖ softmax θ0)",
    ),
    "passthrough": _text("One expert as it is, times scale where one is given.", "W = scale · θ1"),
}

RANDOM = {"dare_linear", "dare_ties", "della", "della_linear", "arcee_fusion"}
"""Draw from torch's global generator."""

UNRANKED = {"della": "dare_ties", "della_linear": "dare_linear"}
"""What stands for a method that ranks the entries of a row, where a row has one entry only."""

PROPAGATES = {"linear", "task_arithmetic", "dare_linear", "dare_ties"}
"""A value that is not finite in any input always shows in the result."""

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
    "alpha": (0.0, None),
    "rank_tolerance": (0.0, 1.0),
    "common_fraction": (0.0, 1.0),
    "iterations": (0, None),
    "lr": (0.0, None),
    "beta1": (0.0, 1.0),
    "beta2": (0.0, 1.0),
    "floor": (0.0, None),
    "off_diagonal": (0.0, 1.0),
    "clamp": (0.0, None),
}
"""Valid values by parameter name."""
