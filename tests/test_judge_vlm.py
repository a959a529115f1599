"""The judge hf-vlm against one direct call of transformers a question, on tiny random weights."""

import captioner_fakes as fakes
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from gesso.evals.judging import open_judge
from gesso.evals.replies import READING, ask, ask_rating, parse_choice, parse_rating
from gesso.evals.types import YES_NO

RNG = np.random.default_rng(0)
PICTURES = [
    RNG.integers(0, 256, (h, w, 3)).astype(np.uint8)
    for h, w in ((32, 32), (40, 24))
    for _ in "1234"
]
QUESTIONS = ["red circle", "a blue star above a red square of 1", "blue", "picture of 3"] * 2
KNOWN = [*fakes.WORDS, "yes", "no", "1", "3", "USER:", "ASSISTANT:", "word", "number"]
PALI = "<image>answer en {question}"


def paligemma(folder):
    """A PaliGemma of a few thousand weights."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, fakes.tokenizer(known=KNOWN))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config={
                **sizes, "model_type": "siglip_vision_model", "num_attention_heads": 2,
                "image_size": 32, "patch_size": 16, "projection_dim": 16,
            },
            text_config={
                **sizes, **special, "tie_word_embeddings": False, "model_type": "gemma",
                "num_attention_heads": 2, "head_dim": 8, "num_key_value_heads": 1,
                "vocab_size": len(processor.tokenizer),
            },
            image_token_index=processor.image_token_id,
            tie_word_embeddings=False,  # else each reply repeats the last word
            projection_dim=16,
        )
    )  # fmt: skip
    fakes._stretch(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llava", "llava without template", "blip-2", "paligemma"])
def judged(request, tmp_path_factory):
    """A judge, and the prompt as its model wants it."""
    folder = tmp_path_factory.mktemp("vlm")
    make, prompt = {
        "llava": (fakes.save_llava, "user <image> {question} assistant"),
        "llava without template": (
            lambda f, known: fakes.save_llava(f, chat=False, known=known),
            "USER: <image>\n{question} ASSISTANT:",
        ),
        "blip-2": (fakes.save_blip2, "Question: {question} Answer:"),
        "paligemma": (lambda f, known: paligemma(f), PALI),
    }[request.param]
    path = make(folder / "model", known=KNOWN)
    judge = open_judge(
        f"hf-vlm:path={path},batch_size=3,max_new_tokens=5,max_reading_tokens=12", "cpu"
    )
    image_token = judge.net.processor.tokenizer.convert_tokens_to_ids("<image>")
    with torch.no_grad():  # a reply that holds <image> would be taken for a second picture below
        judge.net.model.get_output_embeddings().weight[image_token] = 0
    return judge, prompt


def directly(judge, prompt, image, tokens):
    """What a greedy loop over `forward` writes, and its first logits [V]: no cache, no padding."""
    model, processor = judge.net.model, judge.net.processor
    batch = processor(images=image, text=prompt, return_tensors="pt")
    batch.pop("labels", None)
    first, said = None, []
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(**batch, use_cache=False).logits[0, -1]
            first = logits if first is None else first
            said.append(int(logits.argmax()))
            if said[-1] == processor.tokenizer.eos_token_id:
                break
            for name, value in (("input_ids", said[-1]), ("attention_mask", 1)):
                batch[name] = torch.cat([batch[name], torch.tensor([[value]])], 1)
            if "token_type_ids" in batch:  # what is written is causal: not of the prompt's type
                batch["token_type_ids"] = torch.cat(
                    [batch["token_type_ids"], torch.tensor([[0]])], 1
                )
    return processor.tokenizer.decode(said, skip_special_tokens=True), first


def test_replies_and_p_yes_are_those_of_single_calls(judged):
    judge, prompt = judged
    answers = judge.answer(PICTURES, QUESTIONS, [YES_NO] * 8)
    ids = [judge.net.processor.tokenizer.convert_tokens_to_ids(word) for word in YES_NO]
    for image, question, answer in zip(PICTURES, QUESTIONS, answers, strict=True):
        said, logits = directly(judge, prompt.format(question=ask(question, YES_NO)), image, 5)
        assert answer.text == said.strip()
        assert answer.choice == parse_choice(said, YES_NO)
        expected = float(logits[ids].softmax(0)[0])
        assert judge._p_yes(logits[None])[0] == pytest.approx(expected, abs=1e-6)
        if answer.choice:
            assert answer.p_yes == pytest.approx(expected, abs=1e-3)
        else:  # random words: an abstention, and no probability either
            assert answer.p_yes is None
    assert len({a.text for a in answers}) > 1 and not all(a.choice for a in answers)


def test_grades_and_readings_are_those_of_single_calls(judged):
    judge, prompt = judged
    grades = judge.rate(PICTURES[:3], QUESTIONS[:3], 1, 5)
    readings = judge.read(PICTURES[:1])
    for image, question, grade in zip(PICTURES, QUESTIONS, grades, strict=False):
        said, _ = directly(judge, prompt.format(question=ask_rating(question, 1, 5)), image, 5)
        assert grade == parse_rating(said, 1, 5)
    said, _ = directly(judge, prompt.format(question=READING), PICTURES[0], 12)
    assert readings == [said.strip()]


def test_a_template_that_begins_with_bos_is_not_given_another(tmp_path):
    path = fakes.save_llava(tmp_path, known=KNOWN)
    judge = open_judge(f"hf-vlm:path={path},max_new_tokens=2", "cpu")
    processor = judge.net.processor
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    seen = []
    generate = judge.net.model.generate

    def spy(**batch):
        seen.append(int((batch["input_ids"] == 1).sum()))
        return generate(**batch)

    judge.net.model.generate = spy
    for template in (fakes.LLAVA_TEMPLATE, "<s> " + fakes.LLAVA_TEMPLATE):
        processor.chat_template = template
        judge.answer(PICTURES[:1], QUESTIONS[:1], [YES_NO])
    assert seen == [1, 1]
