"""The verb that answers requests over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import app
from eas.terminal import console


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a run, an adapter, a standalone model or a base; or 'tiny'.", show_default=False
        ),
    ],
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; by default its folder's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the weights; by default the run's or the base's.")] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter; by default the one that it names.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the tokenizer or processor; by default the base's.")
    ] = None,
) -> None:
    """Serve a model, folded, to OpenAI's clients: text and images, streaming.

    Requests run one after another. Anybody who reaches the port may ask. Ctrl-C stops the server.
    """
    from eas.pipeline.serve import application, listening, require_packages, served

    require_packages()
    with listening(host, port) as socket:
        import uvicorn

        called = name or (Path(model).resolve().name if Path(model).is_dir() else model)
        server = uvicorn.Server(
            uvicorn.Config(application(*served(model, base, processor, dtype), called), log_level="warning")
        )
        at = f"[{host}]" if ":" in host else host
        console(stderr=True).print(
            f"serving {called} at http://{at}:{socket.getsockname()[1]}/v1; Ctrl-C stops it",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        server.run(sockets=[socket])
