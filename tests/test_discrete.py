"""Tokens: processes against matrix exponentials, denoisers by enumeration, solvers by exact laws, bounds by quadrature."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.special import rel_entr
from support import slopes
from torch import Tensor

import scoresde
from scoresde import discrete
from scoresde.discrete import (
    TOKEN_SOLVERS,
    Absorbing,
    DenoisingModel,
    DiscretizedGaussian,
    MarkovChain,
    RateMatrix,
    RatioModel,
    Uniform,
    all_sequences,
    draw_tokens,
    noised_law,
    solver_law,
    total_variation,
)

F64 = torch.float64


def chain(vocabulary: int = 3, length: int = 4, sharpness: float = 1.0, seed: int = 0) -> MarkovChain:
    g = torch.Generator().manual_seed(seed)
    first, then = (sharpness * torch.randn(s, generator=g, dtype=F64) for s in ((vocabulary,), (vocabulary, vocabulary)))
    return MarkovChain(first.softmax(-1), then.softmax(-1), length)


OWN_RATES = ((-1.0, 0.7, 0.3), (0.2, -0.5, 0.3), (1.1, 0.4, -1.5))

PROCESSES: dict[str, Any] = {
    "absorbing": Absorbing(3),
    "absorbing, cosine": Absorbing(3, "cosine"),
    "uniform": Uniform(3, "constant: rate=4.0"),
    "uniform, geometric": Uniform(3, "geometric"),
    "gaussian": DiscretizedGaussian(3, "constant: rate=6.0", width=0.8),
    "rates": RateMatrix(3, "constant: rate=5.0", rates=OWN_RATES),
}
each_process = pytest.mark.parametrize("name", PROCESSES)


def generator_of(process: Any) -> np.ndarray:
    """The rate matrix of a process, read from the rates into each state."""
    q = process.rates_into(torch.arange(process.states)[None])[0].T.numpy().copy()  # from a row into a column
    np.fill_diagonal(q, 0.0)
    return q - np.diag(q.sum(1))


def exact_x0(problem: MarkovChain, process: Any, x: Tensor, t: float) -> Tensor:
    """The law of each data token by enumeration of all sequences, with SciPy's matrix exponential."""
    p = torch.from_numpy(expm(float(process.amount(t)) * generator_of(process)))
    data = all_sequences(problem.vocabulary, problem.length)
    weights = problem.law.flatten() * p[data[None], x[:, None]].prod(-1)  # (n, sequences)
    one_hot = torch.nn.functional.one_hot(data, problem.vocabulary).double()
    return torch.einsum("ns,slv->nlv", weights, one_hot) / weights.sum(1)[:, None, None]


# Processes -----------------------------------------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize("t", [1e-6, 0.1, 0.5, 0.9])
def test_the_four_operations_are_those_of_the_matrix_exponential(name: str, t: float) -> None:
    process = PROCESSES[name]
    amount, n = process.amount(t), process.states
    p = torch.from_numpy(expm(float(amount) * generator_of(process)))
    x = torch.arange(n)[None]
    torch.testing.assert_close(process.rows(x, amount)[0], p, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(process.columns(x, amount)[0], p.T, rtol=1e-9, atol=1e-14)
    law = torch.rand(4, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(process.push(law, amount), law @ p, rtol=1e-12, atol=1e-14)
    back = process.pull(process.push(law, amount), amount)
    torch.testing.assert_close(back, law, rtol=0, atol=1e-14 * math.exp(2 * float(amount)))


@each_process
def test_each_sample_may_have_a_time_of_its_own(name: str) -> None:
    process = PROCESSES[name]
    t = torch.tensor([0.1, 0.6], dtype=F64)
    x = torch.tensor([[0, 1, 2], [2, process.states - 1, 1]])
    law = torch.rand(2, 3, process.states, generator=torch.Generator().manual_seed(0), dtype=F64)
    for f, value in [(process.rows, x), (process.columns, x), (process.push, law), (process.pull, law)]:
        both = f(value, process.amount(t))
        for i in range(2):
            torch.testing.assert_close(both[i], f(value[i : i + 1], process.amount(t[i]))[0], rtol=1e-11, atol=1e-13)


@each_process
def test_much_noise_leads_to_the_prior_and_none_to_the_data(name: str) -> None:
    process = PROCESSES[name]
    end = process.rows(torch.arange(process.vocabulary)[None], process.amount(1.0))[0]
    assert float((end - process.prior).abs().max()) < 0.02
    x = torch.arange(process.states)[None]
    assert torch.equal(process.rows(x, process.amount(0.0))[0], torch.eye(process.states, dtype=F64))
    stationary = process.push(process.prior, process.amount(0.3))
    torch.testing.assert_close(stationary, process.prior, rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", discrete.NOISE_SCHEDULES)
def test_schedules_agree_with_their_derivatives_and_inverses(schedule: str) -> None:
    made = discrete.NOISE_SCHEDULES[schedule]()
    t = torch.tensor([1e-4, 0.2, 0.7, 0.99], dtype=F64, requires_grad=True)
    amount = made.amount(t)
    (slope,) = torch.autograd.grad(amount.sum(), t)
    torch.testing.assert_close(made.speed(t.detach()), slope, rtol=1e-10, atol=0)
    torch.testing.assert_close(made.time(amount.detach()), t.detach(), rtol=1e-10, atol=1e-14)
    assert float(made.amount(torch.zeros((), dtype=F64))) == 0
    assert bool(torch.isfinite(made.amount(torch.ones((), dtype=F64)))) and bool(made.speed(torch.ones((), dtype=F64)) > 0)
    assert discrete.processes.schedules.noise_schedule(made.text()) == made


def test_small_entries_of_a_transition_keep_their_relative_accuracy() -> None:
    """Of a chain that moves by one level, the far corner is a^n / n!, where a sum of terms of both signs has rounding."""
    n, a = 9, 1e-3
    q = torch.zeros(n, n, dtype=F64)
    q[torch.arange(n - 1), torch.arange(1, n)] = 1.0
    q[n - 1, 0] = 1.0
    q -= q.sum(1).diag()
    found = RateMatrix(n, rates=q).rows(torch.tensor([[0]]), torch.tensor(a, dtype=F64))[0, 0, n - 1]
    assert float(found) == pytest.approx(a ** (n - 1) / math.factorial(n - 1) * math.exp(-a), rel=1e-9)


# Draws ---------------------------------------------------------------------------------------------------------------


def test_a_token_is_drawn_with_its_probability_to_rounding() -> None:
    p = torch.tensor([0.1, 0.0, 1e-12, 0.4, 0.5 - 1e-12, 0.0], dtype=F64)
    ends = p.cumsum(0)
    assert draw_tokens(p, ends[0]) == 2 and draw_tokens(p, ends[0] - 2**-53) == 0
    assert draw_tokens(p, ends[2]) == 3 and draw_tokens(p, ends[2] - 1e-16) == 2
    assert draw_tokens(p, torch.tensor(0.0, dtype=F64)) == 0 and draw_tokens(p, torch.tensor(1 - 2**-53, dtype=F64)) == 4
    assert draw_tokens(p.flip(0), torch.tensor(0.0, dtype=F64)) == 1
    many = p.expand(10**5, 6)
    counts = torch.bincount(draw_tokens(many, torch.rand(10**5, generator=torch.Generator().manual_seed(0), dtype=F64)))
    expected = 1e5 * p[[0, 3, 4]]
    assert float(((counts[[0, 3, 4]] - expected) ** 2 / expected).sum()) < 13.8  # chi-squared, 2 degrees, 0.1 %


@pytest.mark.parametrize("bad", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_law_that_is_none_is_refused(bad: list[float]) -> None:
    with pytest.raises(FloatingPointError, match="no positive entry"):
        draw_tokens(torch.tensor(bad, dtype=F64), torch.tensor(0.5, dtype=F64))


@each_process
def test_noised_tokens_have_the_law_of_the_process(name: str) -> None:
    process = PROCESSES[name]
    u = (torch.arange(3000, dtype=F64) + 0.5)[:, None] / 3000  # an even grid: frequencies are exact to 1 / 3000
    for token in range(3):
        x = process.noised(torch.full((3000, 1), token), 0.4, u)
        found = torch.bincount(x.flatten(), minlength=process.states) / 3000
        assert float((found - process.rows(torch.tensor([[token]]), process.amount(0.4))[0, 0]).abs().max()) < 2 / 3000


# Denoisers -----------------------------------------------------------------------------------------------------------


def reachable(problem: MarkovChain, process: Any) -> Tensor:
    return all_sequences(process.states, problem.length)


@each_process
def test_the_exact_denoiser_is_the_sum_over_all_sequences(name: str) -> None:
    problem, process = chain(), PROCESSES[name]
    x = reachable(problem, process)
    for t in (0.05, 0.5, 0.99):
        torch.testing.assert_close(problem.model(process).x0(x, t), exact_x0(problem, process, x, t), rtol=0, atol=1e-12)


@each_process
def test_ratios_are_those_of_the_noised_law(name: str) -> None:
    problem, process = chain(), PROCESSES[name]
    x, t = reachable(problem, process), 0.4
    law = noised_law(process, problem.law, t)
    found = problem.model(process).predict(x, t)
    n = process.states
    strides = n ** torch.arange(problem.length - 1, -1, -1)
    for place, token in itertools.product(range(problem.length), range(n)):
        other = (x @ strides) + (token - x[:, place]) * strides[place]
        wanted = law[other] / law
        # From a token that is not masked no rate leads to another one, and its ratio to the mask is not needed.
        needed = process.rates_into(x)[:, place, token] > 0
        torch.testing.assert_close(found.ratios[needed, place, token], wanted[needed], rtol=1e-11, atol=0)


@each_process
def test_the_posterior_of_one_token_is_bayes_rule(name: str) -> None:
    process = PROCESSES[name]
    t, s = process.amount(0.7), process.amount(0.3)
    q = generator_of(process)
    whole, first, second = (torch.from_numpy(expm(float(a) * q)) for a in (t, s, t - s))
    for origin, now in itertools.product(range(3), range(process.states)):
        if whole[origin, now] == 0:
            continue
        one_hot = torch.nn.functional.one_hot(torch.tensor([[origin]]), 3).double()
        found = process.posterior(torch.tensor([[now]]), one_hot, t, s)[0, 0]
        torch.testing.assert_close(found, first[origin] * second[:, now] / whole[origin, now], rtol=0, atol=1e-13)


@each_process
def test_tweedies_formula_is_the_posterior_where_ratios_are_those_of_predictions(name: str) -> None:
    problem, process = chain(), PROCESSES[name]
    x = reachable(problem, process)
    found = problem.model(process).predict(x, 0.6)
    for s in (0.0, 0.2, 0.55):
        amounts = found.amount, process.amount(s)
        tweedie = process.tweedie(x, found.ratios, *amounts)
        torch.testing.assert_close(tweedie, process.posterior(x, found.x0, *amounts), rtol=0, atol=1e-11)


def test_a_ratio_model_of_the_exact_ratios_is_the_exact_model() -> None:
    problem = chain()
    for process in (Absorbing(3), Uniform(3, "constant: rate=4.0")):
        exact = problem.model(process)
        mask = getattr(process, "mask", None)

        def net(x: Tensor, t: Tensor, exact: Any = exact, mask: int | None = mask) -> Tensor:
            logs = exact.predict(x, t.double()).ratios.clamp(min=1e-300).log()
            return logs if mask is None else logs + torch.log(torch.expm1(exact.process.amount(t.double())))[:, None, None]

        model, x = RatioModel(net, process), reachable(problem, process)
        t = torch.full((len(x),), 0.5)
        torch.testing.assert_close(model.x0(x, t), exact.x0(x, 0.5), rtol=0, atol=1e-6)
        for solver in ("analytic", "tau-leaping", "ancestral"):
            laws = [solver_law(m, 4, solver, [1.0, 0.5, 0.25, 0.0]) for m in (model, exact)]
            assert total_variation(*laws) < 1e-6


def test_predictions_without_a_possible_token_are_shared_among_those_that_are() -> None:
    absorbed = DenoisingModel(lambda x, t: torch.tensor([0.0, -1e5, -1e5]).expand(*x.shape, 3), Absorbing(3))
    assert absorbed.x0(torch.tensor([[1, 3]]), 0.5).tolist() == [[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]


# Solvers -------------------------------------------------------------------------------------------------------------

ORDERED = [name for name, make in TOKEN_SOLVERS.items() if make().description.weak_order is not None]


def errors(solver: str, problem: MarkovChain, process: Any, start: float, end: float, steps: tuple[int, ...]) -> list[float]:
    law = problem.law
    first, last = noised_law(process, law, start), noised_law(process, law, end)
    times = [torch.linspace(start, end, n + 1, dtype=F64).tolist() for n in steps]
    return [total_variation(solver_law(problem.model(process), problem.length, solver, t, first), last) for t in times]


@pytest.mark.parametrize("solver", ORDERED)
@pytest.mark.parametrize(
    ("process", "length", "start", "end"),
    [
        (Uniform(3, "constant: rate=4.0"), 3, 0.5, 0.1),
        (Absorbing(3), 3, 0.9, 0.3),
        (DiscretizedGaussian(3, "constant: rate=6.0", width=0.8), 2, 0.5, 0.1),
        pytest.param(Uniform(3, "constant: rate=4.0"), 4, 0.5, 0.1, marks=pytest.mark.slow),
        pytest.param(Absorbing(3), 4, 0.9, 0.3, marks=pytest.mark.slow),
    ],
    ids=["uniform", "absorbing", "gaussian", "uniform of 4", "absorbing of 4"],
)
def test_each_solver_has_the_order_that_it_declares(
    solver: str, process: Any, length: int, start: float, end: float
) -> None:
    found = errors(solver, chain(length=length, sharpness=0.3), process, start, end, (8, 16, 32))
    declared = TOKEN_SOLVERS[solver]().description.weak_order
    assert slopes(found)[-1] == pytest.approx(declared, abs=0.1), found


def test_from_the_prior_to_the_data_the_total_variation_falls_at_first_order() -> None:
    problem, process = chain(), Absorbing(3)
    data, model = noised_law(process, problem.law, 0.0), problem.model(process)

    def error(solver: str, n: int) -> float:
        return total_variation(solver_law(model, 4, solver, torch.linspace(1, 0, n + 1, dtype=F64).tolist()), data)

    found = [error("ancestral", n) for n in (1, 2, 4, 8, 32)]
    assert all(1.9 < a / b < 2.1 for a, b in itertools.pairwise(found[:4])) and 3.8 < found[3] / found[4] < 4.2
    # One step draws every token by itself: the product of the marginals.
    marginals = [problem.law.sum(tuple(j for j in range(4) if j != i)) for i in range(4)]
    product = torch.einsum("a,b,c,d->abcd", *marginals)
    assert found[0] == pytest.approx(total_variation(product, problem.law), abs=1e-12)
    assert error("theta-trapezoidal", 8) < 0.3 * error("ancestral", 8)


def test_where_extrapolated_rates_are_negative_the_second_order_is_lost() -> None:
    """The positive part of the published method costs its order on tokens that determine each other: it is not hidden."""
    found = errors("theta-trapezoidal", chain(length=3, sharpness=2.0), Absorbing(3), 0.9, 0.2, (32, 64))
    assert (
        slopes(found)[-1] < 1.5
        and found[-1] < 0.2 * errors("ancestral", chain(length=3, sharpness=2.0), Absorbing(3), 0.9, 0.2, (64,))[0]
    )


def test_first_hitting_samples_are_exact() -> None:
    problem, process = chain(), Absorbing(3, "cosine")
    found = solver_law(problem.model(process), 4, "first-hitting", [1.0, 0.0])
    assert total_variation(found, noised_law(process, problem.law, 0.0)) < 1e-14


@pytest.mark.parametrize("solver", TOKEN_SOLVERS)
@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_samples_have_the_exact_law_of_their_solver(solver: str, name: str) -> None:
    """What the loop draws is what the enumeration says, stages, first jumps and last step included."""
    problem, process = chain(length=2), PROCESSES[name]
    if solver == "first-hitting" and name != "absorbing":
        pytest.skip("masks are lifted in the absorbing process alone")
    times, n = [1.0, 0.6, 0.3, 0.0], 20_000
    law = solver_law(problem.model(process), 2, solver, times)
    x = scoresde.sample(problem.model(process), (n, 2), solver, path=times, progress=False).x
    counts = torch.bincount(x @ torch.tensor([process.states, 1]), minlength=len(law)).double()
    seen = law > 1e-12
    assert int(counts[~seen].sum()) == 0
    statistic = float(((counts - n * law)[seen] ** 2 / (n * law[seen])).sum())
    assert statistic < 30  # chi-squared with 8 degrees: 2e-4


@pytest.mark.parametrize("solver", TOKEN_SOLVERS)
def test_a_sample_depends_on_its_own_seed_alone(solver: str) -> None:
    problem, process = chain(), Absorbing(3)
    model = problem.model(process)
    many = scoresde.sample(model, (7, 4), solver, 5, seed=3, progress=False)
    for i in (0, 4, 6):
        alone = scoresde.sample(model, (1, 4), solver, 5, seed=many.seeds[i : i + 1], progress=False)
        assert torch.equal(alone.x[0], many.x[i])
    assert not torch.equal(many.x, scoresde.sample(model, (7, 4), solver, 5, seed=4, progress=False).x)


@pytest.mark.parametrize("solver", TOKEN_SOLVERS)
def test_evaluations_are_counted(solver: str) -> None:
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.zeros(*x.shape, 3)

    drawn = scoresde.sample(DenoisingModel(net, Absorbing(3)), (5, 6), solver, 4, progress=False)
    described = TOKEN_SOLVERS[solver]().description
    last = 1  # the last step, to the data, costs one evaluation
    assert drawn.evaluations == len(seen) == (6 if described.evaluations is None else 3 * described.evaluations + last)


def test_states_on_the_way_are_kept_and_a_callback_may_stop() -> None:
    model = chain().model(Absorbing(3))
    drawn = scoresde.sample(model, (4, 4), "ancestral", 4, keep=[1.0, 0.5, 0.0], progress=False)
    assert bool((drawn.states[1.0] == 3).all()) and torch.equal(drawn.states[0.0], drawn.x)
    halfway = scoresde.sample(model, (4, 4), "ancestral", 4, callback=lambda state: state.t <= 0.5, progress=False)
    assert torch.equal(halfway.x, drawn.states[0.5]) and halfway.times == (1.0, 0.75, 0.5)
    noised = scoresde.sample(model, (4, 4), "tau-leaping", path=[1.0, 0.6], end="stop", progress=False)
    again = scoresde.sample(model, noised.x, "first-hitting", path=[0.6, 0.0], progress=False)
    assert bool((again.x[noised.x < 3] == noised.x[noised.x < 3]).all()) and int(again.x.max()) < 3


# Bounds --------------------------------------------------------------------------------------------------------------


def expected(objective: Any, problem: MarkovChain, model: Any, t: float) -> float:
    """The mean of a loss at time t, in nats of the whole sequence, over all data and noised sequences."""
    process = model.process
    data, states = all_sequences(problem.vocabulary, problem.length), all_sequences(process.states, problem.length)
    x0, x = data.repeat_interleave(len(states), 0), states.repeat(len(data), 1)
    p = process.rows(data, process.amount(t))  # (sequences, length, states)
    law = problem.law.flatten()[:, None] * p[:, None].expand(-1, len(states), -1, -1).gather(
        3, states[None, :, :, None].expand(len(data), -1, -1, 1)
    )[..., 0].prod(-1)
    some = law.flatten() > 0
    times = torch.full((int(some.sum()),), t, dtype=F64)
    loss = objective.of_tokens(model, x0[some], x[some], times)
    return float(law.flatten()[some] @ loss) * problem.length


def integrated(objective: Any, problem: MarkovChain, model: Any, points: int = 40) -> float:
    """The integral over t in (0, 1), by Gauss-Legendre in a variable that resolves logarithms at both ends."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    u, w = 0.5 * (nodes + 1), 0.5 * weights
    t, slope = u**5, 5 * u**4
    low, high = model.process.span
    return sum(wi * si * expected(objective, problem, model, float(ti)) for ti, si, wi in zip(t, slope, w, strict=True)) / (
        high - low
    )


@pytest.mark.parametrize(
    ("objective", "process"),
    [
        (discrete.MaskedBound(), Absorbing(3)),
        (discrete.MaskedBound(), Absorbing(3, "cosine")),
        (discrete.ScoreEntropy(), Absorbing(3)),
        (discrete.ScoreEntropy(), Uniform(3, "constant: rate=4.0")),
        (discrete.ScoreEntropy(), RateMatrix(3, "constant: rate=4.0", rates=OWN_RATES)),
    ],
    ids=["mdlm", "mdlm cosine", "sedd absorbing", "sedd uniform", "sedd rates"],
)
def test_the_bound_of_the_exact_denoiser_is_the_entropy(objective: Any, process: Any) -> None:
    problem = chain(length=3)
    data = all_sequences(3, 3)
    bound = integrated(objective, problem, problem.model(process))
    # The noise at t = 1 is not quite the prior: its divergence is a part of the bound, less that of the noised law.
    law, prior = noised_law(process, problem.law, 1.0), solver_prior(process, 3)
    bound += float(problem.law.flatten() @ process.prior_divergence(data))
    gap = 0.0 if isinstance(process, Absorbing) else float(rel_entr(law.numpy(), prior.numpy()).sum())
    brute = -float((problem.law * problem.law.log()).sum())
    assert problem.entropy == pytest.approx(brute, abs=1e-13)
    assert bound - gap == pytest.approx(problem.entropy, abs=1e-10)


def solver_prior(process: Any, length: int) -> Tensor:
    law = torch.ones(1, dtype=F64)
    for _ in range(length):
        law = (law[:, None] * process.prior).flatten()
    return law


def test_the_bound_of_a_chain_is_that_of_its_own_sampler() -> None:
    """One step: the sum of the entropies of single tokens. Many steps: the entropy. Between: KL of the two chains."""
    problem, process = chain(length=3), Absorbing(3)
    model = problem.model(process)

    def bound(n: int) -> float:
        objective = discrete.ChainBound(n)
        return sum(expected(objective, problem, model, k / n) for k in range(1, n + 1)) / n

    marginals = [problem.law.sum(tuple(j for j in range(3) if j != i)) for i in range(3)]
    assert bound(1) == pytest.approx(-sum(float(torch.xlogy(m, m).sum()) for m in marginals), abs=1e-10)
    gaps = [bound(n) - problem.entropy for n in (4, 8, 16)]
    assert all(0.85 < s < 1.15 for s in slopes(gaps)) and gaps[-1] > 0
    law = solver_law(model, 3, "ancestral", torch.linspace(1, 0, 5, dtype=F64).tolist())
    data = noised_law(process, problem.law, 0.0)
    some = data > 0
    assert bound(4) >= -float(data[some] @ law[some].log()) - 1e-12  # a bound of the likelihood of its own samples


def test_masked_bound_and_score_entropy_are_one_bound_for_predictions() -> None:
    """For any model that predicts data, not only for the exact one, and so are their gradients."""
    process, g = Absorbing(4), torch.Generator().manual_seed(0)
    w = torch.randn(5, 4, generator=g, dtype=F64, requires_grad=True)
    model = DenoisingModel(lambda x, t: w[x], process)
    x0 = torch.randint(4, (64, 3), generator=g)
    found = []
    for objective in (discrete.MaskedBound(), discrete.ScoreEntropy()):
        t = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=F64).clamp(min=0.05)
        loss = objective.at(model, x0, t, torch.rand(64, 3, generator=torch.Generator().manual_seed(2), dtype=F64))
        found.append((loss.detach(), torch.autograd.grad(loss.sum(), w)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", discrete.TOKEN_OBJECTIVES)
@pytest.mark.parametrize("process", [Absorbing(3), Uniform(3)], ids=["absorbing", "uniform"])
def test_no_model_does_better_than_the_exact_one(objective: str, process: Any) -> None:
    if objective == "mdlm" and not isinstance(process, Absorbing):
        pytest.skip("the bound of masked diffusion")
    problem, made = chain(length=2), discrete.TOKEN_OBJECTIVES[objective]
    exact = problem.model(process)

    class Blurred(discrete.TokenWrapper):
        def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return 0.9 * self.model.x0(x, t) + 0.1 / 3

    for t in (0.05, 0.5, 1.0):
        assert expected(made, problem, Blurred(exact), t) > expected(made, problem, exact, t)


def test_the_estimated_bound_is_the_entropy_in_the_mean() -> None:
    problem = chain(length=3)
    model = problem.model(Absorbing(3))
    x = problem.sample(20_000, torch.Generator().manual_seed(0))
    found = discrete.MaskedBound().bound(model, x, torch.Generator().manual_seed(1))
    assert abs(float(found.mean()) - problem.entropy) < 4 * float(found.std()) / math.sqrt(len(x))
