"""Class labels as vectors."""

from __future__ import annotations

from torch import Tensor, nn

from gesso.types import GessoError


class LabelEmbedder(nn.Module):
    """One vector a class, and a last one for no class: [B] in 0..K -> [B, D].

    Args:
        num_classes: K.
        dim: D.
        init_std: of the table.
        name: the backbone's, for messages.
    """

    def __init__(self, num_classes: int, dim: int, init_std: float, name: str) -> None:
        super().__init__()
        self.name = name
        self.embedding_table = nn.Embedding(num_classes + 1, dim)
        nn.init.normal_(self.embedding_table.weight, std=init_std)

    def forward(self, label: Tensor) -> Tensor:
        try:
            return self.embedding_table(label)
        except IndexError:  # of a CPU; for a GPU, data are checked before training
            none = self.embedding_table.num_embeddings - 1
            wrong = int(label[(label < 0) | (label > none)][0])
            raise GessoError(
                f"The class label {wrong} is out of range: this {self.name} has {none} classes, 0"
                f" to {none - 1}, and {none} for none."
            ) from None
