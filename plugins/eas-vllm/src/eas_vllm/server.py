"""vLLM's own OpenAI server, which a signal ends completely: ``python -m eas_vllm.server OPTIONS``.

A terminal sends Ctrl-C to all processes of a group at once, and each of vLLM's would answer it. So vLLM has a group
of its own, and only its first process is told to end, which tells its others.
"""

import ctypes
import logging
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

GRACE = 5.0
"""Seconds that what is left of vLLM gets after its first process has ended."""
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
"""Of Linux: what a process hears when its parent ends; a process becomes the parent of those that lose theirs."""


def supervised(command: list[str], grace: float = GRACE) -> int:
    """Runs a command until it ends or this process is told to end; nothing that the command started is left then.

    Once the command has sent SIGUSR1, the first SIGINT, SIGTERM or SIGHUP asks it to end. Before, and by a second
    signal, all of it is killed: while vLLM starts, it may miss a signal, and its processes complain of each other.

    Returns:
        The command's exit status, or 0 if it was told to end.
    """
    told = serving = False

    def started(number: int, frame: object) -> None:
        nonlocal serving
        serving = True

    def end(number: int, frame: object) -> None:
        nonlocal told
        with suppress(ProcessLookupError):  # it has ended by itself
            if serving and not told:
                process.terminate()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        told = True

    heard = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    signals = [number for number in heard if signal.getsignal(number) != signal.SIG_IGN]  # nohup's
    signal.signal(signal.SIGUSR1, started)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # none comes before there is a process to pass it to
    _prctl(SET_CHILD_SUBREAPER, 1)
    process = subprocess.Popen(command, process_group=0, preexec_fn=_listen)
    for number in signals:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    status = process.wait()
    with suppress(ProcessLookupError):  # the group is empty
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            last = time.monotonic() + grace
            while time.monotonic() < last:
                with suppress(ChildProcessError):
                    os.waitpid(-process.pid, os.WNOHANG)
                os.killpg(process.pid, 0)
                time.sleep(0.02)
    return 0 if told else status if status >= 0 else 128 - status


def _listen() -> None:
    """In the new process: it is told to end when its parent is killed, and hears signals, which the parent blocks."""
    _prctl(SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def serve() -> None:
    """vLLM's server in this process. It does not log that its engine has ended when it has itself told it to end."""
    from uvicorn import Server
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.exceptions import EngineDeadError

    startup, shutdown, parent = Server.startup, AsyncLLM.shutdown, os.getppid()

    def unwanted(record: logging.LogRecord) -> bool:
        return record.exc_info is not None and isinstance(record.exc_info[1], EngineDeadError)

    async def started(self: Server, *given: Any, **more: Any) -> None:
        await startup(self, *given, **more)
        os.kill(parent, signal.SIGUSR1)

    def quietly(self: AsyncLLM, *given: Any, **more: Any) -> None:
        logging.getLogger(AsyncLLM.__module__).addFilter(lambda record: not unwanted(record))
        shutdown(self, *given, **more)

    Server.startup, AsyncLLM.shutdown = started, quietly
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end would print pages about objects that triton's bindings leak


if __name__ == "__main__":
    sys.exit(supervised([sys.executable, "-c", "from eas_vllm.server import serve; serve()", *sys.argv[1:]]))
