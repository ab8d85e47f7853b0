"""Each of METER's tasks on data in its official layout: trained until it knows a handful, scored officially."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_meter import tokenizer
from test_meter_contract import build, tuned
from transformers import TrainingArguments

import eas
from eas.data import load_data
from eas.example import DataError
from eas.metrics.vqa import answer_vocabulary, soft_targets
from eas.models.meter import TASKS, MeterProcessor
from eas.tasks.collate_meter import MeterCollator
from eas.tasks.evaluation_meter import evaluate_meter, score_retrieval
from eas.training import EASTrainer

torch.set_num_threads(1)
COLOURS = {"red": (220, 30, 20), "blue": (20, 40, 210), "cat": (30, 200, 40)}  # the last is a word of the vocabulary


def picture(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), COLOURS[name]).save(path)


def vqa(folder):
    """Six questions, of colours and of two directions that the image does not show."""
    questions, annotations = [], []
    for i, name in enumerate(COLOURS):
        picture(folder / "train2014" / f"COCO_train2014_{i:012d}.jpg", name)
        for j, (question, answer) in enumerate((("is this red", name), ("the left cat", "left" if i else "right"))):
            id = 10 * i + j
            questions.append({"image_id": i, "question": question, "question_id": id})
            answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(10)]
            rest = {"image_id": i, "question_id": id, "answer_type": "other", "question_type": "is"}
            annotations.append({**rest, "answers": answers, "multiple_choice_answer": answer})
    head = {"data_type": "mscoco", "data_subtype": "train2014"}
    asked, answered = head | {"questions": questions}, head | {"annotations": annotations}
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps(asked))
    (folder / "v2_mscoco_train2014_annotations.json").write_text(json.dumps(answered))
    return load_data(f"vqa2:{folder}", "train2014", options={"prompt": "question"})


def nlvr2(folder):
    """Is the left one red?"""
    rows = []
    for i, (left, right, label) in enumerate(
        (("red", "blue", "True"), ("blue", "red", "False"), ("cat", "red", "False"), ("red", "cat", "True"))
    ):
        for n, name in enumerate((left, right)):
            picture(folder / "dev" / f"dev-{i}-0-img{n}.png", name)
        rows.append({"identifier": f"dev-{i}-0-0", "sentence": "the left is red", "label": label})
    (folder / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    return load_data(f"nlvr2:{folder}", "dev")


def flickr30k(folder):
    """Three images with two captions each."""
    images = []
    for i, name in enumerate(COLOURS):
        picture(folder / "flickr30k-images" / f"{i}.jpg", name)
        sentences = [{"raw": text} for text in (f"this is {name}", f"a {name} dog in the left")]
        images.append({"filename": f"{i}.jpg", "split": "test", "sentences": sentences})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    return load_data(f"flickr30k:{folder}", "test")


def processor():
    return MeterProcessor.of_size(tokenizer(), 16)


def learned(task, examples, collator, tmp_path, steps=80):
    """A tiny METER under EAS with two attentions skipped, head along, until it knows the examples."""
    model = build(task)
    if task == "vqa":
        config = model.config
        config.num_answers = len(collator.vocabulary)
        config.label2id, config.id2label = dict(collator.vocabulary), {i: a for a, i in collator.vocabulary.items()}
        torch.manual_seed(0)
        model = TASKS[task](config)
    eas.attach(model, eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4, train_projector=True))
    eas.select(model, (1, 6))
    eas.prune(model)
    args = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=steps,
        learning_rate=2e-2,
        per_device_train_batch_size=len(examples),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    EASTrainer(model, args, train_dataset=examples, data_collator=collator).train()
    return model.eval()


def test_vqa(tmp_path):
    examples = vqa(tmp_path)
    vocabulary = answer_vocabulary([example.target for example in examples], min_count=1)
    collator = MeterCollator(processor(), "vqa", vocabulary=vocabulary)
    batch = collator(examples)
    assert batch["labels"].shape == (6, 5)
    assert batch["labels"][0].tolist() == [soft_targets(["red"] * 10, vocabulary).get(i, 0.0) for i in range(5)]
    model = learned("vqa", examples, collator, tmp_path)
    result = evaluate_meter(model, processor(), examples, "vqa2", batch_size=4)
    assert result.report.numbers["overall"] == 100.0
    assert result.answers["0"] == "red"
    untrained = evaluate_meter(learned("vqa", examples, collator, tmp_path, 1), processor(), examples, "vqa2")
    assert untrained.report.numbers["overall"] < 100
    assert type(model).config_class.from_dict(model.config.to_dict()).id2label == {i: a for a, i in vocabulary.items()}


def test_evaluation_names_what_the_processor_refuses(tmp_path):
    def refusing(images, texts):
        if texts[-1] == examples[1].question:
            raise OverflowError("too much")
        return processor()(images, texts)

    examples = vqa(tmp_path)[:2]
    model = build("vqa")
    with pytest.raises(DataError, match=rf"example {examples[1].id}: the processor refuses it \(OverflowError: too"):
        evaluate_meter(model, refusing, examples, "vqa2")


def test_nlvr2(tmp_path):
    examples = nlvr2(tmp_path)
    collator = MeterCollator(processor(), "nlvr2")
    batch = collator(examples)
    assert batch["pixel_values"].shape == (4, 2, 3, 16, 16)
    assert batch["labels"].tolist() == [1, 0, 0, 1]
    left = processor()(examples[1].load_images()[:1])["pixel_values"][0]
    assert torch.equal(batch["pixel_values"][1, 0], left)
    result = evaluate_meter(learned("nlvr2", examples, collator, tmp_path), processor(), examples, "nlvr2")
    assert result.report.numbers == {"accuracy": 100.0, "consistency": 100.0}


def test_retrieval(tmp_path):
    examples = flickr30k(tmp_path)
    collator = MeterCollator(processor(), "retrieval", captions=examples, negatives=3)
    torch.manual_seed(0)
    batch = collator(examples)
    assert batch["input_ids"].shape[:2] == (6, 4)
    own = processor()(text=[example.target for example in examples])["input_ids"]
    assert torch.equal(batch["input_ids"][:, 0, : own.shape[1]], own)
    for row, example in zip(batch["input_ids"], examples, strict=True):
        theirs = [t for t, e in zip(own, examples, strict=True) if e.metadata["image"] == example.metadata["image"]]
        assert not any(torch.equal(other, t) for other in row[1:, : own.shape[1]] for t in theirs)
    model = learned("retrieval", examples, collator, tmp_path)
    report = score_retrieval(model, processor(), examples, tmp_path / "scores.npy", block=2, pairs=5)
    assert report.numbers["IR@1"] == report.numbers["TR@1"] == 100.0
    scores = np.load(tmp_path / "scores.npy")
    assert scores.shape == (3, 6)
    one = processor()(examples[3].load_images(), [examples[4].target])
    assert scores[1, 4] == pytest.approx(model(**one).logits.item(), abs=1e-4)


def test_what_does_not_fit_a_task_is_refused(tmp_path):
    examples = nlvr2(tmp_path)
    with pytest.raises(DataError, match="example dev-0-0-0: 2 images, where METER's vqa has 1"):
        MeterCollator(processor(), "vqa", vocabulary={"yes": 0})(examples)
    with pytest.raises(ValueError, match="vqa needs its vocabulary"):
        MeterCollator(processor(), "vqa")
    with pytest.raises(ValueError, match="task 'snli': use one of vqa, nlvr2, retrieval"):
        MeterCollator(processor(), "snli")
    captions = flickr30k(tmp_path)
    with pytest.raises(DataError, match="no captions of other images"):
        MeterCollator(processor(), "retrieval", captions=captions[:2])(captions[:1])
    with pytest.raises(ValueError, match="use vqa2 or nlvr2"):
        evaluate_meter(tuned("eas"), processor(), examples, "flickr30k")
