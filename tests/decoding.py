"""Ways of decoding a forced answer, and the batches that training would see."""

import torch
from families import image_inputs, logits


def decode(model, inputs, answer, **more):
    """Logits of the answer's tokens, ``(batch, tokens, vocab)``, decoded step by step while the answer is forced."""
    start = inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs,
        max_new_tokens=answer.shape[1],
        output_logits=True,
        return_dict_in_generate=True,
        do_sample=False,
        logits_processor=[lambda ids, scores: scores.scatter(1, answer[:, ids.shape[1] - start, None], torch.inf)],
        **more,
    )
    assert torch.equal(out.sequences[:, start:], answer)
    return torch.stack(out.logits, 1)


def answered(inputs, answer, pad="left", labels=True):
    """The teacher-forced batch, and where each row's answer is predicted: ``(batch, tokens)`` positions."""
    batch = {**inputs, "labels": torch.full_like(inputs["input_ids"], -100)} if labels else dict(inputs)
    added = {"input_ids": answer, "attention_mask": torch.ones_like(answer), "labels": answer}
    added["mm_token_type_ids"] = torch.zeros_like(answer)
    for key in batch.keys() & added.keys():
        batch[key] = torch.cat([batch[key], added[key]], 1)
    where = torch.arange(answer.shape[1]).repeat(len(answer), 1) + inputs["input_ids"].shape[1] - 1
    if pad == "right":
        for row, blank in enumerate((inputs["attention_mask"] == 0).sum(1).tolist()):
            where[row] -= blank
            for key in batch.keys() & added.keys():
                batch[key][row] = batch[key][row].roll(-blank)
    return batch, where


def teacher_forced(model, inputs, answer, pad="left"):
    batch, where = answered(inputs, answer, pad)
    return logits(model, batch).gather(1, where[..., None].expand(-1, -1, model.config.get_text_config().vocab_size))


def alone(family, inputs, row, shown):
    """One row of a batch as a batch of its own, without padding."""
    keep = inputs["attention_mask"][row].bool()
    single = {key: inputs[key][row : row + 1, keep] for key in inputs if inputs[key].shape == inputs["input_ids"].shape}
    pixels, _ = image_inputs(family, sum(shown))
    if shown[row]:
        for key, value in pixels.items():
            single[key] = value.chunk(sum(shown))[sum(shown[:row])]
    return single


def answers(count, tokens=5, seed=3):
    return torch.randint(6, 64, (count, tokens), generator=torch.Generator().manual_seed(seed))
