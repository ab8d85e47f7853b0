"""VQA v2.0 (Goyal et al., 2017), in its official files or from the Hub; scored as the official evaluator does.

Official layout: ``v2_OpenEnded_mscoco_{split}_questions.json`` and ``v2_mscoco_{split}_annotations.json``, plain or
``.gz``, in the folder or in its ``Questions`` and ``Annotations``; images ``COCO_{subtype}_{image_id:012d}.jpg`` in
``{subtype}/``, where the questions file names the subtype (train2014 for any subset of it). Hub: lmms-lab/VQAv2.
Of an official split, "held_{split}" is a tenth by image, and "fit_{split}" the rest: a run trains on the latter of
train2014 and validates on the former, so its search is scored neither on training nor on test images.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.hub import hub_rows
from eas.data.official import find_file, find_folder, id_of, read_json, text_of
from eas.errors import shown
from eas.example import DataError, Example, ImageSource
from eas.metrics.report import Report
from eas.metrics.vqa import percent, percent_by, vqa_accuracy

SPLITS = ("train2014", "val2014", "test2015", "test-dev2015")
INSTRUCTION = "Answer the question using a single word or phrase."
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_HUB_SPLITS = {"val2014": "validation", "test2015": "test", "test-dev2015": "testdev"}
_ANNOTATION = ("answers", "multiple_choice_answer", "answer_type", "question_type")
_COLUMNS = {name: name for name in ("question_id", "image_id", "question", "image", *_ANNOTATION)}


@dataclass
class VQA2Options(DataOptions):
    """Options of VQA v2.0."""

    prompt: str = option(
        "instruction", "'instruction': ask for a single word or phrase, as LLaVA; 'question': it alone"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("prompt", self.prompt in ("instruction", "question"), "must be instruction or question")


def _load(source: Source, split: str, options: VQA2Options) -> Examples:
    """One example per question; its target is the multiple_choice_answer, empty for the test splits.

    Raises:
        DataError: a file is missing or broken, the split is unknown, or questions and annotations are not of one set.
    """
    part, _, rest = split.partition("_")
    if part in ("fit", "held"):
        whole = _load(source, rest, options)
        held = [zlib.crc32(str(row["image_id"]).encode()) % 10 == 0 for row in whole.rows]
        rows = [row for row, held_out in zip(whole.rows, held, strict=True) if held_out == (part == "held")]
        return Examples(rows, whole.build)
    if source.hub:
        name = split if split in options.splits else _HUB_SPLITS.get(split, split)
        optional = _ANNOTATION if split.startswith("test") else ()
        return Examples(hub_rows(source, name, options, _COLUMNS, optional), partial(_from_hub, options=options))
    questions = _questions(source.folder, split)
    annotations: dict[int, Mapping[str, Any]] | None = None
    if not split.startswith("test"):
        path = find_file(source.folder, f"v2_mscoco_{split}_annotations.json", (".", "Annotations"))
        rows = _list(read_json(path, _compact), "annotations", path)
        annotations = {row["question_id"]: row for row in rows}
        strangers = annotations.keys() - {row.get("question_id") for row in questions["questions"]}
        if strangers or len(annotations) < len(rows):
            some = ", ".join(map(str, sorted(strangers)[:5]))
            raise DataError(
                f"{path}: {len(rows) - len(annotations)} question_ids occur twice and {len(strangers)} are not in the "
                f"questions ({some}); take both files from one release"
            )
    # Both test sets ask about the images of test2015.
    subtype = {"test-dev2015": "test2015"}.get(questions["data_subtype"], questions["data_subtype"])
    places = (subtype, f"Images/mscoco/{subtype}", f"Images/{subtype}", f"images/{subtype}")
    images = Path(options.images) if options.images else find_folder(source.folder, places)
    build = partial(_from_files, annotations=annotations, images=images, subtype=subtype, options=options)
    return Examples(questions["questions"], build)


def _questions(folder: Path, split: str) -> dict[str, Any]:
    """The questions file, a list under "questions" and the data_subtype beside it."""
    pattern, places = QUESTIONS.format("*"), (".", "Questions")
    present = {file.name for place in places for file in (folder / place).glob(f"{pattern}*")}
    before, after = pattern.split("*")
    splits = sorted(name.removeprefix(before).partition(after)[0] for name in present)
    if split not in (*splits, *SPLITS):
        raise unknown_split(f"{folder}", split, splits or SPLITS)
    path = find_file(folder, QUESTIONS.format(split), places)
    content = read_json(path)
    _list(content, "questions", path)
    if not isinstance(content.get("data_subtype"), str):
        raise DataError(f"{path} has no key 'data_subtype', which names the images; restore the official header")
    return dict(content)


def _list(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path} has no list under {key!r}; is it the official file?")
    rows: list[dict[str, Any]] = content[key]
    for number, row in enumerate(rows):
        ids = (row.get("question_id"), row.get("image_id")) if isinstance(row, dict) else ()
        if not ids or any(isinstance(id, bool) or not isinstance(id, int) for id in ids):
            raise DataError(
                f"{path}: an entry of {key!r} has no question_id or image_id that is a whole number ([{number}] is "
                f"{shown(row)}); is it the official file?"
            )
    return rows


def _compact(value: dict[str, Any]) -> Any:
    """An annotator's record becomes the answer, kept once: ten records a question would take gigabytes."""
    answer = value.get("answer")
    return sys.intern(answer) if "answer_id" in value and isinstance(answer, str) else value


def _from_files(
    question: Mapping[str, Any],
    annotations: Mapping[int, Mapping[str, Any]] | None,
    images: Path,
    subtype: str,
    options: VQA2Options,
) -> Example:
    id = question["question_id"]
    if annotations is not None and id not in annotations:
        raise DataError(f"question {id} has no annotation; take both files from one release, or drop it")
    image = images / f"COCO_{subtype}_{question['image_id']:012d}.jpg"
    return _example({**question, **(annotations[id] if annotations is not None else {})}, image, options)


def _from_hub(row: Mapping[str, Any], options: VQA2Options) -> Example:
    try:
        answers = [answer["answer"] for answer in row.get("answers") or ()]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"question {row['question_id']}: its answers have no {error}; expected the official form"
        ) from error
    return _example({**row, "answers": answers}, row["image"], options)


def _example(row: Mapping[str, Any], image: ImageSource, options: VQA2Options) -> Example:
    id = id_of(row, "question_id", "a question")
    question, answers = text_of(row, "question", f"question {id}"), row.get("answers") or ()
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"question {id}: answers are {shown(answers)}; expected a list of the annotators' answers")
    about = dict.fromkeys(_ANNOTATION[1:], "")
    if answers:
        about = {key: text_of(row, key, f"question {id}") for key in about}
    target = about.pop("multiple_choice_answer")
    ask = question if options.prompt == "question" else f"{question}\n{INSTRUCTION}"
    return Example.ask(id, ask, target, image, metadata={"answers": tuple(answers), **about})


def _score(examples: Sequence[Example], predictions: Mapping[str, str], options: VQA2Options) -> Report:
    """VQA accuracy overall, by answer type, and by question type.

    Raises:
        DataError: the split has no answers.
    """
    scores, answer_types, question_types = {}, [], []
    for example in examples:
        if not example.metadata["answers"]:
            raise DataError(f"question {example.id} has no answers to score against; upload test predictions to EvalAI")
        scores[example.id] = vqa_accuracy(predictions[example.id], example.metadata["answers"])
        answer_types.append(example.metadata["answer_type"])
        question_types.append(f"question type: {example.metadata['question_type']}")
    values = list(scores.values())
    numbers = {"overall": percent(values), **percent_by(values, answer_types), **percent_by(values, question_types)}
    return Report(sum(values) / len(values), numbers, scores, Counter(answer_types + question_types))


def _read_predictions(path: Path) -> dict[str, str]:
    """The official result file: ``[{"question_id": int, "answer": str}]``.

    Raises:
        DataError: it is not such a list, or a question occurs twice.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path} holds no list; expected [{{"question_id": 1, "answer": "yes"}}, ...]')
    predictions: dict[str, str] = {}
    for number, row in enumerate(rows):
        match row:
            case {"question_id": bool()}:
                raise DataError(f"{path}[{number}]: question_id is {row['question_id']}; expected a whole number")
            case {"question_id": int() as id, "answer": str(answer)} if str(id) not in predictions:
                predictions[str(id)] = answer
            case {"question_id": int() as id, "answer": str()}:
                raise DataError(f"{path}[{number}]: question {id} occurs twice; give one answer each")
            case _:
                raise DataError(f'{path}[{number}]: expected {{"question_id": 1, "answer": "yes"}}, found {shown(row)}')
    return predictions


VQA2 = Benchmark(
    name="vqa2",
    splits=(*SPLITS, "fit_train2014", "held_train2014"),
    parts={"train": "fit_train2014", "validation": "held_train2014", "test": "val2014"},
    load=_load,
    score=_score,
    read_predictions=_read_predictions,
    options=VQA2Options,
)
