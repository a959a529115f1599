"""Vision-language models of transformers: PaliGemma, Qwen-VL, LLaVA, BLIP-2 and their like.

A reply is generated greedily and read with `gesso.evals.replies`; what it says that is no choice is
an abstention. P(yes) is the share of "yes" in the first token's probability of "yes" and "no".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gesso.evals.networks import Network, NetworkConfig, in_batches, quiet
from gesso.evals.replies import READING, ask, ask_rating, parse_answer, parse_rating, parse_reading
from gesso.evals.types import YES_NO, Answer, Image, Judge, Rating

ABILITIES = ("answer", "rate", "read")
PROMPTS = {
    "paligemma": "<image>answer en {question}",
    "blip-2": "Question: {question} Answer:",
    "instructblip": "{question}",
    "llava": "USER: <image>\n{question} ASSISTANT:",
}
"""By model type, where a processor has no chat template."""
WORDS = ("{}", " {}")


class Config(NetworkConfig):
    """Options of the judge `hf-vlm`."""

    batch_size: int = 4
    max_new_tokens: int = 32
    max_reading_tokens: int = 256


class HFVLM(Judge):
    """See the module. Pictures of one size share a batch."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import AutoModelForImageTextToText
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )

        known = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
        kinds: dict[str, Any] = dict.fromkeys(known, AutoModelForImageTextToText)
        self.net = Network(__name__, kinds, options, device)
        self.options = options
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"hf-vlm:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions
        tokenizer = self.net.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.first = {word: _first_tokens(tokenizer, word) for word in YES_NO}

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], choices: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """Replies; one that is none of the choices is an abstention."""
        asked = [ask(q, c) for q, c in zip(questions, choices, strict=True)]
        replies = self._generate(images, asked, self.options.max_new_tokens)
        return [
            parse_answer(text, some, p_yes if tuple(some) == YES_NO else None)
            for (text, p_yes), some in zip(replies, choices, strict=True)
        ]

    def rate(
        self, images: Sequence[Image], criteria: Sequence[str], low: float, high: float
    ) -> list[Rating]:
        """Grades; a reply without one number of the scale is an abstention."""
        asked = [ask_rating(criterion, low, high) for criterion in criteria]
        replies = self._generate(images, asked, self.options.max_new_tokens)
        return [parse_rating(text, low, high) for text, _ in replies]

    def read(self, images: Sequence[Image]) -> list[str]:
        """The words in each picture."""
        replies = self._generate(images, [READING] * len(images), self.options.max_reading_tokens)
        return [parse_reading(text) for text, _ in replies]

    @torch.no_grad()
    def _generate(
        self, images: Sequence[Image], prompts: list[str], tokens: int
    ) -> list[tuple[str, float | None]]:
        """For each: the reply and P(yes)."""

        def run(some: list[int]) -> list[tuple[str, float | None]]:
            texts = [self._prompt(prompts[i]) for i in some]
            bos = self.net.processor.tokenizer.bos_token
            with quiet():
                batch = self.net.processor(
                    images=[[images[i]] for i in some],
                    text=texts,
                    padding=True,
                    add_special_tokens=not (bos and texts[0].startswith(bos)),  # as a template has
                    return_tensors="pt",
                )
            batch = self.net.to(batch)
            batch.pop("labels", None)  # PaliGemma's processor makes them for training
            out = self.net.model.generate(
                **batch,
                max_new_tokens=tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=self.net.processor.tokenizer.pad_token_id,
            )
            said = out.sequences[:, -len(out.logits) :]  # whether or not the prompt is before it
            replies = self.net.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
            return list(zip(replies, self._p_yes(out.logits[0]), strict=True))

        return in_batches(run, [image.shape for image in images], self.batch_size)

    def _prompt(self, question: str) -> str:
        processor = self.net.processor
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            return processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        template = PROMPTS.get(self.net.config.model_type, "{question}")
        return template.format(question=question)

    def _p_yes(self, logits: Tensor) -> list[float | None]:
        """[B] from the first token's logits [B, V]."""
        share = logits.float().softmax(-1)
        yes, no = (share[:, self.first[word]].sum(-1) for word in YES_NO)
        return [
            float(y / (y + n)) if float(y + n) > 0 else None for y, n in zip(yes, no, strict=True)
        ]


def _first_tokens(tokenizer: Any, word: str) -> list[int]:
    """Tokens that a reply "yes" (Yes, YES, ...) may begin with."""
    found = set()
    for written in (word, word.capitalize(), word.upper()):
        for form in WORDS:
            ids = tokenizer(form.format(written), add_special_tokens=False)["input_ids"]
            ids = [i for i in ids if tokenizer.decode([i]).strip()]
            if ids and ids[0] != tokenizer.unk_token_id:
                found.add(ids[0])
    return sorted(found)


def build(options: Config, device: str | None) -> HFVLM:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return HFVLM(options, device)
