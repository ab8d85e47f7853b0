"""The verb that asks a run's model many questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import Folder, app
from eas.terminal import printable


@app.command()
def predict(
    folder: Folder,
    questions: Annotated[Path, typer.Argument(help="JSON lines of questions; see docs/howto.md.", show_default=False)],
    output: Annotated[
        Path, typer.Option(help="File of the answers: JSON lines with id and answer.", show_default=False)
    ],
    batch_size: Annotated[
        int | None, typer.Option(help="Questions at a time; by default the run's eval_batch_size.", min=1)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of an answer.", min=1)] = 64,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that image paths are relative to; by default that of the questions.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer a file of questions with the tuned, folded model of a run.

    Every answer is written at once. If the command was stopped, the same command continues and answers no question
    twice. It never overwrites an output of another run or of other questions. The last line is JSON.
    """
    from eas.pipeline import Run
    from eas.pipeline.predict import predict as answer_all

    answered = answer_all(Run.open(folder), questions, output, batch_size, max_new_tokens, images)
    print(printable(json.dumps({"predictions": str(output), "answers": answered}, ensure_ascii=False)))
