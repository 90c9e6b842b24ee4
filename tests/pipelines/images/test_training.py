"""Training of image towers: against plain torch, for every method, with the text head frozen."""

import random

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from conf.errors import UserError
from conf.schema import Images, Optimizer, Task
from mergeopt_core.finetuning import Tangent
from pipelines.checkpoints.card import linearised_at
from pipelines.checkpoints.load import load_model
from pipelines.finetune import task_fingerprint
from pipelines.finetune.tangent import delinearise, linearise
from pipelines.tiny.pictures import SKILLS, pictures


def moved(base, expert):
    start, end = (load_file(folder / "model.safetensors") for folder in (base, expert))
    return {name: end[name] - start[name] for name in start if not torch.equal(start[name], end[name])}


def by_hand(base, places, steps, lr, embed):
    """Full-batch gradient descent on some pictures of shapes; ``embed`` gives a model's image embeddings."""
    model, words = CLIPModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    pixels, labels = pictures("shapes", "train")
    processor = CLIPImageProcessorPil.from_pretrained(base)
    pixels = processor(images=list(pixels[places]), return_tensors="pt")["pixel_values"]
    texts = words(
        [SKILLS["shapes"].template.format(w) for w in SKILLS["shapes"].classes], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        head = model(**texts, pixel_values=pixels[:1]).text_embeds * model.logit_scale.exp()
    tower = load_model(base, torch.float32)
    features = embed(tower)
    for _ in range(steps):
        f = features(pixels)
        loss = cross_entropy(f / f.norm(dim=-1, keepdim=True) @ head.T, torch.tensor(labels[places]))
        tower.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in tower.parameters():
                p -= lr * p.grad
    return tower.state_dict(), float(loss.detach())


@pytest.mark.parametrize("method", ["plain", "tangent"])
def test_it_is_gradient_descent_on_the_heads_cross_entropy(base, train, method):
    """All pictures in each step (two micro-batches), so that their order is of no account."""
    task = Task(name="shapes", images=Images(skill="shapes"), limit=24)
    options = {"batch_size": 12, "accumulation": 2, "clip": 0.0}
    out = train("shapes", method, task=task, optimizer=Optimizer("sgd", lr=0.05, weight_decay=0.0), steps=3, **options)

    def embed(tower):
        if method == "plain":
            return lambda pixels: tower(pixel_values=pixels).image_embeds
        tangent = Tangent(tower)
        return lambda pixels: tangent(pixel_values=pixels, pick=lambda o: o.image_embeds)

    places = list(range(1024))
    random.Random(0).shuffle(places)  # as a limit chooses
    wanted, loss = by_hand(base, places[:24], 3, 0.05, embed)
    found = load_file(out / "model.safetensors")
    for name, tensor in wanted.items():
        if name in found:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6)
    assert train.summary["loss"] == pytest.approx(loss, abs=1e-4)
    assert train.summary["examples"] == 24
    assert bool(linearised_at(out)) == (method == "tangent")


@pytest.mark.parametrize("method", ["mergopt", "sam", "asam"])
def test_every_method_moves_the_tower_alone(base, train, method):
    plain = moved(base, train("shapes", "plain"))
    own = moved(base, train("shapes", method))
    assert own.keys() == plain.keys()
    assert all(name.startswith(("vision_model.", "visual_projection.")) for name in own)
    assert any(not torch.equal(own[name], plain[name]) for name in own)
    assert all(bool(change.isfinite().all()) for change in own.values())


def test_a_linearised_tower_is_its_first_order_expansion(base):
    """Against a five-point difference of the ordinary tower along the task vector, in float64."""
    tower = load_model(base, torch.float64).eval()
    theta0 = {n: p.detach().clone() for n, p in tower.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    vector = {n: 0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in theta0.items()}
    pixels = torch.randn(3, 3, 24, 24, generator=generator, dtype=torch.float64)

    def at(h):
        with torch.no_grad():
            for n, p in tower.named_parameters():
                p.copy_(theta0[n] + h * vector[n])
            return tower(pixel_values=pixels)[0]

    h = 0.05
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    start, ordinary = at(0.0), at(1.0)
    linearise(tower, theta0)
    found = tower(pixel_values=pixels)[0].detach()
    torch.testing.assert_close(found, start + slope, rtol=0, atol=1e-5)
    assert (found - ordinary).abs().max() > 1e-3
    delinearise(tower)
    torch.testing.assert_close(tower(pixel_values=pixels)[0].detach(), ordinary, rtol=0, atol=0)


def test_pictures_want_a_classifier_and_text_a_language_model(train):
    with pytest.raises(UserError, match="the base reads pictures, task add is of text"):
        train(task=Task(name="add", skill="add"))
    with pytest.raises(UserError, match=r"task.path=x is not used beside task.images"):
        task_fingerprint(Task(name="a", path="x", images=Images(skill="shapes")))
