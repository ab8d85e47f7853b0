"""Search rules turn losses of skip sets into an importance of every attention (paper Eq. 14-16), without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from eas.searching.base import Array, RuleBase, SkipSet
from eas.searching.fixed import FIXED
from eas.searching.linear import GuidedRule, RegressionRule, ThompsonRule

__all__ = ["RULES", "BanditRule", "Rule", "SkipSet", "make_rule", "random_skip_set"]


class Rule(Protocol):
    """Proposes skip sets, observes their losses, ranks the candidates."""

    def propose(self, m: int, sizes: tuple[int, int] | None = None) -> list[SkipSet]:
        """m distinct skip sets, each ascending (fewer only if fewer exist).

        They hold k candidates, or a number drawn uniformly from the first to the second of ``sizes``.
        """

    def observe(self, skip_sets: Sequence[SkipSet], losses: Sequence[float]) -> None:
        """Learns from one round: the losses of several skip sets on the same batch.

        Raises:
            ValueError: there is not one finite loss for each set.
        """

    def ranking(self) -> list[int]:
        """All candidates, the most redundant first; its first k are the skip set."""

    def importances(self) -> list[float]:
        """The importance of every candidate; the lowest are skipped."""

    def standard_errors(self) -> list[float | None]:
        """The standard error of every importance, in the unit of importances; None if the rule knows none."""

    def settled(self) -> bool:
        """Whether further rounds are unlikely to change the skip set."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next proposals, as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``.

        Raises:
            RecordError: the state belongs to another rule or another number of candidates.
        """


class BanditRule(RuleBase):
    """The paper's k-armed bandit with the sign that its text asks for.

    Eq. 14: a set skips k candidates drawn one after the other, without replacement, with probability proportional to
    ``exp(-sharpness * importance)``. Eq. 15: its reward is ``exp(-loss)``, of the mean loss on the held-out batch.
    Eq. 16: the importance of each candidate that it skipped falls by ``rate`` times how far its reward exceeds the
    round's mean. Importances start at 0; they are sums of advantages, without a unit. Candidates
    that a set kept do not change: raising them by the advantage would only double the rate, because the softmax depends
    on differences and advantages sum to 0. The advantage is not divided by its spread, so losses that are close to each
    other change little.

    Args:
        num_candidates: n.
        num_skip: k, at least 1 and below n.
        seed: of the draws.
        rate: step of the update. On planted costs 1 to 5 do about equally well where
            noise is low, and 1 best where it is high; at 20 (2 times a sharpness of 10, rule ``released``) the policy
            commits to the luck of its first rounds. Rewards, and with them the steps, shrink with the loss.
        sharpness: inverse temperature of the policy.
    """

    def __init__(
        self, num_candidates: int, num_skip: int, seed: int, rate: float = 1.0, sharpness: float = 1.0
    ) -> None:
        super().__init__(num_candidates, num_skip, seed)
        self.rate, self.sharpness = rate, sharpness

    def draw(self, taken: Sequence[SkipSet]) -> Array:
        # Eq. 14: the k lowest scores under Gumbel noise are a draw without replacement from the softmax
        return self.sharpness * self.importance - self.rng.gumbel(size=self.num_candidates)

    def update(self, skipped: Array, losses: Array) -> None:
        rewards = np.exp(-losses)  # Eq. 15, (m,)
        if not np.isfinite(rewards).all():
            raise ValueError(f"losses {losses.tolist()} are too low for exp(-loss); give mean cross-entropies")
        self.importance = self.importance - self.rate * (rewards - rewards.mean()) @ skipped  # Eq. 16, (n,)


class DASRule(BanditRule):
    """The bandit of DAS (Wu et al., NeurIPS 2023), as its authors' code has it.

    Probabilities are proportional to ``sigmoid(-importance)``, far flatter than a softmax, and the update is a policy
    gradient's: times ``p (1 - p)``, with a rate of 0.1.
    """

    def __init__(self, num_candidates: int, num_skip: int, seed: int) -> None:
        super().__init__(num_candidates, num_skip, seed, rate=0.1)

    def draw(self, taken: Sequence[SkipSet]) -> Array:
        log_probability = -np.logaddexp(0, self.importance)
        return -log_probability - self.rng.gumbel(size=self.num_candidates)

    def update(self, skipped: Array, losses: Array) -> None:
        before, p = self.importance, 1 / (1 + np.exp(self.importance))
        super().update(skipped, losses)
        self.importance = before + (self.importance - before) * p * (1 - p)


# released writes redundancy = -importance and skips the highest, which is the same rule.
RULES: dict[str, Callable[[int, int, int], Rule]] = {
    "bandit": BanditRule,
    "bandit_literal": partial(BanditRule, rate=-1.0),  # Eq. 16 as printed: what made a set good becomes important
    "released": partial(BanditRule, rate=2.0, sharpness=10.0),  # the authors' code: softmax(10 s), s += 2 * advantage
    "das": DASRule,
    "regression": RegressionRule,
    "thompson": ThompsonRule,
    "spread": partial(ThompsonRule, spread=1.0),  # everywhere as good as the better of the two rules above
    "guided": GuidedRule,  # the same, told the similarity of each module's input and output
}


def make_rule(name: str, num_candidates: int, num_skip: int, seed: int = 0) -> Rule:
    """The rule of this name.

    Raises:
        ValueError: the name is unknown, or k does not fit n.

    Example:
        >>> import eas
        >>> rule = eas.make_rule("spread", num_candidates=12, num_skip=4)
        >>> sets = rule.propose(3)
        >>> rule.observe(sets, [0.5, 0.4, 0.6])
        >>> len(rule.ranking())
        12
    """
    if name not in RULES:
        known = f"use one of {', '.join(RULES)}"
        raise ValueError(f"rule = {name!r} is unknown; {known} (without a search: {', '.join(FIXED)} in FIXED)")
    return RULES[name](num_candidates, num_skip, seed)


def random_skip_set(
    num_candidates: int, num_skip: int, seed: int, step: int, sizes: tuple[int, int] | None = None
) -> SkipSet:
    """The random skip set of one warm-up step. It depends on seed and step alone, so every process draws the same set.

    Its size is ``num_skip``, or drawn uniformly from the first to the second of ``sizes``.
    """
    rng = np.random.default_rng([seed, step])
    chosen = rng.choice(num_candidates, rng.integers(sizes[0], sizes[1] + 1) if sizes else num_skip, replace=False)
    return tuple(sorted(chosen.tolist()))
