"""Votes of people: the page through HTTP, what is kept, and the ratings."""

import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from gesso.evals.human import Election, elo, read_votes, server, standings
from gesso.png import save_png
from gesso.types import GessoError

DARK, LIGHT = 10, 240


@pytest.fixture
def folders(tmp_path):
    for name, value in (("a", DARK), ("b", LIGHT)):
        (tmp_path / name).mkdir()
        for i in range(6):
            image = Image.fromarray(np.full((16, 16, 3), value, np.uint8))
            about = dict.fromkeys(("seed", "model", "fingerprint", "contract"), name)
            save_png(image, tmp_path / name / f"{i}.png", {"prompt": f"prompt {i}", **about})
    return tmp_path / "a", tmp_path / "b"


@pytest.fixture
def page(folders, tmp_path):
    election = Election(folders, tmp_path / "out/votes.jsonl")
    running = server(election)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", election
    running.shutdown()
    running.server_close()


def get(url):
    with urllib.request.urlopen(url) as reply:
        return reply.read()


def post(url, body):
    data = json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data)) as reply:
        return reply.status


def test_a_blind_session_through_http_is_kept_and_goes_on(page, folders, tmp_path):
    url, _ = page
    assert b"<title>gesso" in get(url)
    lefts = []
    while (told := json.loads(get(f"{url}/next?voter=me")))["pair"] is not None:
        pair = told["pair"]
        assert told["prompt"].startswith("prompt ") and told["of"] == 6
        data = {s: get(f"{url}/picture?pair={pair}&side={s}") for s in ("left", "right")}
        shades = {s: np.asarray(Image.open(io.BytesIO(d)))[0, 0, 0] for s, d in data.items()}
        assert set(shades.values()) == {DARK, LIGHT}
        assert not any(b"fingerprint" in d or b"tEXt" in d or b"iTXt" in d for d in data.values())
        lefts.append(shades["left"])
        post(f"{url}/vote", {"pair": pair, "vote": max(shades, key=shades.get), "voter": "me"})
        if told["done"] == 3:  # a new session goes on after the votes that are kept
            again = Election(folders, tmp_path / "out/votes.jsonl")
            assert len(again.votes) == 4 and again.next("me") == 4 and again.next("you") == 0
    assert len(set(lefts)) == 2  # each folder stood left sometimes
    result = standings(read_votes(tmp_path / "out/votes.jsonl"))
    dark, light = (result["ratings"][str(f)] for f in folders)
    assert result["n"] == 6 and light["wins"] == 6 and dark["losses"] == 6
    assert dark["elo"] < 1000 < light["elo"] and light["low"] > dark["high"]


def test_wrong_requests_are_refused_and_change_nothing(page):
    url, election = page
    bad = ({"pair": 99, "vote": "left", "voter": "x"}, {"pair": 0, "vote": "up", "voter": "x"}, [])
    for body in bad:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(f"{url}/vote", body)
    for path in ("/picture?pair=99&side=left", "/picture?pair=0&side=up", "/../votes.jsonl"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url + path)
    assert election.votes == []


def test_elo_by_hand_and_whatever_the_order():
    # A beat B three times of four: with half a tie more, odds 3.25 : 1.25.
    games = np.array([[0, 1, 1], [0, 1, 1], [1, 0, 1], [0, 1, 1]], float)
    a, b = elo(games, 2)
    assert a - b == pytest.approx(400 * np.log10(3.25 / 1.25), abs=0.01) and a + b == 2000
    assert elo(games[::-1], 2) == pytest.approx([a, b])
    assert elo(np.array([[0, 1, 0.5]] * 9), 2) == pytest.approx([1000, 1000])


def test_cut_lines_and_skips_do_not_count(tmp_path):
    vote = {"picture": "0.png", "left": "a", "right": "b", "vote": "tie", "voter": "x"}
    lines = [json.dumps(vote), json.dumps({**vote, "vote": "skip"}), '{"picture": "1.p']
    (tmp_path / "votes.jsonl").write_text("\n".join(lines))
    result = standings(read_votes(tmp_path / "votes.jsonl"))
    assert result["n"] == 1 and result["ratings"]["a"]["ties"] == 1


def test_folders_without_common_pictures_are_one_sentence(folders, tmp_path):
    (tmp_path / "c").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "c/other.png")
    with pytest.raises(GessoError, match="no picture of the same name"):
        Election([folders[0], tmp_path / "c"], tmp_path / "v.jsonl")
    with pytest.raises(GessoError, match="two folders"):
        Election(folders[:1], tmp_path / "v.jsonl")
