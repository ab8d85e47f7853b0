"""What freezing the prompt statistics changes (Table 6, "+ frozen bias"): the answers of runs of a comparison.

python benchmarks/frozen_statistics.py runs/methods/runs/eas-k6-s0 ... > benchmarks/frozen_statistics.json

"refreshed" computes alpha and c anew at every token, from prompt and answer so far, as the paper's model does before
this step; it needs no cache of them, but every block's input of every token again. "frozen" is what the library does.
"""

import json
import statistics
import sys

import torch

from eas.attachment.load import load
from eas.attachment.save import library_versions
from eas.measure.latency import git_revision, hardware
from eas.metrics import METRICS
from eas.pipeline import Run
from eas.tasks.collate import Collator


@torch.inference_mode()
def answers(model, batch, new_tokens, stop, refreshed):
    """Greedy tokens of one batch, without a cache in both cases, so that nothing but the statistics differs."""
    ids, mask, prompt_mask = batch["input_ids"], batch["attention_mask"], batch["attention_mask"].bool()
    images, length = {"pixel_values": batch["pixel_values"]}, batch["input_ids"].shape[1]
    for _ in range(new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "prompt_mask": prompt_mask}
        token = model(**given, **images, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
        seen = torch.full_like(token, refreshed, dtype=torch.bool)
        prompt_mask = torch.cat([prompt_mask, seen], 1)
        if ((ids[:, length:] == stop).any(1)).all():
            break
    return ids[:, length:]


def main(folders):
    torch.set_num_threads(1)
    results = []
    for folder in folders:
        run = Run.open(folder)
        model = load(run.load_base(), run.folder / "adapter").eval()
        collate, examples = Collator(run.processor, training=False), run.data("test")
        score, said = {}, {}
        for at in range(0, len(examples), run.config.eval_batch_size):
            part = [examples[i] for i in range(at, min(at + run.config.eval_batch_size, len(examples)))]
            batch = collate(part)
            for refreshed in (False, True):
                stop = collate.tokenizer.eos_token_id
                tokens = answers(model, batch, run.task.answer_limit(run), stop, refreshed)
                texts = [
                    t.strip() for t in collate.tokenizer.batch_decode(_cut(tokens, stop), skip_special_tokens=True)
                ]
                said.setdefault(refreshed, []).extend(texts)
                hits = [METRICS[run.config.metric_name](t, e) for t, e in zip(texts, part, strict=True)]
                score.setdefault(refreshed, []).extend(hits)
        results.append(
            {
                "run": run.folder.name,
                "frozen": statistics.mean(score[False]),
                "refreshed": statistics.mean(score[True]),
                "same_answers": statistics.mean(a == b for a, b in zip(said[False], said[True], strict=True)),
            }
        )
    print(
        json.dumps(
            {
                "runs": results,
                "git_revision": git_revision(),
                "versions": library_versions(),
                "hardware": hardware(),
            }
        )
    )


def _cut(tokens, stop):
    ended = (tokens == stop).cumsum(1) > 0
    return tokens.masked_fill(ended, stop)


if __name__ == "__main__":
    main(sys.argv[1:])
