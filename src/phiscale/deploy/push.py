"""Pushing to the Hugging Face hub, and the model card as it is shared there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin

from phiscale.deploy.sharing import shareable_metrics, shareable_provenance
from phiscale.errors import ModelDirError
from phiscale.weights import card, files
from phiscale.weights.config import CARD, ModelDir
from phiscale.weights.sources import HUB

if TYPE_CHECKING:
    from phiscale.nn.network import Network

__all__ = ["push", "shareable_card", "write_shareable"]

_PLACEHOLDER = "path/of/this/directory"
# Name in metrics.json -> type and name on the hub.
_HUB_METRICS = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "top5": ("accuracy", "Top-5 accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "macro_f1": ("f1", "Macro F1"),
}


def push(model: ModelDir, network: Network, repo_id: str, **options: Any) -> str:
    """Put a model on the hub; arguments and errors as of `phiscale.deploy.hub.HubModel.push_to_hub`.

    Args:
        model: What is shared.
        network: With its weights.
        repo_id: ``"user/name"``.
        **options: As of huggingface_hub's `ModelHubMixin.push_to_hub`.

    Returns:
        Address of the commit.

    Raises:
        ModelDirError: The hub cannot be reached or refuses; the message says why.
    """
    with _explained(repo_id):
        named = {"repo_id": repo_id} if "/" in repo_id else {}
        return str(_Pushed(model, network).push_to_hub(repo_id, model_card_kwargs=named, **options))


class _Pushed(ModelHubMixin, library_name="phiscale", pipeline_tag="image-classification"):
    """A model directory for huggingface_hub's mixin, whose pushing is used and nothing else.

    The mixin would write a ``config.json`` of the constructor's arguments, and remove one that is there. A
    model directory has its own, so saving is done here.
    """

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Leave out the mixin's configuration of the constructor's arguments."""
        return object.__new__(cls)

    def __init__(self, model: ModelDir, network: Network) -> None:
        self._model, self._network = model, network

    def save_pretrained(
        self, save_directory: str | Path, *, model_card_kwargs: Mapping[str, Any] | None = None, **_: object
    ) -> None:
        """Write what is pushed; the mixin calls this with a temporary folder."""
        named = (model_card_kwargs or {}).get("repo_id")
        write_shareable(self._model, self._network, Path(save_directory), repo_id=named)


def write_shareable(model: ModelDir, network: Network, folder: Path, *, repo_id: str | None = None) -> None:
    """Write a model directory for others: with the last metrics, without paths of this machine.

    Args:
        model: What is shared. Where it is a model directory, its metrics and what a person wrote into its
            card come along.
        network: With its weights.
        folder: Where to; made if it is not there.
        repo_id: ``"user/name"`` on the hub, for the card.

    Raises:
        ModelDirError: The folder cannot be written, is the model's own, or holds files of somebody else.
    """
    from phiscale.weights.model_dir import save, write_metrics

    if folder.exists() and model.path.exists() and folder.samefile(model.path):
        raise ModelDirError(
            f"{folder} is the model's own directory, and what is shared leaves out where its images lie; "
            "choose another directory"
        )
    provenance = shareable_provenance(model.provenance)
    save(network, folder, classes=model.classes, preprocess=model.preprocess, provenance=provenance)
    if metrics := _measured(model):
        write_metrics(folder, metrics)
    try:
        files.write_text(folder / CARD, str(shareable_card(model, repo_id=repo_id)))
    except OSError as error:
        raise ModelDirError(f"cannot write {folder / CARD}: {error}") from None


def shareable_card(model: ModelDir, *, repo_id: str | None = None) -> ModelCard:
    """The card of a model with its figures in the hub's form, without paths of this machine.

    Args:
        model: What is shared.
        repo_id: ``"user/name"`` on the hub.

    Raises:
        ModelDirError: The metadata that a person wrote into the card are not what the hub reads.
    """
    metrics = _measured(model)
    block = card.describe(
        spec=model.spec,
        classes=model.classes,
        preprocess=model.preprocess,
        provenance=shareable_provenance(model.provenance),
        metrics=metrics or None,
    )
    if repo_id:
        block = block.replace(_PLACEHOLDER, HUB + repo_id)
    try:
        made = ModelCard(card.merge(_present_card(model), block))
        assert isinstance(made.data, ModelCardData)
        results = _eval_results(metrics)
        made.data.eval_results = results or None
        made.data.model_name = (repo_id or model.spec.name).rpartition("/")[2] if results else None
        return made
    except Exception as error:  # whatever YAML a person may have written, and the library raises for it
        raise ModelDirError(
            f"the metadata at the top of {model.path / CARD} cannot be read: {_line(error)}; mend them"
        ) from None


def _measured(model: ModelDir) -> dict[str, Any]:
    from phiscale.weights.model_dir import read_metrics

    with contextlib.suppress(ModelDirError):  # weights in memory have no directory
        return shareable_metrics(read_metrics(model.path) or {})
    return {}


def _present_card(model: ModelDir) -> str | None:
    try:
        text = (model.path / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text if card.is_card(text) else None


def _eval_results(metrics: Mapping[str, Any]) -> list[EvalResult]:
    """The metrics in the hub's form: the figures of one data set."""
    data = metrics.get("data")
    data = data if isinstance(data, Mapping) else {}
    name = str(data.get("location") or "images")
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            metric_type=kind,
            metric_name=label,
            metric_value=metrics[key],
            dataset_name=name.removeprefix("torchvision:"),
            dataset_type="".join(char if char.isalnum() else "-" for char in name.lower()),
            dataset_split=data.get("split"),
        )
        for key, (kind, label) in _HUB_METRICS.items()
        if isinstance(metrics.get(key), int | float)
    ]


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises while it pushes into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # The base of what the HTTP library below raises; which library that is differs between versions.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except ModelDirError:
        raise
    except (OSError, ValueError, RuntimeError, http_error) as error:
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # of "error while uploading a file"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
            problem = "the hub refuses it" + (f" (HTTP {status})" if status else "")
            advice = "log in with: hf auth login, with a token that may write there"
        elif status is not None:
            said = getattr(error, "server_message", None) or f"HTTP {status}"
            problem, advice = f"the hub answers: {_line(said)}", "check the name, or try again later"
        else:
            problem, advice = _line(error) or type(error).__name__, "check the name and the network"
        raise ModelDirError(f"cannot push to {HUB}{repo_id}: {problem.rstrip('.')}; {advice}") from None


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200]
