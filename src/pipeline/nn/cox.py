"""Penalised Cox regression: ridge and elastic net by scikit-survival, the penalty chosen inside the training patients."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from pipeline.errors import InputError

T = TypeVar("T")
log = logging.getLogger(__name__)


def fit_ridge(x: np.ndarray, time: np.ndarray, event: np.ndarray, alpha: float) -> np.ndarray:
    """Coefficients [d] of the Cox model with penalty α/2·‖β‖² (Breslow ties), from x [n, d], time [n], event [n] 0/1.

    With more features than patients the fit runs in the space that the patients span, which gives the same coefficients (Hastie &
    Tibshirani, Biostatistics 2004). Raises `InputError` when it does not converge.
    """
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    centred = x - x.mean(axis=0)
    basis = None
    if x.shape[1] > x.shape[0]:
        left, size, basis = np.linalg.svd(centred, full_matrices=False)
        centred = left * size
    model = _converged(lambda: CoxPHSurvivalAnalysis(alpha=alpha).fit(centred, _outcome(time, event)), f"ridge Cox with alpha {alpha:g}")
    return model.coef_ if basis is None else model.coef_ @ basis


def fit_elastic_net(
    x: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    *,
    l1_ratio: float,
    alpha: float | None,
    alphas: int,
    alpha_min_ratio: float,
    folds: int,
    seed: int,
) -> np.ndarray:
    """Coefficients [d] of the Cox model with penalty α·(ρ‖β‖₁ + (1−ρ)/2·‖β‖²), ρ = `l1_ratio` (Simon et al., J. Stat. Softw. 2011).

    alpha None: of a path of `alphas` values down to `alpha_min_ratio` of the largest, the one with the highest cross-validated
    partial likelihood Σ_k ℓ(β₋ₖ) − ℓ₋ₖ(β₋ₖ) (Verweij & van Houwelingen, Stat. Med. 1993) over `folds` parts stratified by event.
    All coefficients may be zero: then no penalty of the path predicts better than nothing. Raises `InputError` when a fit does not
    converge, or when there are fewer events than `folds`.
    """
    if alpha is not None:
        return _along(x, time, event, l1_ratio, np.array([alpha]))[:, 0]
    if event.sum() < folds:
        raise InputError(
            "too few events to choose the penalty of the elastic net",
            found=f"{int(event.sum())} events",
            expected=f"at least {folds}",
            remedy="State alpha, or use penalty: ridge.",
        )
    grid, path = _path(x, time, event, l1_ratio, count=alphas, ratio=alpha_min_ratio)
    score = np.zeros(len(grid))
    for held in stratified_parts(event, folds, seed):
        kept = ~held
        risk = x @ _along(x[kept], time[kept], event[kept], l1_ratio, grid)
        score += log_partial_likelihood(risk, time, event) - log_partial_likelihood(risk[kept], time[kept], event[kept])
    best = int(score.argmax())
    log.info("elastic net: alpha %.4g, %d of %d coefficients", grid[best], np.count_nonzero(path[:, best]), len(path))
    return path[:, best]


def log_partial_likelihood(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Cox's log partial likelihood (Breslow ties) [A] of A log-risks, risk [n, A]; the risk set of t is everyone with time ≥ t."""
    order = np.argsort(-time, kind="stable")
    risk, time, event = risk[order], time[order], event[order].astype(bool)
    at_risk = np.logaddexp.accumulate(risk, axis=0)[np.searchsorted(-time, -time, side="right") - 1]
    return (risk - at_risk)[event].sum(axis=0)


def stratified_parts(event: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """`folds` masks [n] that part the patients, each with its share of the events."""
    rng = np.random.default_rng(seed)
    part = np.empty(len(event), dtype=int)
    for value in (0, 1):
        rows = np.flatnonzero(event == value)
        part[rng.permutation(rows)] = np.arange(len(rows)) % folds
    return [part == k for k in range(folds)]


def _path(
    x: np.ndarray,
    time: np.ndarray,
    event: np.ndarray,
    l1_ratio: float,
    alphas: np.ndarray | None = None,
    count: int = 1,
    ratio: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Penalties [A], falling, and coefficients [d, A]; `count` values from the smallest at which all are zero down to `ratio` of it."""
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    options = {"n_alphas": count, "alpha_min_ratio": ratio} if alphas is None else {"alphas": alphas}
    model = CoxnetSurvivalAnalysis(l1_ratio=l1_ratio, **options)
    fitted = _converged(lambda: model.fit(x, _outcome(time, event)), f"elastic-net Cox with l1_ratio {l1_ratio:g}")
    return fitted.alphas_, fitted.coef_


def _along(x: np.ndarray, time: np.ndarray, event: np.ndarray, l1_ratio: float, alphas: np.ndarray) -> np.ndarray:
    """Coefficients [d, A] at every one of `alphas`, falling.

    The library stops a path where the likelihood no longer moves. That is so at its start, where all coefficients are zero, which is
    why only what lies below is fitted; and at its end, where the last fitted ones hold.
    """
    largest = _path(x, time, event, l1_ratio)[0][0]
    coefficients = np.zeros((x.shape[1], len(alphas)))
    start = int((alphas >= largest).sum())
    if start < len(alphas):
        fitted = _path(x, time, event, l1_ratio, alphas[start:])[1]
        coefficients[:, start : start + fitted.shape[1]] = fitted
        coefficients[:, start + fitted.shape[1] :] = fitted[:, -1:]
    return coefficients


def _outcome(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    from sksurv.util import Surv

    return Surv.from_arrays(event.astype(bool), time)


def _converged(fit: Callable[[], T], what: str) -> T:
    """The result of `fit`; `InputError` when it warns that it did not converge or breaks down numerically."""
    from sklearn.exceptions import ConvergenceWarning

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # what overflows is reported below
            warnings.filterwarnings("ignore", message="all coefficients are zero")
            warnings.simplefilter("error", ConvergenceWarning)
            return fit()
    except (ConvergenceWarning, ArithmeticError, AssertionError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{what} did not converge ({str(error).rstrip('.')})", remedy="Raise alpha, or look for extreme input values."
        ) from error
