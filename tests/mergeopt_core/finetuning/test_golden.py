"""Five steps of SAM, ASAM, MergOPT and the tangent model against the authors' code, in float64."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from mergeopt_core import ASAM, SAM, MergOPT
from mergeopt_core.finetuning import Offset, Tangent, mergopt
from tests.mergeopt_core.golden_cases import cases

ATOL = 1e-9
OPTIMIZERS = [
    f"{prefix}_{problem}_{rest}"
    for problem in ("quad", "mlp")
    for prefix, rest in (
        ("opt", "sam_rho0.05"), ("opt", "sam_rho0.5"), ("opt", "sam_adaptive_rho2.0"), ("opt", "asam_rho0.5"),
        ("optm", "sam_rho0.1"), ("optm", "asam_rho1.0"), ("opt", "mergopt_sgd"), ("opt", "mergopt_adamw"),
    )
]  # fmt: skip


class Quadratic(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.weight = nn.Parameter(data["w0/weight"].clone())
        self.A, self.b = data["const/A"], data["const/b"]

    def loss(self):
        return 0.5 * self.weight @ self.A @ self.weight - self.b @ self.weight


class Perceptron(nn.Module):
    def __init__(self, data, prefix="w0/"):
        super().__init__()
        w = {k[len(prefix) :]: v for k, v in data.items() if k.startswith(prefix)}
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.double().load_state_dict(w)
        self.X, self.Y = data.get("const/X"), data.get("const/Y")

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))

    def loss(self):
        return mse_loss(self(self.X), self.Y)


def case(name):
    found = next(case for case in cases() if case.row["case"] == name)
    return found.row, found.load(found.row["file"])


def close(model, data, prefix):
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), data[prefix + name], rtol=0, atol=ATOL)


def base_optimizer(model, params):
    if params["base"].lower() == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=params["lr"], weight_decay=params["weight_decay"])
    return torch.optim.SGD(model.parameters(), lr=params["lr"], momentum=params.get("momentum", 0.0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trajectory(name, monkeypatch):
    row, data = case(name)
    model = Quadratic(data) if "quad" in name else Perceptron(data)
    opt = wrap(row, data, model, monkeypatch)

    def closure():
        loss = model.loss()
        loss.backward()
        seen.append((loss.item(), [p.detach().clone() for p in model.parameters()]))
        return loss

    for s in range(5):
        seen = []
        opt.step(closure)
        for (pname, _), moved in zip(model.named_parameters(), seen[-1][1], strict=True):
            torch.testing.assert_close(moved, data[f"perturbed/{s}/{pname}"], rtol=0, atol=ATOL)
        if row["method"] != "mergopt":
            assert seen[0][0] == pytest.approx(data[f"loss/{s}"].item(), abs=ATOL)
            assert seen[1][0] == pytest.approx(data[f"loss_perturbed/{s}"].item(), abs=ATOL)
        close(model, data, f"w/{s}/")


def wrap(row, data, model, monkeypatch):
    base, params = base_optimizer(model, row["params"]), row["params"]
    named = {"named_parameters": model.named_parameters()}
    if row["method"] == "sam":
        return SAM(base, params["rho"], **named)
    if row["method"] == "asam":
        form = "squared" if "davda54" in row["variant"] else "normalised"
        return ASAM(base, params["rho"], eta=params.get("eta", 0.0), form=form, **named)
    opt = MergOPT(base, **named)
    names = [m.name for m in opt.perturbation.moved]
    recorded = {}

    def draw(step):
        offset = Offset(step, data[f"alpha/{step}"].item(), int(data[f"K/{step}"].item()), step)
        recorded[offset.key()] = {opt.places[i]: data[f"z/{step}/{name}"] for i, name in enumerate(names)}
        return offset

    monkeypatch.setattr(opt, "draw", draw)

    def add_recorded(weight, out, factor, stream, place, **_):
        return torch.add(weight, recorded[stream.key][place], alpha=factor, out=out)

    monkeypatch.setattr(mergopt, "add_noise", add_recorded)
    return opt


def test_tangent_output_loss_and_gradient():
    _, data = case("opt_tangent_mlp")
    theta0 = {k[7:]: v for k, v in data.items() if k.startswith("theta0/")}
    model = Perceptron(data, "theta/")
    tangent = Tangent(model, theta0)
    out = tangent(data["X"])
    loss = mse_loss(out, data["Y"])
    loss.backward()
    torch.testing.assert_close(out.detach(), data["out"], rtol=0, atol=ATOL)
    torch.testing.assert_close(loss.detach(), data["loss"][0], rtol=0, atol=ATOL)
    torch.testing.assert_close(model(data["X"]).detach(), data["f_theta_nonlinear"], rtol=0, atol=ATOL)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, data[f"grad/{name}"], rtol=0, atol=ATOL)


def test_tangent_of_merged_task_vectors():
    _, data = case("opt_tangent_merge")
    theta0 = {k[7:]: v for k, v in data.items() if k.startswith("theta0/")}
    for prefix, expected in (("theta1/", "out_expert1"), ("theta2/", "out_expert2"), ("merged/", "out_merged")):
        out = Tangent(Perceptron(data, prefix), theta0)(data["X"])
        torch.testing.assert_close(out.detach(), data[expected], rtol=0, atol=ATOL)
