"""Prompt packs: text features in one file, to paint without a text encoder.

A pack is a safetensors file: `tokens` [T, D], the features of all its prompts end to end, and
`lengths` [n], with `pooled` [n, P] where the encoder pools; its metadata hold the prompts and what
made them. The empty prompt, which guidance needs, is always among them.

Dims: n prompts, L tokens of the longest prompt in a call, D width of a token, P of pooled text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gesso.config import Config, Spec, resolve, validate
from gesso.types import Cond, GessoError

PLACES = {"path", "subfolder", "tokenizer", "dtype"}
"""Options of an encoder that say where its files are and how they are held, not what it reads."""


class Origin(Config):
    """What made a pack, and what is in it.

    Attributes:
        text_encoder, fingerprint: the encoder's spec and fingerprint.
        trained_in: the model's fingerprint, where the encoder was trained together with it.
        max_tokens: the encoder's.
        prompts: in the order of their features.
        guides: those of them that are there for guidance and not to be painted; "" is one.
    """

    format: Literal[1] = 1
    text_encoder: Spec
    fingerprint: str
    trained_in: str | None = None
    max_tokens: int
    prompts: list[str]
    guides: list[str]


class Pack(nn.Module):
    """Encoded prompts that stand in for a text encoder; `gesso.encoders.text.TextEncoder`.

    Args:
        origin: what made it.
        rows: [L, D] float32 features of each of its prompts.
        pooled: [n, P] float32, their pooled features, or None.
        source: its file's name, for messages.
    """

    trainable = False

    def __init__(
        self,
        origin: Origin,
        rows: list[Tensor],
        pooled: Tensor | None = None,
        source: str = "the pack",
    ) -> None:
        super().__init__()
        self.origin = origin
        self.source = source
        self.rows = dict(zip(origin.prompts, rows, strict=True))
        self.pooled = pooled
        self.max_tokens = origin.max_tokens
        self.dim = rows[0].shape[1]

    @property
    def prompts(self) -> list[str]:
        """The prompts to be painted, in their order."""
        return [prompt for prompt in self.rows if prompt not in self.origin.guides]

    def prepare(self, prompts: list[str]) -> Cond:
        """Prompts to `tokens` [B, L, D], `mask` [B, L] and `pooled` [B, P] if it has any.

        Raises:
            GessoError: a prompt is not in the pack.
        """
        for prompt in prompts:
            if prompt not in self.rows:
                raise GessoError(
                    f"{self.source} has no prompt {prompt[:60]!r} among its {len(self.rows)}: "
                    "encode it, or paint with the text encoder."
                )
        rows = [self.rows[prompt] for prompt in prompts]
        masks = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        places = {prompt: place for place, prompt in enumerate(self.rows)}
        pooled = None if self.pooled is None else self.pooled[[places[p] for p in prompts]]
        tokens, mask = pad(rows, batch_first=True), pad(masks, batch_first=True)
        return Cond(tokens=tokens, mask=mask, pooled=pooled)

    def forward(self, cond: Cond) -> Cond:
        """The condition itself."""
        return cond

    def dropped(self, prompt: str) -> str:
        """Nothing: what was cut off was told when the pack was made."""
        return ""

    def fingerprint(self) -> str:
        """That of the encoder that made it."""
        return self.origin.fingerprint

    def check(self, description: Any) -> Pack:
        """Itself, if it was made for a model.

        A frozen encoder is known by its fingerprint where the model's description has one, and
        otherwise by its options and width; an encoder that was trained with a model serves that
        model only.

        Args:
            description: of the model, a `gesso.model.Description`.

        Raises:
            GessoError: it was made by another text encoder.
        """
        told = {
            "fingerprint": (
                description.encoder_fingerprints.get("text_encoder"),
                self.origin.fingerprint,
            ),
            "model": (description.fingerprint, self.origin.trained_in),
        }
        for what, (wanted, found) in told.items():
            if wanted and found and wanted != found:
                raise self._foreign(f"{what} {found}", wanted)
        ours, theirs = _reading(self.origin.text_encoder), _reading(description.text_encoder)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise self._foreign(f"{key} {ours.get(key)}", theirs.get(key))
        width = (description.backbone or {}).get("text_dim", self.dim)
        if width != self.dim:
            raise self._foreign(f"width {self.dim}", width)
        return self

    def _foreign(self, found: str, wanted: object) -> GessoError:
        return GessoError(
            f"{self.source} was made by a text encoder of {found} where this model has {wanted}: "
            "encode the prompts with this model."
        )

    def save(self, file: Path) -> None:
        """Write the pack."""
        rows = list(self.rows.values())
        tensors = {
            "tokens": torch.cat(rows),  # [T, D]
            "lengths": torch.tensor([len(row) for row in rows]),  # [n]
        }
        if self.pooled is not None:
            tensors["pooled"] = self.pooled
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={"gesso_pack": self.origin.model_dump_json()})

    @classmethod
    def read(cls, file: Path) -> Pack:
        """Read a pack.

        Raises:
            GessoError: no such file, a broken one, or no pack.
        """
        if not file.is_file():
            raise GessoError(
                f"There is no prompt pack {file}: make one with gesso encode --prompts."
            )
        try:
            with safe_open(file, framework="pt") as opened:
                described = json.loads((opened.metadata() or {}).get("gesso_pack", "null"))
                if not isinstance(described, dict):
                    raise GessoError(
                        f"{file} is no prompt pack: make one with gesso encode --prompts."
                    )
                tokens, lengths = opened.get_tensor("tokens"), opened.get_tensor("lengths")
                pools = "pooled" in opened.keys()  # noqa: SIM118
                pooled = opened.get_tensor("pooled").float() if pools else None
        except (SafetensorError, OSError, ValueError) as e:
            raise GessoError(
                f"{file} is truncated or no safetensors file ({e}): copy or make it again."
            ) from None
        origin = validate(Origin, described, f"The prompt pack {file}")
        counts = lengths.tolist() if lengths.dim() == 1 else []
        whole = tokens.dim() == 2 and sum(counts) == len(tokens) and min(counts, default=0) > 0
        n = len(origin.prompts)
        if not whole or len(counts) != n or (pooled is not None and len(pooled) != n):
            raise GessoError(f"{file} does not hold what it describes: make the pack again.")
        return cls(origin, list(tokens.float().split(counts)), pooled, str(file))


def _reading(spec: Spec) -> Spec:
    """The options that decide what a prompt becomes, with their defaults."""
    options = resolve("encoders.text", spec)[1].model_dump(mode="json")
    return {"kind": spec["name"], **{k: v for k, v in options.items() if k not in PLACES}}
