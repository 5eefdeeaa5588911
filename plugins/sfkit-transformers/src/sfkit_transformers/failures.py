"""Turn errors of transformers and of the Hub into sfkit's, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors as hub
from safetensors import SafetensorError

from sfkit.errors import CheckpointError
from sfkit.teachers.base import is_out_of_memory


@contextmanager
def explained(model: str, revision: str | None, doing: str) -> Iterator[None]:
    """Context in which errors of reading a model become a CheckpointError.

    Args:
        model: Repository or folder.
        revision: Revision of the repository.
        doing: The part that is read, such as ``"its configuration"``.

    Raises:
        CheckpointError: The model could not be read.
    """
    try:
        yield
    # AttributeError: this release of transformers lacks a class.
    except (OSError, ValueError, LookupError, AttributeError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise _explain(error, model, revision, doing) from error


def _explain(error: Exception, model: str, revision: str | None, doing: str) -> CheckpointError:
    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    folder = f'download it from https://huggingface.co/{model} by hand and pass the folder: "hf:/path/to/folder"'
    if caused_by(hub.GatedRepoError):
        return CheckpointError(
            f"Access to {model} has not been granted to you.",
            f"Accept its terms at https://huggingface.co/{model}, log in with `hf auth login` as the same user, "
            f"and try again; or {folder}.",
        )
    if caused_by(hub.RevisionNotFoundError):
        return CheckpointError(f"{model} has no revision {revision!r}.", "Check the revision.")
    if caused_by(hub.RepositoryNotFoundError):
        return CheckpointError(
            f"There is no repository {model!r} on the Hub, or it is private.",
            "Check the name (owner/name); for a private one log in with `hf auth login`; or pass a local folder.",
        )
    if caused_by(hub.HFValidationError):
        return CheckpointError(f"{model!r} is neither a local folder nor the name of a repository.", "Check the path.")
    if caused_by(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        return CheckpointError(
            f"{model} is not on this machine and could not be fetched ({doing}).",
            f"Connect to the network (and unset HF_HUB_OFFLINE), or {folder}.",
        )
    if caused_by(SafetensorError):
        return CheckpointError(
            f"{doing.capitalize()} of {model} could not be read: {_first(error)}",
            "A file may be truncated or damaged: fetch it again.",
        )
    if "safetensors" in str(error):
        return CheckpointError(
            f"{model} has no weights as safetensors: {_first(error)}",
            "Other files could run any code when unpickled. Choose a revision that has safetensors (see the pull "
            "requests of its page on the Hub), or convert it once, where you trust it, with save_pretrained.",
        )
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return CheckpointError(
            f"{model} runs code of its own, from its repository.",
            "Read that code, and if you trust it set trust_remote_code=true.",
        )
    return CheckpointError(
        f"{doing.capitalize()} of {model} could not be read: {type(error).__name__}: {_first(error)}",
        "Check that it is a vision model that this release of transformers knows; a newer release may.",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no details")
