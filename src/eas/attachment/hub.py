"""Adapters on their way to the Hub; ``eas.load`` opens them from there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from eas.attachment.save import CONFIG_FILE, WEIGHTS_FILE, save
from eas.card import CARD_FILE, is_ours, portable
from eas.distributed import is_main


def push_to_hub(
    model: PreTrainedModel, repo_id: str, *, revision: str | None = None, private: bool | None = None
) -> str | None:
    """Uploads the adapter of an attached model, as ``save`` writes it, to a repository on the Hub; nothing of the base.

    Args:
        model: an attached model; of several processes all must call it.
        repo_id: "user/adapter"; is created. A model card in it that somebody else wrote stays.
        revision: a branch, which is created; None for the main one.
        private: whether the repository is made private; None as the account's settings say.

    Returns:
        The address of the commit; None in all processes but the main one.

    Raises:
        ValueError: as ``save``.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses it; ``hf auth login`` says who you are.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> eas.push_to_hub(model, "user/adapter")  # doctest: +SKIP
    """
    with TemporaryDirectory() as folder:
        own = model.config.name_or_path
        model.config.name_or_path = portable(own)  # a path means something on this machine only
        try:
            save(model, folder)
        finally:
            model.config.name_or_path = own
        return _upload(Path(folder), repo_id, revision, private) if is_main() else None


def _upload(folder: Path, repo_id: str, revision: str | None, private: bool | None) -> str:
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    known = api.file_exists(repo_id, CARD_FILE, revision=revision)
    theirs = known and not is_ours(Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)))
    commit: Any = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        allow_patterns=[WEIGHTS_FILE, CONFIG_FILE, *([] if theirs else [CARD_FILE])],
        commit_message="Adapter of eas",
    )
    return str(commit.commit_url)
