"""Shared prefixes: the tree's mask against its definition, its log-likelihoods against one request at a time."""

import random

import pytest
import torch

from pipelines.evaluate.engine import allowed, batches, forest, log_likelihoods, tree


def brute_force(model, pairs, max_length):
    """Log-likelihood and greedy flag of each request by itself, from the definition."""
    out = []
    for context, target in pairs:
        tokens = (context + target)[-(max_length + 1) :]
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]])).logits[0, -len(target) :]
        scores = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
        out.append((float(scores.sum()), logits.argmax(-1).tolist() == target))
    return out


def made_up(seed: int, documents: int = 12) -> tuple[list, list]:
    """Requests of documents: a context, options of mixed lengths, some alike, some a prefix of another."""
    rng = random.Random(seed)
    pairs, groups = [], []
    for _ in range(documents):
        context = [rng.randrange(4, 100) for _ in range(rng.randrange(1, 30))]
        options = [[rng.randrange(4, 100) for _ in range(rng.randrange(1, 8))] for _ in range(3)]
        options += [options[0][:1], options[1] + [7, 8], list(options[2])]
        groups.append(list(range(len(pairs), len(pairs) + len(options))))
        pairs += [(list(context), option) for option in options]
    return pairs, groups


def test_tree_of_known_requests():
    # contexts 1 2 3; options 4 | 5 6 | 5 7: the inputs are 1 2 3, and 1 2 3 5 twice
    t = tree([0, 1, 2], [([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([1, 2, 3], [5, 7])], 100)
    assert t.tokens == [1, 2, 3, 5]
    assert t.chain
    assert {(p.request, p.node, p.token) for p in t.picks} == {(0, 2, 4), (1, 2, 5), (1, 3, 6), (2, 2, 5), (2, 3, 7)}


def test_branches_get_their_own_positions_and_ends():
    t = tree([0, 1], [([1, 2], [3, 4, 5]), ([1, 2], [6, 7])], 100)
    assert t.tokens == [1, 2, 3, 4, 6]
    assert t.depths == [0, 1, 2, 3, 2]
    assert t.ends == [5, 5, 4, 4, 5]


def test_mask_lets_a_token_see_its_ancestors_only():
    pairs, groups = made_up(3, documents=1)
    t = tree(groups[0], pairs, 100)
    parents = {}
    for q, depth in enumerate(t.depths):  # depth-first order: the parent is the last earlier token one level up
        parents[q] = max((k for k in range(q) if t.depths[k] == depth - 1), default=None)
    mask = allowed(torch.tensor([t.ends]))[0, 0]
    for q in range(len(t.tokens)):
        ancestors, at = {q}, q
        while parents[at] is not None:
            at = parents[at]
            ancestors.add(at)
        assert set(mask[q].nonzero().flatten().tolist()) == ancestors


@pytest.mark.parametrize(("size", "fill"), [(1, False), (5, False), (5, True)])
@pytest.mark.parametrize("width", [1, 64, 1 << 30])
def test_log_likelihoods_are_those_of_each_request_alone(model, size, fill, width):
    model.eval()
    pairs, _ = made_up(1)
    work = batches(forest(pairs, 20, width), size, fill)  # length 20: some contexts are cut
    got = log_likelihoods(model, work, len(pairs), lambda n: None)
    want = brute_force(model, pairs, 20)
    assert [g[0] for g in got] == pytest.approx([w[0] for w in want], abs=1e-4)
    assert [g[1] for g in got] == [w[1] for w in want]


def test_eager_attention_takes_trees_too(folder):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    pairs, _ = made_up(2)
    got = log_likelihoods(model, batches(forest(pairs, 64, 1 << 30), 4), len(pairs), lambda n: None)
    assert [g[0] for g in got] == pytest.approx([w[0] for w in brute_force(model, pairs, 64)], abs=1e-4)


def test_short_rows_fill_a_batch_up_to_the_tokens_and_outputs_of_the_first():
    pairs = [([4 + i] * 60, [70]) for i in range(4)] + [([40 + i] * 6, [70]) for i in range(60)]
    made = batches(forest(pairs, 100, 64), 4, fill=True)
    assert [tuple(b.tokens.shape) for b in made] == [(4, 60)] + [(4, 6)] * 15  # one output a row: 4 outputs fill it
    pairs = [([4 + i] * 60, [70] * 10) for i in range(4)] + pairs[4:]
    made = batches(forest(pairs, 100, 64), 4, fill=True)
    assert [tuple(b.tokens.shape) for b in made] == [(4, 69), (40, 6), (20, 6)]
    assert sum(len(b.requests) for b in made) == len(pairs)
    assert [tuple(b.tokens.shape) for b in batches(forest(pairs, 100, 64), 4, True, tokens=150)] == [
        (2, 69), (2, 69), (25, 6), (25, 6), (10, 6)
    ]  # fmt: skip
    assert [len(b.tokens) for b in batches(forest(pairs, 100, 64), 4, tokens=20)] == [1] * 4 + [3] * 20


def test_sharing_computes_fewer_tokens():
    pairs = [(list(range(4, 64)), [70 + i, 80 + i, 90 + i]) for i in range(4)]
    assert sum(len(t.tokens) for t in forest(pairs, 100, 64)) == 60 + 4 * 2  # apart: 4 * 62
    long = [(list(range(4, 64)) * 30, [70]), ([99, *list(range(4, 63))] * 30, [70])]
    assert len(forest(long, 4000, 64)) == 2  # nothing is shared: two sequences, not one of twice the length


def test_documents_after_the_same_examples_share_them_too(model):
    model.eval()
    examples = list(range(4, 84))
    pairs = [([*examples, 90 + i, 80 - i], [5 + j, 6]) for i in range(10) for j in range(2)]
    shared = forest(pairs, 200, 64)
    assert sum(len(t.tokens) for t in shared) < 83 + 20 * 4  # apart: 20 * 83
    got = log_likelihoods(model, batches(shared, 4), len(pairs), lambda n: None)
    assert [g[0] for g in got] == pytest.approx([w[0] for w in brute_force(model, pairs, 200)], abs=1e-4)
    assert max(len(t.tokens) for t in forest(pairs * 9, 200, 1 << 30)) <= 2 * 83
