"""BLIP's question answerer (Li et al., arXiv 2201.12086): free answers, and P(yes).

The picture is encoded once for all its questions. With choices, the answer is the choice that the
decoder finds likeliest (the authors' ranking); P(yes) = L(yes) / (L(yes) + L(no)). Only questions
of equal length share a batch: the decoder of transformers attends to padded questions' padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gesso.evals.networks import Network, NetworkConfig, in_batches, quiet, same_pictures
from gesso.evals.types import YES_NO, Answer, Image, Judge

ABILITIES = ("answer",)
MAX_ANSWER = 10  # tokens of a free answer
MAX_QUESTION = 512


class Config(NetworkConfig):
    """Options of the judge `hf-vqa`."""


class HFVQA(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import BlipForQuestionAnswering

        kinds = {"BlipForQuestionAnswering": BlipForQuestionAnswering}
        self.net = Network(__name__, kinds, options, device)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"hf-vqa:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions
        config = self.net.config.text_config
        self.start = int(config.bos_token_id)
        self.end, self.pad = int(config.sep_token_id), int(config.pad_token_id)

    @torch.no_grad()
    def answer(
        self, images: Sequence[Image], questions: Sequence[str], choices: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """Replies; none is an abstention, unless the network gives numbers that are not finite."""
        unique, place = same_pictures(images)
        tokens = self.net.processor.tokenizer(
            list(questions), truncation=True, max_length=MAX_QUESTION
        )["input_ids"]
        # So many pictures at a time that their features stay small; their questions in batches.
        chunk = 8 * self.batch_size
        answers: dict[int, Answer] = {}
        for start in range(0, len(unique), chunk):
            seen = self._see([images[i] for i in unique[start : start + chunk]])
            mine = [i for i, p in enumerate(place) if start <= p < start + chunk]
            replies = in_batches(
                lambda some, mine=mine, seen=seen, start=start: self._reply(  # type: ignore[misc]
                    torch.stack([seen[place[mine[i]] - start] for i in some]),
                    torch.tensor([tokens[mine[i]] for i in some]),
                    choices[mine[some[0]]],
                ),
                [(len(tokens[i]), tuple(choices[i])) for i in mine],
                self.batch_size,
            )
            answers.update(zip(mine, replies, strict=True))
        return [answers[i] for i in range(len(images))]

    def _see(self, images: list[Image]) -> list[Tensor]:
        """Features of each picture, [P, D]."""

        def run(some: list[int]) -> list[Tensor]:
            with quiet():
                batch = self.net.processor.image_processor(
                    [images[i] for i in some], return_tensors="pt"
                )
            pixels = self.net.to(batch)["pixel_values"]
            return list(self.net.model.vision_model(pixel_values=pixels).last_hidden_state)

        return in_batches(run, [0] * len(images), self.batch_size)

    def _reply(self, seen: Tensor, ids: Tensor, choices: tuple[str, ...]) -> list[Answer]:
        """Answers to questions ids [B, L] with the same choices; seen [B, P, D]."""
        asked = self.net.model.text_encoder(
            input_ids=ids.to(self.net.device), encoder_hidden_states=seen, return_dict=False
        )[0]  # [B, L, D]
        if not choices:
            return self._free(asked)
        likelihood = self._likelihood(asked, choices)  # [B, C]
        share = likelihood.softmax(-1)
        answers = []
        for row in share.tolist():
            if row[0] != row[0]:  # not a number
                answers.append(Answer("", ""))
                continue
            choice = choices[max(range(len(choices)), key=row.__getitem__)]
            p_yes = row[YES_NO.index("yes")] if tuple(choices) == YES_NO else None
            answers.append(Answer(choice, choice, p_yes))
        return answers

    def _free(self, asked: Tensor) -> list[Answer]:
        ids = self.net.model.text_decoder.generate(
            input_ids=torch.full((len(asked), 1), self.start, device=asked.device),
            encoder_hidden_states=asked,
            eos_token_id=self.end,
            pad_token_id=self.pad,
            max_new_tokens=MAX_ANSWER,
            do_sample=False,
        )
        texts = self.net.processor.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        return [Answer(text.strip()) for text in texts]

    def _likelihood(self, asked: Tensor, choices: tuple[str, ...]) -> Tensor:
        """Log-likelihood [B, C] of each choice with its end token, in nats."""
        tokens = self.net.processor.tokenizer(list(choices), add_special_tokens=False)["input_ids"]
        length = max(map(len, tokens)) + 1
        given = torch.full((len(choices), length), self.pad)  # start, t1, ..., tn
        wanted = torch.full((len(choices), length), -100)  # t1, ..., tn, end
        for row, ids in enumerate(tokens):
            given[row, : len(ids) + 1] = torch.tensor([self.start, *ids])
            wanted[row, : len(ids) + 1] = torch.tensor([*ids, self.end])
        given, wanted = given.to(asked.device), wanted.to(asked.device)
        columns = []
        for ids, targets in zip(given, wanted, strict=True):  # memory of one choice at a time
            kept = targets >= 0
            logits = self.net.model.text_decoder(
                input_ids=ids[kept].expand(len(asked), -1),
                encoder_hidden_states=asked,
            ).logits  # [B, n + 1, V]
            logs = logits.float().log_softmax(-1)
            picked = logs.gather(-1, targets[kept].expand(len(asked), -1)[..., None])
            columns.append(picked[..., 0].sum(-1))
        return torch.stack(columns, 1)


def build(options: Config, device: str | None) -> HFVQA:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return HFVQA(options, device)
