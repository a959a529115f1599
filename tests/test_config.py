"""Configurations: defaults, overrides, and one clear sentence for every mistake."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gesso.config import Recipe, load_recipe, module, nearest, recipes, resolve
from gesso.train.stages import load_stages
from gesso.types import GessoError

MINIMAL = {"name": "x", "image_encoder": {"name": "tiny"}, "text_encoder": {"name": "learned"}}


def written(tmp_path, values):
    file = tmp_path / "mine.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(file)


def test_every_shipped_recipe_is_valid():
    assert {"demo", "scenes", "emoji", "coco"} <= set(recipes())
    for stage in [stage for name in recipes() for stage in load_stages(name)]:
        recipe = stage.recipe
        assert isinstance(recipe, Recipe)
        for kind, spec in (
            ("encoders.image", recipe.image_encoder),
            ("encoders.text", recipe.text_encoder),
            ("backbones", recipe.backbone),
            ("data.sources", recipe.data.source),
            ("objectives", recipe.objective),
        ):
            if spec is not None and "words" not in spec:
                resolve(kind, {"words": ["a"], **spec} if spec["name"] == "learned" else spec)


def test_overrides_reach_nested_keys_and_keep_types(tmp_path):
    recipe = load_recipe(
        written(tmp_path, MINIMAL),
        ["train.lr=1e-4", "data.buckets=true", "data.source.name=folder", "train.minutes=null"],
    )
    assert recipe.train.lr == 1e-4
    assert recipe.data.buckets is True
    assert recipe.data.source["name"] == "folder"
    assert recipe.train.minutes is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lrr=1", "did you mean 'lr'"),
        ("trian.lr=1", "did you mean 'train'"),
        ("train.lr=fast", "train.lr = 'fast' is not valid"),
        ("train.lr", "key=value"),
        ("name.x=1", "reaches into 'name'"),
        ("train.schedule=cosinus", "train.schedule = 'cosinus' is not valid"),
        ("sample.num_inference_steps=0", "num_inference_steps"),
        ("sample.sampler=eulr", "no such sampler, did you mean 'euler'\\?$"),
        ("train.save_every=0", "train.save_every = 0 is not valid"),
        ("train.log_every=0", "train.log_every = 0 is not valid"),
    ],
)
def test_a_wrong_override_is_one_sentence(tmp_path, override, says):
    with pytest.raises(GessoError, match=says) as error:
        load_recipe(written(tmp_path, MINIMAL), [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "not readable YAML"),
        ("just words", "not a recipe"),
        ("{}", "lacks the key 'name'"),
    ],
)
def test_a_broken_recipe_file_is_one_sentence(tmp_path, text, says):
    with pytest.raises(GessoError, match=says):
        load_recipe(written(tmp_path, text))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(GessoError, match="did you mean 'demo'"):
        load_recipe("dema")
    with pytest.raises(GessoError, match="no recipe file"):
        load_recipe("nowhere/else.yaml")
    with pytest.raises(GessoError, match="did you mean 'pixart'"):
        module("backbones", "pixard")
    with pytest.raises(GessoError, match=r"unknown key 'dept'.*did you mean 'depth'"):
        resolve("backbones", {"name": "pixart", "dept": 3})
    with pytest.raises(GessoError, match="lacks 'name'"):
        resolve("backbones", {"depth": 3})


@given(st.text(min_size=1, max_size=20))
def test_nearest_never_fails_and_names_something_known(word):
    assert any(known in nearest(word, ["alpha", "beta"]) for known in ("alpha", "beta"))


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=5), max_size=3))
def test_no_dictionary_makes_validation_crash(values):
    from gesso.config import TrainConfig, validate

    try:
        validate(TrainConfig, values, "here")
    except GessoError as error:
        assert str(error)
