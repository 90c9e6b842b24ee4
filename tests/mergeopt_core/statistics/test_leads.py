import numpy as np
import pytest

from mergeopt_core.statistics import difference_p, holm, leads


def test_the_lead_over_each_is_the_paired_difference_with_all_pairs_corrected():
    rng = np.random.default_rng(0)
    scores = np.array([0.50, 0.56, 0.52])
    draws = scores[:, None] + rng.normal(0, 0.02, (3, 4000))
    best, found = leads(scores, draws, documents=500)
    assert best == 1
    pairs = [(1, 0), (2, 0), (2, 1)]
    p = holm([difference_p(scores[i] - scores[j], draws[i] - draws[j], 500) for i, j in pairs])
    assert (found[0].p, found[2].p) == pytest.approx((p[0], p[2]))
    for k in (0, 2):
        assert found[k].estimate == pytest.approx(scores[1] - scores[k])
        assert (found[k].low, found[k].high) == pytest.approx(np.quantile(draws[1] - draws[k], [0.025, 0.975]))


def test_of_equals_none_leads_more_often_than_the_level_says():
    rng, claims = np.random.default_rng(1), 0
    for _ in range(400):
        seen = rng.normal(0, 1, 6)  # six equal scores with their noise
        best, found = leads(seen, seen[:, None] + rng.normal(0, 1, (6, 800)), documents=500)
        claims += any(lead.p < 0.05 for k, lead in enumerate(found) if k != best)
    assert claims / 400 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert claims > 0


def test_unknown_replicates_give_no_p():
    draws = np.full((2, 100), np.nan)
    _, found = leads([0.1, 0.2], draws, documents=0)
    assert found[0].p is None
