"""The command line as a user meets it, in real processes: outputs, exit codes, one-line errors."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file


def gesso(*args, cwd=None, timeout=120, **env):
    return subprocess.run(
        [sys.executable, "-m", "gesso", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, **env},
    )


def refused(done, *says):
    """Exit code 2, one sentence on stderr, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in says:
        assert text in done.stderr


def test_help_is_quick_and_imports_nothing_heavy():
    seconds = []  # of the processor, so that a busy machine does not count
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = gesso("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and "paint" in done.stdout
    assert min(seconds) < 0.5
    loaded = "import gesso, gesso.cli, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_paint_writes_pictures_that_can_be_repainted(call, model_folder, tmp_path):
    args = ("paint", "a red circle", "--model", model_folder, "-n", 2, "--seed", 5, "--json")
    code, out, _ = call(*args)
    assert code == 0
    printed = json.loads(out)
    assert printed.keys() == {"images", "seconds", "seed"} and printed["seed"] == 5
    assert [Path(f).name for f in printed["images"]] == [
        "a-red-circle-5.png",
        "a-red-circle-6.png",
    ]
    second = Image.open(printed["images"][1])
    carried = json.loads(second.text["gesso"])
    assert carried["prompt"] == "a red circle" and carried["seed"] == 6
    assert carried["contract"]["num_inference_steps"] == 3
    again = tmp_path / "again.png"
    code, _, err = call("paint", "--like", printed["images"][1], "--out", again, "--json")
    assert code == 0, err
    # It was painted beside another picture, so float rounding may differ in the last place.
    assert np.abs(np.asarray(Image.open(again)).astype(int) - np.asarray(second)).max() <= 1


def test_like_refuses_another_model_and_foreign_pictures(call, model_folder, tmp_path):
    code, out, _ = call("paint", "a red circle", "-m", model_folder, "--seed", 1, "--json")
    picture = json.loads(out)["images"][0]
    described = model_folder / "gesso.json"
    changed = json.loads(described.read_text()) | {"fingerprint": "0" * 16}
    described.write_text(json.dumps(changed))
    code, _, err = call("paint", "--like", picture)
    assert code == 2 and "was painted by model" in err
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (8, 8)).save(foreign)
    for file, says in ((foreign, "carries no gesso prompt"), (tmp_path / "no.png", "no picture")):
        code, _, err = call("paint", "--like", file)
        assert code == 2 and says in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--size", "63x64"], "no multiple of 8"),
        (["--size", "big"], "not of the form HxW"),
        (["--model", "nowhere"], "no model folder or shipped model 'nowhere'"),
        (["--dtype", "float16"], "use float32 or bfloat16"),
        (["--steps", "0"], "num_inference_steps"),
    ],
)
def test_what_paint_cannot_do_is_one_sentence(call, model_folder, args, says):
    code, out, err = call("paint", "a red circle", "--model", model_folder, *args)
    assert code == 2 and out == "" and says in err
    assert len(err.strip().splitlines()) == 1


def test_paint_needs_a_prompt(call, model_folder):
    code, _, err = call("paint", "--model", model_folder)
    assert code == 2 and "no prompt" in err


def test_an_unwritable_place_is_one_sentence(call, model_folder, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, _, err = call("paint", "x", "--model", model_folder, "--out", file)
    assert code == 2 and "neither a folder nor a .png" in err


def test_a_full_disk_is_one_sentence(call, model_folder):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    link = Path("full.png")
    link.symlink_to("/dev/full")
    code, _, err = call("paint", "x", "--model", model_folder, "--out", link)
    assert code == 2 and "No space left" in err and "Traceback" not in err


def small(recipe_file, tiny_recipe):
    import yaml

    values = tiny_recipe.model_dump(mode="json")
    recipe_file.write_text(yaml.safe_dump(values))
    return recipe_file


def test_train_then_paint_shows_the_validation_picture(call, tiny_recipe, tmp_path):
    recipe = small(tmp_path / "mine.yaml", tiny_recipe)
    code, out, err = call("train", recipe, "train.steps=3", "--run", "runs/a", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["run"] == "runs/a" and printed["steps"] == 3
    assert printed["images_per_second"] > 0 and np.isfinite(printed["loss"])
    sheet = np.asarray(Image.open("runs/a/samples/step-000003.png"))
    prompt = tiny_recipe.validation.prompts[1]
    code, out, err = call("paint", prompt, "--model", "runs/a", "--seed", 1, "--json")
    assert code == 0, err
    painted = np.asarray(Image.open(json.loads(out)["images"][0])).astype(int)
    # Validation painted it among others, so float rounding may differ in the last place.
    assert np.abs(sheet[:64, 64:128].astype(int) - painted).max() <= 1

    code, _, err = call("train", recipe, "--run", "runs/a")
    assert code == 2 and "--resume" in err
    code, out, err = call("train", recipe, "train.steps=5", "--run", "runs/a", "--resume", "--json")
    assert code == 0 and json.loads(out)["steps"] == 5


def test_training_starts_from_another_model(call, tiny_recipe, model_folder, tmp_path):
    recipe = small(tmp_path / "mine.yaml", tiny_recipe)
    args = ("train", recipe, "train.steps=1", "train.lr=0", f"init={model_folder}")
    code, _, err = call(*args, "--run", "tuned", "--json")
    assert code == 0, err
    before = load_file(model_folder / "model.safetensors")
    after = load_file("tuned/checkpoints/step-000001/model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    code, _, err = call(*args, "backbone.depth=3", "--run", "other")
    assert code == 2 and "backbone.depth 3 and starts from" in err


def test_encode_then_train_from_the_cache(call, tiny_recipe, tmp_path):
    recipe = small(tmp_path / "mine.yaml", tiny_recipe)
    code, out, err = call("encode", recipe, "--out", "cache", "--json")
    assert code == 0, err
    assert json.loads(out)["pictures"] == 24
    code, _, err = call("train", recipe, "data.cache=cache", "--run", "runs/a", "--json")
    assert code == 0, err
    assert not Path("runs/a/cache").exists()
    code, _, err = call("train", recipe, "data.cache=cache", "data.source.seed=1", "--run", "b")
    assert code == 2 and "source" in err


def test_an_unknown_recipe_key_names_the_nearest(tmp_path):
    done = gesso("train", "demo", "train.wramup=1", cwd=tmp_path)
    refused(done, "train.wramup", "did you mean 'warmup'")
    assert not (tmp_path / "runs").exists()
    refused(gesso("train", "dmeo", cwd=tmp_path), "did you mean 'demo'")


def test_training_on_bad_folders_is_refused(call, tiny_recipe, tmp_path):
    recipe = small(tmp_path / "mine.yaml", tiny_recipe)
    empty, texts, table = (tmp_path / name for name in ("empty", "texts", "table"))
    for folder in (empty, texts, table):
        folder.mkdir()
    (texts / "a.txt").write_text("a red circle")
    Image.new("RGB", (64, 64)).save(table / "a.png")
    (table / "metadata.csv").write_text("file_name,captoin\na.png,hello\n")
    source = 'data.source={{name: folder, path: "{}"}}'
    for folder, says in ((empty, "no files"), (texts, "text"), (table, "captoin")):
        code, _, err = call("train", recipe, source.format(folder), "--run", "r")
        assert code == 2 and says in err.lower(), err
        assert len(err.strip().splitlines()) == 1 and not (tmp_path / "r" / "checkpoints").exists()


def test_an_output_folder_below_a_file_is_one_sentence(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = call("paint", "a star", "--steps", "1", "--out", "file/pictures")
    assert code == 2 and not out
    assert err.startswith("gesso: Could not write") and "Not a directory" in err
    assert "Traceback" not in err
