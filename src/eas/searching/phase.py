"""The search phase: it trains PIAs under sampled skip sets, scores sets on held-out batches, and informs a rule.

0. Rule `guided` takes the similarity of each module's input and output, nothing skipped (``guide``).
1. Warm-up: every training step skips a uniformly random set (``on_step_begin``).
2. Afterwards every training step skips one set of the rule's policy, Eq. 14 (``on_step_begin``).
3. Every T steps is a round (``round``): the rule proposes m sets (Eq. 14), all m are scored by their loss on one
   held-out batch (Eq. 15), and the rule updates the importances of the candidates (Eq. 16).
4. The k candidates of least importance are the skip set (``result``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eas.attachment.attach import select
from eas.attachment.state import all_but_one, attachment, candidates
from eas.config import Config, ConfigError, SkipConfig, option
from eas.distributed import from_main, is_main
from eas.files import write_text
from eas.progress import track
from eas.records import RecordError, raised_as, read_record
from eas.searching.base import shuffled
from eas.searching.fixed import FIXED
from eas.searching.linear import GuidedRule
from eas.searching.records import SearchState
from eas.searching.rules import RULES, SkipSet, make_rule, random_skip_set

STATE_FILE = "search_state.json"
WITHOUT_LOSSES = (*FIXED, "similarity")


@dataclass
class SearchConfig(Config):
    """Settings of the search for the skip set (paper section 4.3).

    Example:
        >>> import eas
        >>> eas.SearchConfig(rule="spread", warmup_steps=50).samples
        3
    """

    rule: str = option(
        "guided",
        f"rule that turns losses into importances: {', '.join(RULES)}; without losses: {', '.join(WITHOUT_LOSSES)}",
    )
    warmup_steps: int = option(100, "training steps under uniformly random skip sets before the first round")
    interval: int = option(10, "T: training steps between rounds")
    samples: int = option(3, "m: skip sets scored in a round, all on the same held-out batch")
    batch_size: int = option(32, "examples in the held-out batch of a round")
    num_skip_range: list[int] | None = option(
        None, "[low, high]: range of the set sizes; each set draws its size, so the search informs every k; null: k"
    )
    train: bool | None = option(
        None,
        "true: PIAs train before and between the rounds, as in the paper; false: only rounds, with the weights at the "
        "start; null: false where an untrained skip just leaves its module out (the residual form, and drop)",
    )
    score_dtype: str | None = option(None, "dtype of the rounds: 'bfloat16' (autocast); null: as in training")
    seed: int | None = option(
        None, "random seed of the skip sets, the rule and the order of the held-out examples; null: the training's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = (*RULES, *WITHOUT_LOSSES)
        self._require("rule", self.rule in rules, f"must be one of {', '.join(rules)}")
        self._require("warmup_steps", self.warmup_steps >= 0, "must be at least 0")
        self._require_counts("interval", "batch_size")
        self._require("samples", self.samples >= 2, "must be at least 2: a reward counts against its round's mean")
        self._require("samples", self.samples <= 1000, "must be at most 1000; every one of the sets is scored")
        self._require("seed", self.seed is None or 0 <= self.seed < 2**32, "must be at least 0 and below 2**32")
        sizes = self.num_skip_range
        fits = sizes is None or (len(sizes) == 2 and 0 <= sizes[0] <= sizes[1] > 0)
        self._require("num_skip_range", fits, "must be null or [low, high], 0 <= low <= high, high at least 1")
        self._require("score_dtype", self.score_dtype in (None, "bfloat16"), "must be null or 'bfloat16'")

    def trains(self, method: SkipConfig) -> bool:
        """Whether the search of a method trains.

        Example:
            >>> import eas
            >>> eas.SearchConfig().trains(eas.EASConfig(num_skip=2, form="paper"))
            True
        """
        return method.search_trains if self.train is None else self.train

    def round_after(self, step: int) -> bool:
        """Whether a round follows this training step, counted from 1."""
        return step in self.rounds_in(step)

    def rounds_in(self, steps: int) -> range:
        """The steps, counted from 1, that a round follows."""
        return range(self.warmup_steps or self.interval, steps + 1, self.interval)

    def require_round(self, steps: int) -> None:
        """Raises `ConfigError` where no round follows any of so many steps, which would choose a set without a loss."""
        if not self.rounds_in(steps):
            raise ConfigError(
                f"a search of {steps} steps has no round; search for {self.warmup_steps or self.interval} or more, or "
                f"lower SearchConfig.warmup_steps = {self.warmup_steps} and interval = {self.interval}"
            )


@dataclass(frozen=True)
class Round:
    """One round: its training step, the m skip sets, their m held-out losses, and the n importances afterwards."""

    step: int
    skip_sets: list[SkipSet]
    losses: list[float]
    importances: list[float]


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
        skip_set: the k attentions of least importance, ascending.
        ranking: all attentions, the most redundant first.
        importances: by attention.
        rounds: the history.
        round_seconds: time of the rounds.
        seconds: time of the whole search, with the runs before a resumption.
        cosines: by attention, what rule "guided" was told; None for other rules.
    """

    skip_set: SkipSet
    ranking: list[int]
    importances: list[float]
    rounds: list[Round]
    round_seconds: float
    seconds: float
    cosines: list[float] | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class SearchPhase(TrainerCallback):  # type: ignore[misc]
    """Runs the search inside a ``transformers.Trainer``.

    Args:
        model: an attached model with ``num_skip`` of at least 1.
        config: the search's own settings.
        held_out: examples outside the training; round i scores its sets on their i-th batch, cyclically.
        score: gives the losses of skip sets, each the mean over the same list of held-out examples.
        cosines: gives every candidate's similarity of input and output over held-out examples, nothing skipped.

    Raises:
        ConfigError: the model skips nothing or cannot skip as many, the rule needs no search, or there are no held-out
            examples.
    """

    def __init__(
        self,
        model: Any,
        config: SearchConfig,
        held_out: Sequence[Any],
        score: Callable[[list[SkipSet], list[Any]], list[float]],
        cosines: Callable[[list[Any]], list[float]],
    ) -> None:
        method = attachment(model).config
        if not isinstance(method, SkipConfig) or (num_skip := method.num_skip) == 0:
            kind = type(method).__name__
            raise ConfigError(f"{kind}.num_skip = 0: there is nothing to search; set it to at least 1")
        if config.rule in WITHOUT_LOSSES:
            raise ConfigError(
                f"rule = {config.rule!r} needs no search: eas.select(model, sorted(ranking[:k])), with the ranking of "
                "eas.searching.FIXED[rule](n, k, seed), or of eas.searching.similarity_ranking for 'similarity'"
            )
        if len(held_out) == 0:
            raise ConfigError("the search needs held-out examples; give it the validation split")
        self.model, self.config, self.held_out = model, config, held_out
        self.score, self.cosines = score, cosines
        self.num_candidates, self.num_skip = len(candidates(model)), num_skip
        self.sizes: tuple[int, int] | None = None
        if config.num_skip_range is not None:
            low, high = config.num_skip_range
            layers = len({block.index for block, _ in candidates(model)})
            if high >= layers:
                what = f"SearchConfig.num_skip_range = {config.num_skip_range}"
                raise ConfigError(f"{what}: {all_but_one(method.candidates, layers)}")
            self.sizes = low, high
        self.seed = config.seed or 0
        self.order = shuffled(len(held_out), self.seed)  # a file may be sorted by class
        self.rule = make_rule(config.rule, self.num_candidates, num_skip, self.seed)
        self.rounds: list[Round] = []
        self.round_seconds, self.earlier, self.start = 0.0, 0.0, time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.config.train is False:
            raise ConfigError("search.train = False: call search_phase.run(steps) instead of train()")
        self.config.require_round(state.max_steps)
        self.start = time.perf_counter()
        self.guide()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        warm = state.global_step < self.config.warmup_steps
        if warm:
            skip_set = random_skip_set(self.num_candidates, self.num_skip, self.seed, state.global_step, self.sizes)
        else:
            (skip_set,) = from_main(self.rule.propose(1, self.sizes))
        select(self.model, skip_set)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.config.round_after(state.global_step):
            self.round(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.rounds:  # else a callback stopped the training before the first
            select(self.model, self.result().skip_set)

    def run(self, steps: int, folder: Path | None = None, title: str = "") -> None:
        """Only the rounds of a search of ``steps`` training steps; the weights do not change.

        The model is left under the skip set that was found.
        With a folder it continues from the state that an earlier call wrote there, and writes its state after every
        round. With a title it shows its progress.

        Raises:
            ConfigError: so many steps have no round; or the state is damaged or of another search.
            FloatingPointError: a loss is not finite.
        """
        self.config.require_round(steps)
        if folder is not None and (folder / STATE_FILE).is_file():
            self.load(folder)
        self.start = time.perf_counter()
        self.guide()
        for step in track(self.config.rounds_in(steps)[len(self.rounds) :], title):
            self.round(step)
            if folder is not None and is_main():
                self.save(folder)
        select(self.model, self.result().skip_set)

    def guide(self) -> None:
        """Gives rule `guided` the similarities on the first round's batch, before anything is trained."""
        if isinstance(self.rule, GuidedRule) and self.rule.cosines is None:
            self.rule.guide(from_main(self.cosines(self.batch(0))))

    def batch(self, i: int) -> list[Any]:
        """The held-out examples of the i-th round."""
        size, count = self.config.batch_size, len(self.held_out)
        return [self.held_out[self.order[at % count]] for at in range(i * size, i * size + min(size, count))]

    def round(self, step: int) -> None:
        """One round: m skip sets (Eq. 14), their losses on one held-out batch (Eq. 15), new importances (Eq. 16)."""
        start = time.perf_counter()
        batch = self.batch(len(self.rounds))
        skip_sets = from_main(self.rule.propose(self.config.samples, self.sizes))
        losses = self.score(skip_sets, batch)
        if not all(map(isfinite, losses)):
            raise FloatingPointError(
                f"the held-out losses of the round at step {step} are {losses}; lower learning_rate or train in float32"
            )
        self.rule.observe(skip_sets, losses)
        self.rounds.append(Round(step, skip_sets, losses, self.rule.importances()))
        self.round_seconds += time.perf_counter() - start

    def result(self) -> SearchResult:
        """The result of the rounds so far.

        Raises:
            ConfigError: there was none.
        """
        if not self.rounds:
            raise ConfigError("the search has made no round yet, so no set is better than another; train or run it")
        ranking = self.rule.ranking()
        skip_set = tuple(sorted(ranking[: self.num_skip]))
        importances = self.rule.importances()
        told = self.rule.cosines if isinstance(self.rule, GuidedRule) else None
        return SearchResult(skip_set, ranking, importances, self.rounds, self.round_seconds, self.seconds(), told)

    def seconds(self) -> float:
        """Wall time of the search so far, over all its runs."""
        return self.earlier + time.perf_counter() - self.start

    def settings(self) -> dict[str, Any]:
        """What decides, beside the losses, which sets a search scores."""
        given = {key: value for key, value in asdict(self.config).items() if key not in ("train", "score_dtype")}
        return {**given, "num_skip": self.num_skip, "seed": self.seed}

    def save(self, folder: Path) -> None:
        """Writes the rule's state and the history beside a checkpoint."""
        state = {
            "search": self.settings(),
            "rule": self.rule.state_dict(),
            "rounds": [asdict(r) for r in self.rounds],
            "round_seconds": self.round_seconds,
            "seconds": self.seconds(),
        }
        write_text(folder / STATE_FILE, json.dumps(state))

    def load(self, folder: Path) -> None:
        """Continues from the state that ``save`` wrote.

        A state of an older version does not name its search's settings, and is taken as this search's.

        Raises:
            ConfigError: the file is missing, damaged, or belongs to another search.
        """
        path, remedy = folder / STATE_FILE, "name another checkpoint of this search or start over"
        with raised_as(ConfigError):
            state = read_record(path, SearchState, remedy)
            if wrong := self._misfit(state):
                raise RecordError(f"{path}: {wrong}; {remedy}")
        try:
            self.rule.load_state_dict(state["rule"])
        except RecordError as error:
            raise ConfigError(f"{path}: {error}; {remedy}") from error
        self.rounds = [
            Round(r["step"], [tuple(s) for s in r["skip_sets"]], r["losses"], r["importances"]) for r in state["rounds"]
        ]
        self.round_seconds, self.earlier = state["round_seconds"], state["seconds"]

    def _misfit(self, state: SearchState) -> str | None:
        """The first setting, or entry of the history, that does not fit this search, in words; None if all fit."""
        theirs = state.get("search", {})
        for name, own in self.settings().items():
            if theirs.get(name, own) != own:
                return f"it is of a search with {name} = {theirs[name]!r}, and this one has {own!r}"
        known = range(self.num_candidates)
        for i, r in enumerate(state["rounds"]):
            if len(r["losses"]) != len(r["skip_sets"]) or len(r["importances"]) != len(known):
                return f"rounds[{i}] has not one loss for each skip set, or not one importance for each candidate"
            if strange := [s for s in r["skip_sets"] if len({*s}) < len(s) or not {*s} <= {*known}]:
                return f"rounds[{i}].skip_sets holds {strange[0]}; the candidates are 0 to {len(known) - 1}"
        return None
