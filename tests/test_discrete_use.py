"""Tokens behind the common doors: sample, fit, save and load, compare, convergence; guidance, infilling and embeddings."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from test_discrete import PROCESSES, chain
from torch import Tensor, nn

import scoresde
from scoresde import VP, ScoreModel, analysis, discrete
from scoresde.comparison.tokens import TOKEN_MEASURES
from scoresde.discrete import (
    TOKEN_OBJECTIVES,
    TOKEN_SOLVERS,
    Absorbing,
    DenoisingModel,
    DiscretizedGaussian,
    EmbeddedChain,
    EmbeddedModel,
    GuidedRates,
    GuidedTokens,
    Infilled,
    MarkovChain,
    RateMatrix,
    RatioModel,
    TokenCrossEntropy,
    TokenEmbedding,
    Uniform,
    all_sequences,
    noised_law,
    solver_law,
    total_variation,
)
from scoresde.models import TokenTransformer
from scoresde.objectives import LabelDropout
from scoresde.training import Files, Method, Trainer, report

F64 = torch.float64


def small(process: Any, length: int = 3, **options: Any) -> DenoisingModel:
    torch.manual_seed(0)
    outputs = options.pop("outputs", process.vocabulary)
    kind = options.pop("kind", DenoisingModel)
    net = TokenTransformer(process.states, length, outputs=outputs, width=16, depth=1, heads=2, **options)
    return kind(net, process)


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "process"),
    [
        ("mdlm", Absorbing(3)),
        pytest.param(None, Absorbing(3), marks=pytest.mark.slow),
        ("d3pm", Uniform(3)),
        pytest.param("d3pm-hybrid", DiscretizedGaussian(3), marks=pytest.mark.slow),
        pytest.param(
            "sedd",
            RateMatrix(3, rates=((-1.0, 0.7, 0.3), (0.2, -0.5, 0.3), (1.1, 0.4, -1.5))),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mdlm", "default", "d3pm", "d3pm-hybrid", "sedd"],
)
def test_training_lowers_the_bound_towards_that_of_the_exact_model(objective: Any, process: Any) -> None:
    problem = chain(length=3)
    model = small(process, timed=True)
    truth = problem.model(process)
    found = []
    for steps in (1, 40):
        trainer = Trainer(model, problem, objective, method=Method(batch_size=32, lr=5e-3, ema=0.9), progress=False)
        trainer.run(steps)
        made = report(trainer.sampled, problem, truth, objective=objective, bins=4, samples=1024, batch_size=256)
        found.append(float(made.excess.mean()))
    assert -0.03 < found[1] < 0.8 * found[0], found


def test_a_ratio_model_learns_by_score_entropy() -> None:
    problem = chain(length=3)
    model = small(Absorbing(3), kind=RatioModel, outputs=4)
    truth = problem.model(Absorbing(3))
    trainer = Trainer(model, problem, "sedd", method=Method(batch_size=32, lr=5e-3, ema=0.9), progress=False)
    trainer.run(80)
    made = report(trainer.sampled, problem, truth, objective="sedd", bins=2, samples=512, batch_size=256)
    assert float(made.excess.mean()) < 0.1
    x = scoresde.sample(trainer.sampled, (16, 3), "tau-leaping", 6, progress=False).x
    assert int(x.max()) < 3


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    data = chain(length=3).sample(50, torch.Generator().manual_seed(0))
    models = [small(Absorbing(3), dropout=0.1) for _ in range(2)]
    whole = Trainer(models[0], data, "mdlm", files=Files(tmp_path / "a.safetensors", log=False), progress=False)
    whole.run(6)
    for steps in (3, 6):
        halves = Trainer(models[1], data, "mdlm", files=Files(tmp_path / "b.safetensors", log=False), progress=False)
        halves.run(steps)
    for a, b in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(scoresde.training.CheckpointError, match=r"process\.noise"):
        Trainer(small(Absorbing(3, "cosine")), data, "mdlm", files=Files(tmp_path / "b.safetensors", log=False))


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("kind", [DenoisingModel, RatioModel])
def test_models_are_saved_and_loaded(name: str, kind: Any, tmp_path: Path) -> None:
    process = PROCESSES[name]
    model = small(process, timed=True, kind=kind, outputs=process.states if kind is RatioModel else 3)
    nn.init.normal_(model.net.logits.weight)
    scoresde.save(model, tmp_path / "model.safetensors", event=(3,))
    back = scoresde.load(tmp_path / "model.safetensors")
    assert type(back) is kind and back.process == process
    x = all_sequences(3, 3)
    assert torch.equal(back.x0(x, 0.3), model.x0(x, 0.3))
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.x0(x, 0.3), model.x0(x, 0.3)) and again.process == process


def test_data_may_be_small_integers_a_dataset_or_a_distribution() -> None:
    data = chain(length=3).sample(40, torch.Generator().manual_seed(0))
    for given in (data.to(torch.uint8), data.numpy(), torch.utils.data.TensorDataset(data), chain(length=3)):
        trainer = Trainer(small(Absorbing(3)), given, "mdlm", method=Method(batch_size=8), progress=False)
        trainer.run(2)
        assert math.isfinite(trainer.losses[-1])


def test_label_dropout_and_guidance_train_and_sample_together() -> None:
    data = torch.cat([torch.zeros(64, 2, dtype=torch.long), torch.ones(64, 2, dtype=torch.long)])
    label = data[:, 0]
    model = small(Absorbing(2), length=2, num_classes=2)
    objective = LabelDropout(TOKEN_OBJECTIVES["mdlm"], {"label": 2}, 0.2)
    method = Method(batch_size=32, lr=1e-2, ema=0.9)
    trainer = Trainer(model, data, objective, method=method, conditions={"label": label}, progress=False)
    trainer.run(80)
    guided = GuidedTokens(trainer.sampled, 2.0, {"label": 2})
    drawn = scoresde.sample(guided, (20, 2), "ancestral", 4, conditions={"label": [1] * 20}, progress=False)
    assert float(drawn.x.double().mean()) > 0.9 and drawn.evaluations == 8


# Guidance ------------------------------------------------------------------------------------------------------------


class Conditional(DenoisingModel):
    """The exact models of several chains, chosen by a label; the last label is the mixture of the first two."""

    def __init__(self, problems: list[MarkovChain], process: Any) -> None:
        super().__init__(None, process)
        self.exact = [p.model(process) for p in problems]

    def x0(self, x: Tensor, t: Any, label: Tensor | int = 0, **conditions: Any) -> Tensor:
        chosen = torch.as_tensor(label).expand(len(x))
        found = torch.stack([m.x0(x, t) for m in self.exact])
        return found[chosen, torch.arange(len(x))]


def tokens(p: list[float]) -> MarkovChain:
    return MarkovChain(p, [p] * len(p), length=1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -0.5])
def test_guided_tokens_of_length_one_have_the_tilted_law(scale: float) -> None:
    p, q = torch.tensor([0.2, 0.5, 0.3], dtype=F64), torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    process = Absorbing(3)
    guided = GuidedTokens(Conditional([tokens(p.tolist()), tokens(q.tolist())], process), scale, {"label": 1})
    tilted = p**scale * q ** (1 - scale)
    label = torch.zeros(4, dtype=torch.long)  # one for each state
    for solver in ("ancestral", "tau-leaping", "first-hitting"):
        found = solver_law(guided, 1, solver, [1.0, 0.6, 0.0], conditions={"label": label})
        torch.testing.assert_close(found[:3], tilted / tilted.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [GuidedTokens, GuidedRates])
@pytest.mark.parametrize("process", [Absorbing(3), Uniform(3)], ids=["absorbing", "uniform"])
def test_scale_one_is_the_conditional_model_and_zero_the_other(kind: Any, process: Any) -> None:
    problems = [chain(length=2, seed=0), chain(length=2, seed=1)]
    model, x = Conditional(problems, process), all_sequences(process.states, 2)
    label = torch.zeros(len(x), dtype=torch.long)
    for scale, exact in ((1.0, model.exact[0]), (0.0, model.exact[1])):
        found = kind(model, scale, {"label": 1}).predict(x, 0.4, label=label)
        torch.testing.assert_close(found.x0, exact.x0(x, 0.4), rtol=0, atol=1e-11)
        wanted = exact.predict(x, 0.4)
        torch.testing.assert_close(found.rates, wanted.rates, rtol=1e-9, atol=1e-11)


def test_guided_rates_are_products_of_rates() -> None:
    process = Uniform(3)
    problems = [chain(length=2, seed=0), chain(length=2, seed=1)]
    model, x = Conditional(problems, process), all_sequences(3, 2)
    label = torch.zeros(len(x), dtype=torch.long)
    found = GuidedRates(model, 2.0, {"label": 1}).predict(x, 0.4, label=label).rates
    a, b = (m.predict(x, 0.4).rates for m in model.exact)
    some = b > 0
    torch.testing.assert_close(found[some], (a**2 / b)[some], rtol=1e-10, atol=0)


def test_each_sample_may_have_a_scale_of_its_own() -> None:
    process = Absorbing(3)
    model = Conditional([chain(length=2, seed=0), chain(length=2, seed=1)], process)
    x, label = torch.full((2, 2), 3), torch.zeros(2, dtype=torch.long)
    both = GuidedTokens(model, torch.tensor([1.0, 3.0]), {"label": 1}).x0(x, 0.5, label=label)
    for i, scale in enumerate((1.0, 3.0)):
        alone = GuidedTokens(model, scale, {"label": 1}).x0(x[:1], 0.5, label=label[:1])
        torch.testing.assert_close(both[i], alone[0], rtol=1e-12, atol=0)


# Infilling -----------------------------------------------------------------------------------------------------------


def conditional(problem: MarkovChain, known: Tensor, given: Tensor) -> Tensor:
    x, law = all_sequences(problem.vocabulary, problem.length), problem.law.flatten()
    law = torch.where((x[:, given] == known[given]).all(1), law, 0.0)
    return law / law.sum()


def test_infilling_of_an_exact_masked_model_is_the_exact_conditional() -> None:
    problem, process = chain(), Absorbing(3)
    known = torch.tensor([0, 2, 0, 1])

    def error(given: list[bool], solver: str, n: int) -> float:
        model = Infilled(problem.model(process), known, torch.tensor(given))
        wanted = noised_law(process, conditional(problem, known, torch.tensor(given)).reshape(3, 3, 3, 3), 0.0)
        return total_variation(solver_law(model, 4, solver, torch.linspace(1, 0, n + 1, dtype=F64).tolist()), wanted)

    ends, others = [True, False, False, True], [False, True, False, True]
    assert error(ends, "first-hitting", 1) < 1e-14
    assert error(others, "ancestral", 2) < 1e-14  # given its neighbours a token is independent of all others
    assert 1.8 < error(ends, "ancestral", 4) / error(ends, "ancestral", 8) < 2.2 and error(ends, "ancestral", 4) > 1e-4


@pytest.mark.parametrize("solver", TOKEN_SOLVERS)
def test_given_tokens_come_back(solver: str) -> None:
    model = Infilled(chain().model(Absorbing(3)), torch.tensor([0, 2, 0, 1]), torch.tensor([False, True, False, True]))
    x = scoresde.sample(model, (50, 4), solver, 3, progress=False).x
    assert bool((x[:, 1] == 2).all()) and bool((x[:, 3] == 1).all()) and len(set(x[:, 0].tolist())) > 1
    each = torch.stack([torch.tensor([0, 2, 0, 1])] * 2)
    known = each.clone()
    known[1, 1] = 0
    given = torch.tensor([[False, True, False, True]] * 2)
    x = scoresde.sample(Infilled(chain().model(Uniform(3)), known, given), (2, 4), "ancestral", 3, progress=False).x
    assert x[:, 1].tolist() == [2, 0]


# Embeddings ----------------------------------------------------------------------------------------------------------


def test_the_exact_embedded_model_predicts_the_mean_and_samples_the_data() -> None:
    problem = chain(length=2)
    embedding = TokenEmbedding(3, 4).double()
    model = EmbeddedChain(problem, embedding, VP())
    data = all_sequences(3, 2)
    vectors = embedding(data).detach().flatten(1)
    x = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (0.05, 0.5, 1.0):
        alpha, sigma = VP().alpha(t), VP().sigma(t)
        logs = problem.law.flatten().log() - ((x.flatten(1)[:, None] - alpha * vectors) ** 2).sum(2) / (2 * sigma**2)
        wanted = (logs.softmax(1) @ vectors).reshape(x.shape)
        torch.testing.assert_close(model.x0(x, t), wanted, rtol=0, atol=1e-9)
    n = 4000
    drawn = model.tokens(scoresde.sample(model, (n, 2, 4), "dpmpp-2m", 40, progress=False, dtype=F64).x)
    found = torch.bincount(drawn @ torch.tensor([3, 1]), minlength=9).double() / n
    assert total_variation(found, problem.law.flatten()) < 0.035  # the noise of 4000 samples makes 0.016 of it


def test_an_embedded_model_trains_with_learned_vectors_and_reports() -> None:
    problem = chain(length=3)
    torch.manual_seed(0)
    embedding = TokenEmbedding(3, 4, learned=True)
    net = TokenTransformer(3, 3, features=4, timed=True, width=16, depth=1, heads=2)
    model, start = EmbeddedModel(net, embedding, VP()), embedding.table.detach().clone()
    method = Method(batch_size=32, lr=5e-3, ema=0.9)
    result = scoresde.fit(model, problem, TokenCrossEntropy(), steps=60, method=method, progress=False)
    assert float(result.report.loss.mean()) < 0.9 * math.log(3)
    assert not torch.equal(embedding.table, start)
    torch.testing.assert_close(embedding.vectors.norm(dim=1), torch.ones(3))
    x = scoresde.sample(result.model, (8, 3, 4), "dpmpp-2m", 8, progress=False).x
    assert model.tokens(x).shape == (8, 3)


# Comparisons and orders ----------------------------------------------------------------------------------------------


def test_solvers_on_tokens_are_compared(tmp_path: Path) -> None:
    problem = chain(length=3)
    found = scoresde.compare(problem, list(TOKEN_SOLVERS), [1, 3, 8], sde=[Absorbing(3), Uniform(3)], n=32, progress=False)
    assert set(found.named("metric")) == set(TOKEN_MEASURES) and found.named("sde") == ["Absorbing", "Uniform"]
    assert all(r.evaluations <= r.budget for r in found.records)
    exact = {(r.solver, r.budget): r.value for r in found.select(metric="total-variation", sde="Absorbing")}
    assert exact["first-hitting", 3] < 1e-12 and math.isnan(exact["first-hitting", 1])
    assert exact["ancestral", 8] < exact["ancestral", 3] < exact["ancestral", 1]
    short = found.select(solver="first-hitting", budget=1)
    assert {r.error for r in short} == {"one step takes 3 evaluations"}
    few = scoresde.compare(problem, ["ancestral", "euler"], [1], metrics=["bigrams"], n=32, progress=False)
    assert "ancestral" in few.table() and few.report(tmp_path)
    assert repr(scoresde.comparison.Comparison.load(found.save(tmp_path)).records) == repr(found.records)


def test_the_two_ways_are_compared_with_a_metric_of_ones_own() -> None:
    problem = chain(length=2)
    models = {"masked": problem.model(Absorbing(3)), "embedded": EmbeddedChain(problem, TokenEmbedding(3, 4).double(), VP())}

    def zeros(samples: Tensor) -> float:
        return float((samples == 0).double().mean())

    found = scoresde.compare(models, ["ancestral", "ddim"], [2, 4], metrics=[zeros, "bigrams"], n=32, progress=False)
    assert {(r.problem, r.solver) for r in found.records} == {("masked", "ancestral"), ("embedded", "ddim")}
    assert all(0 <= r.value <= 1 for r in found.records)


@pytest.mark.parametrize("solver", [n for n, make in TOKEN_SOLVERS.items() if make().description.weak_order is not None])
def test_convergence_confirms_declared_orders(solver: str) -> None:
    assert analysis.convergence(TOKEN_SOLVERS[solver](), steps=(8, 16, 32), few=(2,)).verdict == "confirmed"
    with pytest.raises(ValueError, match="declares no order"):
        analysis.convergence("first-hitting", chain(length=2))


# What is refused -----------------------------------------------------------------------------------------------------

MODEL = chain().model(Absorbing(3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Absorbing(1), "got vocabulary=1; expected at least 2 tokens"),
        (lambda: Uniform(2.5), "got vocabulary=2.5; expected a whole number"),
        (lambda: Absorbing(3, "linar"), "did you mean 'linear'"),
        (lambda: RateMatrix(2, rates=((-1.0, 0.5), (1.0, -1.0))), "row 0 sums to -0.5; expected rows that sum to zero"),
        (lambda: RateMatrix(2, rates=((1.0, -1.0), (1.0, -1.0))), "got the rate -1 from token 0 to token 1"),
        (lambda: RateMatrix(3, rates=((-1.0, 1.0), (1.0, -1.0))), r"got rates of shape \(2, 2\) for 3 tokens"),
        (lambda: RateMatrix(2, rates=((0.0, 0.0), (0.0, 0.0))), "expected rows that sum to zero, not all"),
        (
            lambda: RateMatrix(4, rates=((-1.0, 1.0, 0, 0), (1.0, -1.0, 0, 0), (0, 0, -1.0, 1.0), (0, 0, 1.0, -1.0))),
            "can settle in several places",
        ),
        (lambda: DiscretizedGaussian(4, width=0.0), "got width=0.0; expected a positive number"),
        (lambda: DenoisingModel(lambda x, t: x, VP()), "got VP for the process of a denoising model"),
        (lambda: DenoisingModel(MODEL, Absorbing(3)), "got a denoising model for the network of another one"),
        (
            lambda: scoresde.sample(MODEL, torch.tensor([[0, 1, 4, 2]])),
            "tokens to start from from 0 to 4; expected whole",
        ),
        (lambda: scoresde.sample(MODEL, torch.zeros(2, 4)), "of dtype torch.float32; expected integers"),
        (lambda: scoresde.sample(MODEL, torch.zeros(0, 4, dtype=torch.long)), "at least one sample"),
        (lambda: scoresde.sample(MODEL, (0, 4)), r"got shape \(0, 4\)"),
        (lambda: scoresde.sample(MODEL, (4,)), r"got shape \(4,\)"),
        (lambda: scoresde.sample(MODEL, (2, 4), "heun"), "got token solver 'heun'; expected one of ancestral"),
        (lambda: scoresde.sample(MODEL, (2, 4), steps=0), "got steps=0"),
        (lambda: scoresde.sample(MODEL, (2, 4), end="flow"), "got end='flow' for a model on tokens"),
        (lambda: scoresde.sample(MODEL, (2, 4), path="karras"), "got path 'karras' for a model on tokens"),
        (lambda: scoresde.sample(MODEL, (2, 4), path=[0.2, 0.5]), "expected falling times between 1 and 0"),
        (lambda: scoresde.sample(MODEL, (2, 4), path=[0.5, 0.0]), "a path that starts at t=0.5, while the prior is at t=1"),
        (lambda: scoresde.sample(MODEL, (2, 4), driver="fast"), "got driver for a model whose states are not real"),
        (lambda: scoresde.sample(MODEL, (2, 4), keep=[0.33]), r"times to keep \[0.33\]"),
        (lambda: scoresde.sample(chain().model(Uniform(3)), (2, 4), "first-hitting"), "'first-hitting' on Uniform"),
        (
            lambda: scoresde.fit(small(Absorbing(3)), torch.zeros(4, 3), steps=1),
            "got data of dtype torch.float32; expected",
        ),
        (
            lambda: scoresde.fit(small(Absorbing(3)), torch.full((4, 3), 3), steps=1),
            "got data from 3 to 3; expected whole",
        ),
        (lambda: scoresde.fit(small(Absorbing(3)), torch.zeros(0, 3).long(), steps=1), "got data of no samples"),
        (
            lambda: scoresde.fit(small(Uniform(3)), torch.zeros(4, 3).long(), "mdlm", steps=1),
            "bound of masked diffusion",
        ),
        (lambda: scoresde.fit(small(Absorbing(3)), torch.zeros(4, 3).long(), "ddpm", steps=1), "got token objective 'ddpm'"),
        (lambda: MarkovChain([0.5, 0.4], [[0.5, 0.5]] * 2, 2), "expected probabilities that sum to one"),
        (lambda: chain().model(Absorbing(4)), "a process of 4 tokens for a chain of 3"),
        (lambda: all_sequences(30, 8), "expected at most 4096 to enumerate"),
        (lambda: Infilled(MODEL, torch.tensor([0, 1, 2, 5]), torch.tensor([True] * 4)), "given tokens from 0 to 5"),
        (lambda: Infilled(MODEL, torch.tensor([0, 1]), torch.tensor([False] * 2)), "got no token that is given"),
        (lambda: scoresde.sample(Infilled(MODEL, torch.tensor([0]), torch.tensor([True])), (2, 4)), "given tokens of shape"),
        (lambda: GuidedTokens(MODEL, math.nan, {"label": 1}), "got scale=nan"),
        (lambda: scoresde.sample(GuidedTokens(MODEL, 2.0, {"label": 1}), (2, 4)), "got no condition label to guide by"),
        (lambda: scoresde.compare(MODEL, ["ddim"], [2]), "none of which samples these models"),
        (lambda: scoresde.compare(chain(), ["ancestral"], [2], out="x"), "got out for models on tokens"),
        (lambda: scoresde.compare(small(Absorbing(3)), ["ancestral"], [2]), "a model without the shape of its sequences"),
        (lambda: analysis.convergence("ancestral", chain(), VP()), "expected a MarkovChain and a process on tokens"),
        (lambda: discrete.ThetaTrapezoidal(1.0), "got theta=1.0"),
        (lambda: discrete.GeometricNoise(2.0, 1.0), "expected 0 < low < high"),
        (lambda: Absorbing(3).amount(1.5), "expected times from 0 to 1"),
        (lambda: TokenTransformer(4, 3, width=10, heads=4), "a multiple of the heads"),
        (lambda: small(Absorbing(3)).x0(torch.zeros(2, 5).long(), 0.5), "has the length that it was built with"),
        (
            lambda: DenoisingModel(lambda x, t: x.double(), Absorbing(3)).x0(torch.zeros(1, 2).long(), 0.5),
            "expected logits",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call: Any, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


def test_a_real_model_still_refuses_tokens() -> None:
    model = ScoreModel(lambda x, t: x, VP())
    with pytest.raises(ValueError, match="expected a floating point tensor"):
        model.check_data(torch.zeros(2, 3).long())
    with pytest.raises(TypeError, match="got model of type Absorbing"):
        scoresde.sample(Absorbing(3), (2, 4))  # type: ignore[arg-type]
