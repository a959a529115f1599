"""Judges against independent code on tiny random weights, scene truth and real photos."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import judge_fakes as fakes
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from gesso.data.scenes import SHAPES, render, sample_scene, truth
from gesso.evals.coco import COCO, class_indices
from gesso.evals.judge_judges import agreement, calibration_error, judge_judges, ranks
from gesso.evals.judges import clip, hf_detector, hf_vqa, ocr, openai_compatible, reader, yolox
from gesso.evals.judging import Asker, open_judge
from gesso.evals.networks import in_batches, same_pictures
from gesso.evals.replies import ask, parse_choice, parse_rating, parse_reading
from gesso.evals.types import YES_NO, Detection, Picture, Question
from gesso.types import GessoError

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((64, 64), (48, 80)) * 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("judges")


# ------------------------------------------------------------------------------------- reader


def test_the_reader_finds_what_a_scene_holds():
    scene = sample_scene(3, level=2)
    judge = open_judge("reader:level=2")
    (found,) = judge.detect([render(scene)], [SHAPES])
    boxes = truth(scene).boxes
    assert {(d.label, d.color) for d in found} == {(o.shape, o.color) for o in scene.objects}
    assert len(found) == len(boxes) and all(d.mask.shape == (64, 64) for d in found)
    one = scene.objects[0].shape
    (some,) = judge.detect([render(scene)], [(one,)])
    assert {d.label for d in some} == {one}
    with pytest.raises(GessoError, match="does not know 'dog'"):
        judge.detect([render(scene)], [("dog",)])
    assert reader.Reader(1).fingerprint != reader.Reader(2).fingerprint


# ---------------------------------------------------------------------------------- detectors


def test_mask2former_equals_transformers_own_post_processing(folder):
    judge = hf_detector.build(
        hf_detector.Config(path=fakes.mask2former(folder / "m2f"), floor=0.02, batch_size=2), "cpu"
    )
    image = PICTURES[1]
    batch = judge.net.processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        out = judge.net.model(**batch)
    (theirs,) = judge.net.processor.post_process_instance_segmentation(
        out, threshold=0.02, target_sizes=[image.shape[:2]], return_binary_maps=True
    )
    names = judge.net.config.id2label
    expected = sorted(
        ((names[s["label_id"]], s["score"]) for s in theirs["segments_info"]), key=lambda p: -p[1]
    )
    mine = judge.detect(PICTURES, [fakes.CLASSES] * 4)
    # Theirs averages over a mask of 384 x 384 pixels, ours over one at the picture's size.
    assert [d.label for d in mine[1]] == [label for label, _ in expected]
    for found, (_, score) in zip(mine[1], expected, strict=True):
        assert found.confidence == pytest.approx(score, abs=0.01)
        x0, y0, x1, y1 = map(int, found.box)
        assert found.mask.shape == (48, 80) and not found.mask[:y0].any()
        assert found.mask[y0:y1, x0:x1].any(0)[[0, -1]].all()
    alone = judge.detect(PICTURES[1:2], [("dog",)])[0]
    assert [d.confidence for d in alone] == pytest.approx(
        [d.confidence for d in mine[1] if d.label == "dog"], abs=1e-5
    )


def test_detr_gives_its_classes_boxes_and_refuses_others(folder):
    judge = hf_detector.build(hf_detector.Config(path=fakes.detr(folder / "detr")), "cpu")
    found = judge.detect(PICTURES, [("cat", "dog", "traffic light")] * 4)
    batch = judge.net.processor(images=[PICTURES[0]], return_tensors="pt")
    with torch.no_grad():
        out = judge.net.model(**batch)
    (theirs,) = judge.net.processor.post_process_object_detection(
        out, threshold=0.05, target_sizes=[(64, 64)]
    )
    assert len(found[0]) == len(theirs["scores"]) > 0
    assert found[0][0].confidence == pytest.approx(float(theirs["scores"].max()), abs=1e-4)
    for one in found:
        assert all(0 <= d.box[0] <= d.box[2] <= 80 for d in one)
    with pytest.raises(GessoError, match="does not know the class 'zebra'"):
        judge.detect(PICTURES[:1], [("zebra",)])


@pytest.mark.parametrize("kind", ["owl", "grounding_dino"])
def test_open_vocabulary_detectors_give_the_classes_asked_for(folder, kind):
    judge = hf_detector.build(
        hf_detector.Config(path=getattr(fakes, kind)(folder / kind), floor=0.01), "cpu"
    )
    asked = [("cat", "traffic light"), ("dog",), ("dog", "cat"), ("cat", "traffic light")]
    found = judge.detect(PICTURES, asked)
    for one, names, image in zip(found, asked, PICTURES, strict=True):
        assert one and {d.label for d in one} <= set(names)
        assert [d.confidence for d in one] == sorted((d.confidence for d in one), reverse=True)
        height, width = image.shape[:2]
        assert all(d.box[2] <= width and d.box[3] <= height for d in one)
    again = judge.detect(PICTURES[2:3], asked[2:3])[0]
    assert [d.box for d in again] == [pytest.approx(d.box, abs=0.05) for d in found[2]]


def test_weights_of_another_kind_absent_or_damaged_are_one_sentence(folder, tmp_path):
    path = fakes.clip(folder / "clip-as-detector")
    with pytest.raises(GessoError, match="is a CLIPModel, which the judge hf-detector cannot use"):
        open_judge(f"hf-detector:{path}")
    with pytest.raises(GessoError, match="could not be loaded"):
        open_judge(f"clip:{tmp_path / 'nothing'}")
    with pytest.raises(GessoError, match="There is no YOLOX file"):
        open_judge("yolox:nothing.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(GessoError, match="cannot be read as an ONNX network"):
        open_judge(f"yolox:{broken}")
    with pytest.raises(GessoError, match="cuda"):
        open_judge(f"clip:{path}", "cuda:77")


# ------------------------------------------------------------------------------------- YOLOX


def test_yolox_boxes_are_those_of_the_formula():
    rows = np.zeros((3549, 85), np.float32)
    rows[0, :4] = [0.5, 0.25, np.log(2), np.log(4)]  # first cell of stride 8
    rows[52 * 52 + 27, :4] = [0, 0, 0, 0]  # stride 16: row 1, column 1 of 26
    boxes = yolox.decode(rows, 416)
    assert boxes[0] == pytest.approx([4 - 8, 2 - 16, 4 + 8, 2 + 16])
    assert boxes[52 * 52 + 27] == pytest.approx([16 - 8, 16 - 8, 16 + 8, 16 + 8])
    canvas, scale = yolox.letterbox(np.full((208, 104, 3), (1, 2, 3), np.uint8), 416)
    assert scale == 2 and canvas.shape == (1, 3, 416, 416)
    assert (canvas[0, :, 0, 0] == [3, 2, 1]).all() and (canvas[0, :, 0, 208:] == 114).all()


def test_yolox_on_photos_agrees_with_the_annotations(shared, tmp_path):
    weights, photos = shared / "weights/yolox_nano", shared / "coco_mini"
    if not weights.is_dir() or not photos.is_dir():
        pytest.skip("the YOLOX weights or the photos are not there")
    result = judge_judges([f"yolox:{weights}"], coco=photos, out=tmp_path, quiet=True)
    (row,) = result["rows"]
    assert row["n"] == 80
    assert 0.82 < row["precision"] < 0.92 and 0.50 < row["recall"] < 0.60
    assert row["spearman"] > 0.4 and row["accuracy"] > 0.25
    with pytest.raises(GessoError, match="does not know the class 'unicorn'"):
        open_judge(f"yolox:{weights}").detect([PICTURES[0]], [("unicorn",)])


def test_benchmark_names_of_classes_are_matched_to_a_detectors_own():
    known = {name: i for i, name in enumerate(COCO)}
    assert len(COCO) == 80 and COCO[0] == "person" and COCO[79] == "toothbrush"
    asked = class_indices(("computer mouse", "dog"), known, "x")
    assert asked == {known["mouse"]: "computer mouse", known["dog"]: "dog"}


# ------------------------------------------------------------------------- questions, similarity


def test_blip_answers_as_transformers_alone_does(folder):
    judge = hf_vqa.build(hf_vqa.Config(path=fakes.blip_vqa(folder / "vqa"), batch_size=2), "cpu")
    model, processor = judge.net.model, judge.net.processor
    asked = ["is there a cat ?", "what color is the dog above the red star ?", "is there a dog ?"]
    free = judge.answer(PICTURES[:3], asked, [()] * 3)
    for image, question, answer in zip(PICTURES, asked, free, strict=False):
        batch = processor(images=image, text=question, return_tensors="pt")
        ids = model.generate(**batch, max_new_tokens=hf_vqa.MAX_ANSWER)[:, 1:]
        assert answer.text == processor.decode(ids[0], skip_special_tokens=True)
    yes_no = judge.answer(PICTURES[:3], asked, [YES_NO] * 3)
    for image, question, answer in zip(PICTURES, asked, yes_no, strict=False):
        batch = processor(images=image, text=question, return_tensors="pt")
        likelihood = []
        for choice in YES_NO:
            ids = [fakes.WORDS.index(choice), fakes.WORDS.index("[SEP]")]
            given = torch.tensor([[fakes.WORDS.index("[DEC]"), ids[0]]])
            with torch.no_grad():
                seen = model.vision_model(batch["pixel_values"])[0]
                text = model.text_encoder(
                    batch["input_ids"], batch["attention_mask"], encoder_hidden_states=seen
                )[0]
                logits = model.text_decoder(given, encoder_hidden_states=text).logits
            logs = logits.log_softmax(-1)[0]
            likelihood.append(float(logs[0, ids[0]] + logs[1, ids[1]]))
        p_yes = float(torch.tensor(likelihood).softmax(0)[0])
        assert answer.p_yes == pytest.approx(p_yes, abs=1e-4)
        assert answer.choice == ("yes" if p_yes >= 0.5 else "no")


def test_clip_gives_cosines_and_averages_the_wordings_of_a_text(folder):
    judge = clip.build(clip.Config(path=fakes.clip(folder / "clip"), batch_size=2), "cpu")
    texts = (("a cat",), ("a red dog", "a dog"))
    found = judge.similarity(PICTURES, [texts] * 4)
    batch = judge.net.processor(
        images=PICTURES, text=["a cat", "a red dog", "a dog"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = judge.net.model(**batch)
    image, text = out.image_embeds, out.text_embeds  # of length one
    both = torch.nn.functional.normalize(text[1] + text[2], dim=0)
    expected = torch.stack([image @ text[0], image @ both], 1)
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)
    assert np.allclose(judge.embed(PICTURES), image.numpy(), atol=1e-5)
    (near,) = judge.text_similarity(["a dog"], [("a cat", "a dog")])
    assert near[1] == pytest.approx(1, abs=1e-5) and near[0] < near[1]


def test_batches_keep_order_and_equal_pictures_are_seen_once():
    calls = []

    def run(some):
        calls.append(some)
        return [10 * i for i in some]

    assert in_batches(run, ["a", "b", "a", "b", "a"], 2) == [0, 10, 20, 30, 40]
    assert calls == [[0, 2], [4], [1, 3]]
    one, other = PICTURES[0], PICTURES[1]
    assert same_pictures([one, other, one.copy()]) == ([0, 1], [0, 1, 0])


# ------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("Yes.", YES_NO, "yes"),
        ("no, there is none", YES_NO, "no"),
        ("I do not know", YES_NO, ""),
        ("yes and no", YES_NO, "yes"),
        ("Perhaps yes, perhaps no", YES_NO, ""),
        ("", YES_NO, ""),
        ("Notable", YES_NO, ""),
        ("It is light blue", ("blue", "light blue", "red"), "light blue"),
        ("red or blue", ("blue", "red"), "red"),
        ("either red, or blue", ("blue", "red"), ""),
        ("1/2", ("1", "2"), "1"),
    ],
)
def test_what_a_reply_chooses(text, choices, expected):
    assert parse_choice(text, choices) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("4/5", 4), ("Score: 3.5 out of 5", 3.5), ("7", None), ("2 or 3", None), ("", None)],
)
def test_what_a_reply_rates(text, value):
    assert parse_rating(text, 1, 5).value == value


def test_prompts_tell_how_to_reply():
    assert "yes or no" in ask("Is it?", YES_NO) and "red; blue" in ask("?", ("red", "blue"))
    assert parse_reading(" NONE. ") == "" and parse_reading("OPEN\n24 h") == "OPEN\n24 h"


# ------------------------------------------------------------------------------------ endpoint


@pytest.fixture
def endpoint():
    """A stub of chat completions: replies, or status codes, in turn; keeps what it was sent."""

    class Stub(BaseHTTPRequestHandler):
        script: list = []  # noqa: RUF012
        seen: list = []  # noqa: RUF012

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            Stub.seen.append(body)
            turn = Stub.script.pop(0) if Stub.script else "yes"
            status, said = (turn, "") if isinstance(turn, int) else (200, turn)
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            reply["choices"] = [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": said},
                }
            ]
            data = json.dumps(reply if status == 200 else {"error": {"message": "later"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Stub.script, Stub.seen = [], []
    yield f"http://127.0.0.1:{server.server_port}/v1", Stub
    server.shutdown()
    server.server_close()


def served(url, **options):
    config = openai_compatible.Config(path=url, model="m", parallel=1, **options)
    return openai_compatible.build(config, None)


def test_an_endpoint_that_limits_or_fails_is_asked_again(endpoint):
    url, stub = endpoint
    stub.script = [429, 503, "Yes."]
    (answer,) = served(url).answer(PICTURES[:1], ["Is it red?"], [YES_NO])
    assert answer.choice == "yes" and len(stub.seen) == 3
    content = stub.seen[0]["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert content[1]["text"].startswith("Is it red?") and stub.seen[0]["temperature"] == 0


def test_nonsense_from_an_endpoint_is_an_abstention(endpoint):
    url, stub = endpoint
    stub.script = ["As a model I cannot see", "", "colourless green"]
    answers = served(url).answer(PICTURES[:3], ["?"] * 3, [YES_NO] * 3)
    assert [a.choice for a in answers] == ["", "", ""]
    stub.script = ["between 2 and 4", "3"]
    assert [r.value for r in served(url).rate(PICTURES[:2], ["How good?"] * 2, 1, 5)] == [None, 3]


def test_replies_before_an_endpoint_failed_are_kept(endpoint, tmp_path):
    url, stub = endpoint
    asks = [Question(Picture(pixels=p), "Is it red?", YES_NO) for p in PICTURES[:3]]
    judge = served(url, retries=0)
    first = Asker([judge], tmp_path)
    first.replies(asks[:1])
    stub.script = [429]
    with pytest.raises(GessoError, match=r"replied 429 .* limits the rate.* goes on from here"):
        first.replies(asks)
    stub.seen.clear()
    again = Asker([served(url, retries=0)], tmp_path)
    assert [r.choice for r in again.replies(asks)] == ["yes"] * 3
    assert len(stub.seen) == 2


def test_an_endpoint_that_is_not_there_or_refuses_is_one_sentence(endpoint):
    url, stub = endpoint
    stub.script = [401]
    with pytest.raises(GessoError, match="OPENAI_API_KEY"):
        served(url).read(PICTURES[:1])
    with pytest.raises(GessoError, match="cannot be reached"):
        served("http://127.0.0.1:9/v1", retries=0).read(PICTURES[:1])
    with pytest.raises(GessoError, match="no address"):
        served("gpt")


def test_an_endpoint_that_says_nothing_times_out(monkeypatch):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        judge = served(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", retries=0, timeout=0.2)
        with pytest.raises(GessoError, match=r"did not reply, 1 times within 0\.2 s"):
            judge.read(PICTURES[:1])


# ---------------------------------------------------------------------------------------- OCR


def test_ocr_reads_printed_lines_in_order():
    pytest.importorskip("rapidocr")
    from matplotlib import font_manager

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 28)
    page = Image.new("RGB", (400, 150), "white")
    draw = ImageDraw.Draw(page)
    draw.text((20, 90), "Grand Opening 2024", fill=(200, 0, 0), font=font)
    draw.text((20, 20), "Hello World", fill="black", font=font)
    judge = ocr.build(ocr.Config(), None)
    blank = np.full((100, 200, 3), 255, np.uint8)
    assert judge.read([np.asarray(page), blank]) == ["Hello World\nGrand Opening 2024", ""]


def test_words_are_put_into_reading_order():
    def word(x, y, text):
        return [(x, y), (x + 10, y), (x + 10, y + 10), (x, y + 10)], text

    words = [word(50, 2, "world"), word(0, 40, "below"), word(0, 0, "hello")]
    assert ocr.lines(words) == ["hello world", "below"]


# ------------------------------------------------------------------------------ judges judged


def test_agreement_by_hand():
    box, far = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)
    known = [[("star", "red", box), ("heart", "blue", far)]]
    found = [
        [
            Detection("star", 0.9, box, color="red"),  # right
            Detection("heart", 0.8, box, color="blue"),  # at the wrong place
            Detection("star", 0.2, far, color="red"),  # wrong, not counted as found
        ]
    ]
    row = agreement(found, known)
    assert row["accuracy"] == 0.5 and row["precision"] == 1 and row["recall"] == 1
    # Bins: 0.9 right -> 0.1, 0.8 wrong -> 0.8, 0.2 wrong -> 0.2; each a third.
    assert row["ece"] == pytest.approx((0.1 + 0.8 + 0.2) / 3)
    assert row["spearman"] == pytest.approx(0.8660254)
    assert calibration_error([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0]) == 0
    assert ranks([1, 1], [0, 1]) == {"spearman": None, "kendall": None}


def test_the_reader_gets_worse_with_damage_and_people_are_asked(shared, tmp_path, call):
    code, out, _ = call(
        *("evaluate", "judges", "--judge", "reader:level=2", "--limit", 12, "--json"),
        *("--prompts", shared / "benchmarks"),
    )
    assert code == 0
    rows = json.loads(out)["rows"]
    accuracy = {r["truth"].split(", ")[1]: r["accuracy"] for r in rows if "scenes" in r["truth"]}
    assert accuracy["clean"] > 0.99 > accuracy["noise 48"] > accuracy["blur 3 px"]
    people = [r for r in rows if "mPLUG" in r["judge"] and "DSG questions" in r["truth"]]
    assert 0.4 < people[0]["spearman"] < 0.6
    with pytest.raises(GessoError, match="Nothing is known to judge"):
        judge_judges([f"clip:{fakes.clip(tmp_path / 'clip')}"], out=tmp_path, quiet=True)
