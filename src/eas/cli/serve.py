"""The verb that answers requests over the network."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import app
from eas.terminal import console


class Engine(StrEnum):
    """What computes the answers."""

    EAS = "eas"
    VLLM = "vllm"


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a run, an adapter, a standalone model or a base; a GGUF file; 'smollm2-135m', 'smol' or "
            "'tiny'.",
            show_default=False,
        ),
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of vLLM, after --.", metavar="[-- OPTIONS]", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets other machines in.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; by default its folder's.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype of the weights; by default the run's or the base's, but float32 where the CPU computes that in "
            "software; with vLLM bfloat16."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter; by default the one that it names.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the tokenizer or processor; by default the base's.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="eas itself, or vLLM with the plugin eas-vllm in an environment of its own.")
    ] = Engine.EAS,
    python: Annotated[
        str | None, typer.Option(help="Python of vLLM's environment: ENVIRONMENT/bin/python.", show_default=False)
    ] = None,
) -> None:
    """Serve a model, folded, to OpenAI's clients: text and images, streaming.

    eas itself answers one request after another. With --engine vllm the model is exported, once, and vLLM answers many
    requests at a time. Anybody who reaches the port may ask. Ctrl-C stops the server.
    """
    from eas.pipeline.serve import listening

    called = name or (Path(model).resolve().name if Path(model).is_dir() else model)
    at = f"[{host}]" if ":" in host else host

    def say(port: int, when: str = "") -> None:
        said = f"serving {called} at http://{at}:{port}/v1{when}; Ctrl-C stops it"
        console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)

    if engine == Engine.VLLM:
        from eas.pipeline.serve_vllm import exported, replaced_by_vllm, require_vllm

        python = require_vllm(python)
        with listening(host, port):  # a port that is taken is said before the model is loaded
            folder = exported(model, base, processor, dtype)
        with listening(host, port) as socket:
            port = socket.getsockname()[1]
        say(port, " as soon as vLLM is ready")
        replaced_by_vllm(python, folder, called, host, port, options or [])
    if python is not None or options:
        raise ValueError("--python and options after -- are vLLM's; add --engine vllm")
    from eas.pipeline.serve import application, require_packages, served

    require_packages()
    with listening(host, port) as socket:
        import uvicorn

        server = uvicorn.Server(
            uvicorn.Config(application(*served(model, base, processor, dtype), called), log_level="warning")
        )
        say(socket.getsockname()[1])
        server.run(sockets=[socket])
