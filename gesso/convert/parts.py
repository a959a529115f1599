"""Published weights, found in files, become a model: what is the same for every family."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection

import torch

from gesso.config import Spec
from gesso.convert.network import Network
from gesso.model import PARTS, Description, Model


class PublishedParts(ABC):
    """Published weights whose files are found but not read."""

    _description: Description | None = None

    @abstractmethod
    def network(self, dtype: torch.dtype | None = None) -> Network:
        """Read the transformer, its tensors in a dtype; None keeps the files'."""

    @abstractmethod
    def describe(self, network: Network) -> Description:
        """What a gesso model of this network and these encoders says in its `gesso.json`."""

    @abstractmethod
    def check_encoders(self, parts: Collection[str]) -> None:
        """Raise a GessoError if an encoder among these parts has no files."""

    @abstractmethod
    def text_encoders(self, description: Description) -> list[Spec]:
        """The specs, in a description, of the text encoders that have weights."""

    def load(self, parts: Collection[str] = PARTS, dtype: str = "float32") -> Model:
        """The model.

        Args:
            parts: some of `gesso.model.PARTS`; the others are None in the model.
            dtype: float32 or bfloat16: of the transformer's and the text encoders' weights, and of
                the contract.

        Raises:
            GessoError: a part has no files (says which argument gives it), or does not fit.
        """
        self.check_encoders(parts)
        backbone = None
        if "backbone" in parts or self._description is None:
            network = self.network(getattr(torch, dtype))
            self._description = self.describe(network)
            for note in network.notes:
                warnings.warn(note, stacklevel=2)
            backbone = network.build() if "backbone" in parts else None
            del network  # or its tensors would stay beside those of other parts
        description = self._description.model_copy(deep=True)
        description.sample.dtype = dtype  # type: ignore[assignment]
        for spec in self.text_encoders(description):
            spec["dtype"] = dtype
        return Model.build(description, parts=parts, backbone=backbone)
