"""Search rules that fit a linear model, which predicts a set's loss from the candidates that the set skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eas.records import RecordError
from eas.searching.base import Array, RuleBase, SkipSet
from eas.searching.fixed import similarity_ranking
from eas.searching.records import GuidedState, RegressionState


class RegressionRule(RuleBase):
    """Ridge regression of the loss on the skip indicator, over uniformly drawn sets.

    Losses of a round share a batch, so both sides are centred within a round. Every evaluation then informs about all
    candidates at once. The bandit blames a candidate for the others in its set; this rule does not. Importances are
    losses, relative to their mean, and serve any k. The ridge is 1: a prior as strong as one evaluation.

    Args:
        num_candidates: n.
        num_skip: k, at least 1 and below n.
        seed: of the draws.
    """

    STATE: type = RegressionState

    def __init__(self, num_candidates: int, num_skip: int, seed: int) -> None:
        super().__init__(num_candidates, num_skip, seed)
        self.prior: Array = np.eye(num_candidates)  # its precision, in units of the noise's
        self.gram: Array = np.zeros((num_candidates, num_candidates))
        self.moment: Array = np.zeros(num_candidates)
        self.square, self.degrees = 0.0, 0

    def draw(self, taken: Sequence[SkipSet]) -> Array:
        """Uniform, but what the round skipped least comes first: a candidate tells most if some sets skip it."""
        return self._counts(taken) + self.rng.random(self.num_candidates)

    def update(self, skipped: Array, losses: Array) -> None:
        x, y = skipped - skipped.mean(axis=0), losses - losses.mean()
        self.gram += x.T @ x
        self.moment += x.T @ y
        self.square += float(y @ y)
        self.degrees += len(y) - 1
        self.importance = np.linalg.solve(self._precision(), self.moment)

    def standard_errors(self) -> list[float | None]:
        """Of every importance (itself relative to the mean); None before the first round."""
        if self.degrees == 0:
            return [None] * self.num_candidates
        covariance = self._covariance()
        covariance -= covariance.mean(axis=0)
        covariance -= covariance.mean(axis=1, keepdims=True)
        return [float(value) for value in np.sqrt(np.diag(covariance))]

    def contrast(self, weights: Array) -> tuple[float, float]:
        """A weighted sum of the candidates' importances, and its standard error.

        Over sets of one size only weights that sum to 0 are known; their common level is the prior's.
        """
        return float(weights @ self.importance), float(np.sqrt(weights @ self._covariance() @ weights))

    def settled(self) -> bool:
        """Also true if the last skipped and the first kept candidate differ by 2 standard errors of the difference.

        The data choose this pair, and every round tests it, so this errs more often than a single test would.
        """
        if self.degrees < self.num_candidates:
            return False
        last, first = self.ranking()[self.num_skip - 1 : self.num_skip + 1]
        c = self._covariance()
        error = np.sqrt(c[last, last] + c[first, first] - 2 * c[last, first])
        return bool(self.importance[first] - self.importance[last] > 2 * error) or super().settled()

    def state_dict(self) -> dict[str, Any]:
        fit = {"gram": self.gram.tolist(), "moment": self.moment.tolist()}
        return {**super().state_dict(), **fit, "square": self.square, "degrees": self.degrees}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.gram, self.moment = self._array(state, "gram", 2), self._array(state, "moment")
        self.square, self.degrees = state["square"], state["degrees"]

    def _counts(self, taken: Sequence[SkipSet]) -> Array:
        """How many of these sets skip each candidate."""
        return np.bincount([i for s in taken for i in s], minlength=self.num_candidates).astype(float)

    def _precision(self) -> Array:
        return self.gram + self.prior

    def _variance(self) -> float:
        """Of the noise: the residual's, over the degrees of freedom that the fit leaves (1 where it has none)."""
        w, used = self.importance, np.trace(np.linalg.solve(self._precision(), self.gram))
        residual = float(self.square - 2 * self.moment @ w + w @ self.gram @ w)
        return residual / float(self.degrees - used) if residual > 0 else 1.0

    def _covariance(self) -> Array:
        return self._variance() * np.linalg.inv(self._precision())


class ThompsonRule(RegressionRule):
    """Linear Thompson sampling: each proposal is the best set under one draw from the regression's posterior.

    So the search evaluates sets that may still be the best. If skips interact, these evaluations help most: the linear
    model then describes the neighbourhood in which the search ends.

    Args:
        num_candidates: n.
        num_skip: k, at least 1 and below n.
        seed: of the draws.
        spread: the penalty of a candidate, in standard errors, for every set of the round that skips it already.
            Posterior draws resemble each other, and a round's losses say nothing on candidates that all sets skip.
    """

    def __init__(self, num_candidates: int, num_skip: int, seed: int, spread: float = 0.0) -> None:
        super().__init__(num_candidates, num_skip, seed)
        self.spread = spread

    def draw(self, taken: Sequence[SkipSet]) -> Array:
        covariance = self._covariance()
        sample = self.importance + np.linalg.cholesky(covariance) @ self.rng.standard_normal(self.num_candidates)
        return sample + self.spread * self._counts(taken) * np.sqrt(np.diag(covariance))


class GuidedRule(ThompsonRule):
    """`ThompsonRule`, told beforehand how much each candidate changes what passes through it.

    An importance is a term of the candidate's own plus a slope times the cosine of its input and output, standardised.
    The slope is one unknown for all candidates, so few rounds tell it. Above all it finds the few modules that change
    much, which no set should skip. Where the cosines tell nothing, the slope stays near zero.

    Args:
        num_candidates: n.
        num_skip: k, at least 1 and below n.
        seed: of the draws.
        spread: as in `ThompsonRule`.
        slope: the prior's standard deviation of the slope, where that of a candidate's own term is 1.
    """

    STATE = GuidedState

    def __init__(self, num_candidates: int, num_skip: int, seed: int, spread: float = 1.0, slope: float = 3.0) -> None:
        super().__init__(num_candidates, num_skip, seed, spread)
        self.slope = slope
        self.cosines: list[float] | None = None

    def guide(self, cosines: Sequence[float]) -> None:
        """Takes the cosines of ``eas.searching.similarity.cosines``; equal ones say nothing.

        Raises:
            ValueError: a cosine is not finite, or there is not one for each candidate.
        """
        if len(similarity_ranking(cosines)) != self.num_candidates:
            raise ValueError(f"{len(cosines)} cosines for {self.num_candidates} candidates")
        self.cosines = [float(value) for value in cosines]
        x = np.asarray(self.cosines) - np.mean(self.cosines)
        x /= x.std() or 1.0
        self.prior = np.linalg.inv(np.eye(self.num_candidates) + self.slope**2 * np.outer(x, x))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "cosines": self.cosines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        try:
            if state["cosines"] is not None:
                self.guide(state["cosines"])
        except ValueError as error:
            raise RecordError(f"rule.cosines: {error}") from error
