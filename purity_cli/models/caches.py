"""Where weight files lie on this machine, and how those that do not are fetched or asked for."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch

from purity_cli.errors import PurityError
from purity_cli.machine import SECONDS_TO_CONNECT, impatient, why_not


class WeightFile(ABC):
    """A file of weights that may or may not be on this machine."""

    @abstractmethod
    def cached(self) -> Path | None:
        """Where it is, without touching the network; None if it is not."""

    @abstractmethod
    def download(self, owner: str) -> Path:
        """Fetch it; PurityError says which file `owner` needs, where it belongs and how to bring it."""

    def fetch(self, owner: str) -> Path:
        """The file, downloaded if need be."""
        return self.cached() or self.download(owner)


@dataclass(frozen=True)
class LocalFile(WeightFile):
    """A file that an installed package carries. `missing` says what to do where it does not."""

    path: Path | None
    missing: str

    def cached(self) -> Path | None:
        return self.path if self.path and self.path.is_file() else None

    def download(self, owner: str) -> Path:
        raise PurityError(f"{owner}: {self.missing}")


@dataclass(frozen=True)
class HubFile(WeightFile):
    """A file in torch hub's folder, `$TORCH_HOME/hub/checkpoints`, named as at the end of its URL."""

    url: str

    @property
    def name(self) -> str:
        return Path(urlparse(self.url).path).name

    @property
    def folder(self) -> Path:
        return Path(torch.hub.get_dir(), "checkpoints")

    def cached(self) -> Path | None:
        path = self.folder / self.name
        return path if path.is_file() else None

    def download(self, owner: str) -> Path:
        path = self.folder / self.name
        digest = torch.hub.HASH_REGEX.search(self.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with impatient():
                torch.hub.download_url_to_file(
                    self.url, str(path), digest[1] if digest else None, progress=sys.stderr.isatty()
                )
        except (OSError, RuntimeError, HTTPException) as error:
            raise PurityError(
                f"{owner} needs {self.name}, which is not in {self.folder} and could not be downloaded "
                f"({why_not(error)}): copy it there from {self.url}, or pass --weights FILE."
            ) from None
        return path


WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What weights are called in a folder of timm's, as it prefers them; the pickle is read with weights_only=True."""


@dataclass(frozen=True)
class HuggingFaceFile(WeightFile):
    """The first of `names` in a Hugging Face repository, in the cache that `HF_HOME` and `HF_HUB_CACHE` place.

    `elsewhere` is the same set of weights as a file in torch hub's folder, used where only that is at hand.
    """

    repo: str
    elsewhere: HubFile | None = None
    names: tuple[str, ...] = WEIGHTS
    revision: str | None = None

    def cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for name in self.names:
            found = try_to_load_from_cache(self.repo, name, revision=self.revision)
            if isinstance(found, str):
                return Path(found)
        return self.elsewhere.cached() if self.elsewhere else None

    def download(self, owner: str) -> Path:
        from huggingface_hub import constants, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        reason: Exception = FileNotFoundError(f"it holds none of {', '.join(self.names)}")
        for name in self.names:
            try:
                if not constants.HF_HUB_OFFLINE:
                    _knock(hf_hub_url(self.repo, name, revision=self.revision))
                return Path(hf_hub_download(self.repo, name, revision=self.revision))
            except LocalEntryNotFoundError as error:
                reason = error
                break
            except EntryNotFoundError:
                continue
            except Exception as error:  # the transport's own errors change with huggingface_hub's version
                reason = error
                break
        folder = Path(constants.HF_HUB_CACHE, f"models--{self.repo.replace('/', '--')}")
        beside = f", put {self.elsewhere.name} into {self.elsewhere.folder}" if self.elsewhere else ""
        raise PurityError(
            f"{owner} needs {self.names[0]} of {self.repo}, which is not in {folder} and could not be downloaded "
            f"({why_not(reason)}): run `hf download {self.repo} {self.names[0]}` where there is a connection and copy "
            f"that folder here{beside}{', or pass --weights FILE' if self.names == WEIGHTS else ''}."
        ) from None


def _knock(url: str) -> None:
    """Raise where nothing answers, which huggingface_hub would try for half a minute. A refusal is an answer."""
    with suppress(HTTPError):
        urlopen(Request(url, method="HEAD"), timeout=SECONDS_TO_CONNECT).close()
