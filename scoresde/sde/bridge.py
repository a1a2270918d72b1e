"""The Markov chain with the marginals of an SDE at ``n`` times; :meth:`scoresde.sde.Chain.sde` is the inverse."""

from __future__ import annotations

import functools

import torch

from scoresde.base.numbers import whole
from scoresde.sde.chain import DDPM, NCSN, Chain, GaussianChain, betas_of, step_times
from scoresde.sde.gaussian import GaussianSDE
from scoresde.sde.published import EDM, VE, VP, CosineVP

__all__ = ["discretize"]


def discretize(sde: GaussianSDE, n: int, form: str = "exact") -> Chain:
    r"""Return the chain of ``n`` steps of an SDE.

    With ``form="exact"`` the marginals of the chain are those of the SDE at the times of its steps. These are
    t_k = k t_max / n; for a VE whose sigma(0) > 0 they run from t = 0 to t_max; for EDM they have Karras' spacing.

    With ``form="published"`` the chain follows the rule of the papers, which converges to the exact chain at first order in
    1 / n. For VP this is :math:`\beta_k = \beta(t_k) / n` with t_k equidistant from 0 to 1 (n = 1000 is the schedule of
    DDPM), for CosineVP the clipped schedule of improved DDPM. For VE and EDM both forms are the same.

    Args:
        sde: the SDE.
        n: the number of steps.
        form: ``"exact"`` or ``"published"``.

    Raises:
        ValueError: for ``n < 1``, another ``form``, an SDE without a published form, or a beta above 1.

    Example:
        >>> bool(torch.allclose(discretize(VP(), 1000, "published").variance, DDPM.linear(1000).variance))
        True
    """
    n = whole("n", n, 1)
    if form == "published":
        return _published(sde, n)
    if form != "exact":
        raise ValueError(f"got form {form!r}; expected 'exact' or 'published'")
    t = step_times(sde, n)
    log_alpha, log_sigma = sde.log_alpha(t), sde.log_sigma(t)
    total = (2 * log_alpha).exp() + (2 * log_sigma).exp()
    if bool((log_alpha == 0).all()):
        return NCSN(log_sigma.exp())
    if bool(((total - 1).abs() < 1e-13).all()):
        return DDPM(betas_of(log_alpha))
    return GaussianChain(log_alpha, log_sigma)


@functools.singledispatch
def _published(sde: GaussianSDE, n: int) -> Chain:
    raise ValueError(f"{type(sde).__name__} has no published chain; use form='exact'")


@_published.register
def _(sde: VP, n: int) -> Chain:
    return DDPM(sde.beta(torch.linspace(0, sde.t_max, n, dtype=torch.float64)) * sde.t_max / n)


@_published.register
def _(sde: CosineVP, n: int) -> Chain:
    return DDPM.cosine(n, s=sde.s)


@_published.register(VE)
@_published.register(EDM)
def _(sde: VE | EDM, n: int) -> Chain:
    return discretize(sde, n, "exact")
