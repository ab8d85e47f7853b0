"""VQA accuracy and the soft-score targets of VQA v2.0, digit for digit those of the official evaluator and of METER.

Sources: GT-Vision-Lab/VQA, vqaEval.py (normalisation, accuracy); METER, write_vqa.py (answer vocabulary, soft scores).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache

from eas.example import DataError, Example

FEWEST = 4
"""Annotators of a question: with fewer, no answer can score 1, because each one is left out in turn."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
# The official table, slips included; its keys with capitals never match, because the text is lower case by then.
_CONTRACTIONS = """
    aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
    didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
    havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's Id've:I'd've
    I'dve:I'd've Im:I'm Ive:I've isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll let's:let's maam:ma'am
    mightnt:mightn't mightnt've:mightn't've mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've
    neednt:needn't notve:not've oclock:o'clock oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at
    shant:shan't shed've:she'd've she'dve:she'd've she's:she's shouldve:should've shouldnt:shouldn't
    shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd somebodyd've:somebody'd've
    somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd someoned've:someone'd've
    someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd
    somethingd've:something'd've something'dve:something'd've somethingll:something'll thats:that's thered:there'd
    thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've
    they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've
    we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's
    whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
    whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
    wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've
    y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're
    youve:you've
"""
CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTIONS.split())


@lru_cache(maxsize=1 << 18)
def normalise(text: str) -> str:
    """The official processPunctuation, then processDigitArticle.

    Each mark of ``;/[]"{}()=+\\_-><@`,?!`` is deleted if it touches a space anywhere in the text, or if the text holds
    a comma between two digits; otherwise it becomes a space. Of the periods that no digit follows, the first 32 go.
    Then lower case; number words to ten become digits (none and zero: 0), articles go, contractions get apostrophes.

    The official program is of Python 2: its digits are 0 to 9, not those of other scripts.
    """
    return _normalised(text, re.ASCII)


@lru_cache(maxsize=1 << 18)
def normalise_word(text: str) -> str:
    """METER's and the Slake authors' normalize_word: as `normalise`, in Python 3, where digits are those of any script.

    It deletes commas at last: none is left by then.
    """
    return _normalised(text, re.UNICODE)


def _normalised(text: str, digits: re.RegexFlag) -> str:
    grouped = re.search(r"\d,\d", text, digits) is not None
    marks = [mark for mark in _PUNCTUATION if mark in text]
    deleted = {mark: grouped or f"{mark} " in text or f" {mark}" in text for mark in marks}
    text = text.translate({ord(mark): "" if delete else " " for mark, delete in deleted.items()})
    # 32 is the official call's re.UNICODE, which it passes in the place of the count.
    text = re.sub(r"\.(?!\d)", "", text, count=32, flags=digits)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy in [0, 1] of one prediction: the mean, over the annotators, of min(1, other annotators agreeing / 3).

    Where all annotators gave the same answer, the comparison is raw: case, articles and punctuation count.

    Args:
        prediction: the answer given.
        answers: the annotators' answers, ten in VQA v2.0.
    """
    prediction, *cleaned = (re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers))
    if len(set(cleaned)) > 1:
        prediction, *cleaned = map(normalise, (prediction, *cleaned))
    agrees = [answer == prediction for answer in cleaned]
    matches = sum(agrees)
    return sum(min(1.0, (matches - own) / 3) for own in agrees) / len(agrees)


def few_answers(example: Example) -> bool:
    """Whether an example has annotators' "answers", but too few for `vqa`."""
    return 0 < len(example.metadata.get("answers", ())) < FEWEST


def vqa(prediction: str, example: Example) -> float:
    """`vqa_accuracy` where the example's metadata has the annotators' "answers"; else equality, both normalised.

    Raises:
        DataError: the answers are fewer than `FEWEST`.
    """
    answers = example.metadata.get("answers", ())
    if few_answers(example):
        raise DataError(
            f"example {example.id}: {len(answers)} of {FEWEST} `answers` that metric=vqa needs at least: each is "
            "compared with the others, and 3 of those make a right answer. Give every annotator's answer, or use "
            "metric=exact, or leave `answers` out: then metric=vqa compares with the one answer of the row"
        )
    if answers:
        return vqa_accuracy(prediction, answers)
    return float(normalise(prediction) == normalise(example.target))


def percent(scores: Sequence[float]) -> float:
    """The mean of scores in [0, 1] as a percentage of two decimals, as the official evaluator rounds it.

    Exact ties go up, as in its Python 2: 18.125 is 18.13.
    """
    exact = Decimal(100 * sum(scores) / len(scores))
    return float(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))


def percent_by(scores: Iterable[float], groups: Iterable[str]) -> dict[str, float]:
    """`percent` of every group (answer type, question type), by name."""
    by_group = defaultdict(list)
    for score, group in zip(scores, groups, strict=True):
        by_group[group].append(score)
    return {group: percent(by_group[group]) for group in sorted(by_group)}


def answer_vocabulary(answers: Iterable[str], min_count: int = 9) -> dict[str, int]:
    """The answers that are classes, and their class: frequent after `normalise_word`, in order of first appearance.

    Args:
        answers: the multiple_choice_answer of every question of train, then of validation; on all of VQA v2.0 they
            make 3,129 classes.
        min_count: the fewest times an answer must occur.
    """
    counts = Counter(map(normalise_word, answers))
    frequent = (answer for answer, count in counts.items() if count >= min_count)
    return {answer: index for index, answer in enumerate(frequent)}


def soft_targets(answers: Iterable[str], vocabulary: Mapping[str, int]) -> dict[int, float]:
    """The score of each class for one question: .3, .6, .9, 1 for 1, 2, 3, 4 or more annotators; others score 0.

    Annotators' answers are looked up as they stand, not normalised, as in METER.
    """
    counts = Counter(answers)
    return {
        vocabulary[answer]: (0.3, 0.6, 0.9, 1.0)[min(count, 4) - 1]
        for answer, count in counts.items()
        if answer in vocabulary
    }
