"""Checks that a run is possible, before a model is loaded or anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist

from eas.attachment.attach import attach, select
from eas.config import ConfigError, SkipConfig
from eas.distributed import is_main
from eas.files import WriteError
from eas.hf.api import no_init_weights
from eas.hf.trainer import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from eas.models.anatomy import auto_class
from eas.pipeline.run import Run
from eas.searching import RULES, SearchPhase

SPLITS = ("train", "validation", "test")
KEPT_CHECKPOINTS = 3  # two, and the one that is being written
BYTES_TRAINED = 16  # of a parameter in training: weight, gradient and two moments


def check(run: Run) -> None:
    """Refuses a run whose parts do not fit each other or this machine.

    Raises:
        ConfigError: a setting does not fit the model or the machine; its key is named.
        DataError: a split is missing or bad, or the metric does not fit it.
    """
    run.task.check(run)
    check_tracker(run.config.train.report_to)
    for split in SPLITS:
        run.data(split)
    model, method, search = check_method(run), run.config.method, run.config.search
    if isinstance(method, SkipConfig) and run.config.skip_set is None and search.rule in RULES:
        SearchPhase(model, search, run.data("validation"), lambda *_: [], lambda _: [])  # it checks its settings
    for split in SPLITS:
        run.task.first(run, split)  # the processor takes the data's form
    run.task.check_metric(run)
    if run.config.train.max_length is not None and run.config.train.cut is None:
        for split in ("train", "validation"):
            trial = run.task.trial(run, split)
            for example in run.data(split):
                if not example.images:  # it would take long to open them all
                    trial(example)


def check_tracker(name: str) -> None:
    """Refuses a tracker that is unknown or not installed.

    Raises:
        ConfigError: it is; the message says what there is.
    """
    if name in ("none", "all"):
        return
    if name not in INTEGRATION_TO_CALLBACK:
        raise ConfigError(f"train.report_to = {name!r}: use one of none, all, {', '.join(INTEGRATION_TO_CALLBACK)}")
    if name not in get_available_reporting_integrations():
        raise ConfigError(
            f"train.report_to = {name!r}: the tracker is not installed; pip install {name}, or leave report_to out"
        )


def check_method(run: Run) -> Any:
    """The run's model with its method and skip set, without storage.

    Raises:
        ConfigError: they do not fit, the base is saved quantised, or the weights or what the method trains are larger
            than this machine's memory.
    """
    base = run.load_config()
    if vars(base).get("quantization_config") is not None:
        raise ConfigError(
            f"model = {run.config.model!r} is saved quantised; name its unquantised base, and set bits = 4 or 8 to "
            "quantise it where it is loaded"
        )
    with torch.device("meta"), no_init_weights():
        model = auto_class(base.model_type).from_config(base)
        model.tie_weights()  # on the meta device transformers leaves that out
        attach(model, run.config.method)
    if (chosen := run.config.skip_set) is not None:
        try:
            select(model, chosen)
        except ValueError as error:
            raise ConfigError(f"skip_set = {chosen}: {error}") from error
    need = training_bytes(model)
    there = psutil.virtual_memory().total
    if torch.cuda.is_available():
        there = max(there, torch.cuda.mem_get_info()[1])
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    if run.config.bits is None and run.weights_dtype != run.saved_dtype and weights > there:
        raise ConfigError(
            f"dtype: the weights need {weights / 2**30:,.0f} GiB in float32, and this machine has {there / 2**30:,.0f} "
            f"GiB; -o dtype={run.saved_dtype} needs half, but this CPU computes 16 bits in software, which is slow"
        )
    if need > there and not dist.is_initialized():  # several processes may share it
        raise ConfigError(
            f"method: what {run.config.method.name} trains needs {need / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB; lower the method's ranks or lengths"
        )
    return model


def check_room(run: Run) -> None:
    """Refuses a run whose checkpoints and standalone model do not fit on its disk.

    Raises:
        WriteError: they do not.
    """
    if not is_main() or run.record("fold") is not None:
        return
    model = check_method(run)
    standalone = sum(parameter.nbytes for parameter in model.parameters()) if run.config.num_skip else 0
    need = standalone + KEPT_CHECKPOINTS * training_bytes(model)
    require_room(run.folder, need, "checkpoints and the standalone model")


def training_bytes(model: Any) -> int:
    """What training a model keeps for the parameters that it trains."""
    trained: list[int] = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return BYTES_TRAINED * sum(trained)


def require_room(folder: Path, need: float, what: str) -> None:
    """Refuses to begin what does not fit on a folder's disk.

    Raises:
        WriteError: it does not.
    """
    if need > (free := shutil.disk_usage(_existing(folder)).free):
        raise WriteError(
            f"{folder}: {what} need about {need / 2**30:.1f} GiB, and its disk has {free / 2**30:.1f} GiB free; make "
            "room, or name a folder on another disk"
        )


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.absolute().parent)
