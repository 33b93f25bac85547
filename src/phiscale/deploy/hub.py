"""Models on the Hugging Face hub: what is shared is the model directory.

    config.json         network spec, class names, preprocessing, provenance
    model.safetensors   weights
    README.md           model card, with the measured figures where the hub looks for them (``model-index``)
    metrics.json        the last evaluation, where there was one

Paths of the machine that trained stay there (`phiscale.deploy.sharing`). Repositories, branches, pull
requests and tokens are huggingface_hub's, which is imported when something is shared or downloaded and not
before: predicting needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from phiscale.preprocess import Preprocess
from phiscale.weights.config import ModelDir
from phiscale.weights.sources import HUB

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from phiscale.nn.network import Network

__all__ = ["HubModel"]


class HubModel:
    """The part of `Predictor` that saves, pushes and downloads, as huggingface_hub's `ModelHubMixin` does."""

    model: ModelDir

    def _network(self) -> Network:
        """The network with its weights, in eval mode."""
        raise NotImplementedError

    @classmethod
    def _open(
        cls,
        path: Path,
        *,
        name: str,
        runtime: str,
        classes: Sequence[str] | None,
        preprocess: Preprocess | None,
    ) -> Self:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        runtime: str = "auto",
        classes: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
    ) -> Self:
        """Open a model of the hub, or a folder: a model directory, or a repository of timm or transformers.

        Args:
            pretrained_model_name_or_path: ``"user/name"`` or a folder.
            force_download: Whether to download what the cache has already.
            token: Of the hub; None takes the one of ``hf auth login``.
            cache_dir: Where downloads are kept; None for the hub's own cache.
            local_files_only: Whether nothing may be downloaded.
            revision: Branch, tag or commit.
            runtime: As for `phiscale.load`.
            classes: Name of each class, in the order of the logits; None takes the model's.
            preprocess: How images are prepared; None takes the model's.

        Raises:
            ModelDirError: It cannot be had, is damaged, or does not say how images are prepared.
        """
        from phiscale.weights.download import locate_hub

        opening: dict[str, Any] = {"runtime": runtime, "classes": classes, "preprocess": preprocess}
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            return cls._open(folder, name=str(folder), **opening)
        name = str(pretrained_model_name_or_path).removeprefix(HUB)
        path = locate_hub(
            name,
            revision=revision,
            offline=local_files_only,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
        )
        return cls._open(path, name=HUB + name, **opening)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: Mapping[str, Any] | None = None,
        config: object = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write a model directory that can be shared.

        Args:
            save_directory: Where to; made if it is not there.
            repo_id: ``"user/name"``, where it is pushed; the folder's name when left out.
            push_to_hub: Whether to push it too.
            model_card_kwargs: ``repo_id`` names the repository in the card.
            config: Not used: ``config.json`` is the model's own.
            **push_to_hub_kwargs: As for `push_to_hub`.

        Returns:
            Address of the commit, where it was pushed.

        Raises:
            ModelDirError: The directory cannot be written, or holds files of somebody else.
        """
        from phiscale.deploy.push import write_shareable

        folder = Path(save_directory)
        named = (model_card_kwargs or {}).get("repo_id")
        write_shareable(self.model, self._network(), folder, repo_id=named)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put the model on the Hugging Face hub, in a repository that is made if it is not there.

        Args:
            repo_id: ``"user/name"``.
            **options: ``private``, ``token``, ``branch``, ``create_pr``, ``commit_message``,
                ``allow_patterns``, ``ignore_patterns`` and ``delete_patterns``, as of huggingface_hub's
                `ModelHubMixin.push_to_hub`.

        Returns:
            Address of the commit.

        Raises:
            ModelDirError: The hub cannot be reached or refuses; the message says why.
        """
        from phiscale.deploy.push import push

        return push(self.model, self._network(), repo_id, **options)

    def generate_model_card(self, *_args: Any, repo_id: str | None = None, **_kwargs: Any) -> ModelCard:
        """The model card as it is shared, with the measured figures in its metadata."""
        from phiscale.deploy.push import shareable_card

        return shareable_card(self.model, repo_id=repo_id)
