"""The fast path: prepared conditions, schedule tables and packed weights change no picture."""

from __future__ import annotations

import pytest
import torch
from test_pixart import SMALL, diffusers_state, randomised, text
from torch import Tensor

from gesso.backbones.pixart import Config, PixArt
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.guidance import guide
from gesso.diffusion.paths import DDPM, Flow
from gesso.diffusion.schedules import make_schedule
from gesso.nn.compile import compile_blocks
from gesso.nn.linear import Linear
from gesso.nn.packed import packed
from gesso.nn.prepared import Prepared
from gesso.pipeline import Pipeline
from gesso.samplers import euler
from gesso.types import Cond, GessoError, Prediction

CONFIG = Config(**SMALL, base_size=4, null_tokens=20)
MICRO = CONFIG.model_copy(update={"micro_conditions": True})


def captions(*lengths: int, longest: int = 20, seed: int = 1) -> Cond:
    """Captions of these lengths, padded to `longest`, with micro-conditions."""
    cond = text(len(lengths), longest, seed=seed)
    return cond.replace(mask=torch.arange(longest) < torch.tensor(lengths)[:, None])


def joined(prediction: Prediction) -> Tensor:
    return torch.cat([prediction.value, prediction.aux["variance"]], dim=1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("config", [CONFIG, MICRO])
@pytest.mark.parametrize("lengths", [(3, 11), (20, 1), (8, 8), (0, 5)])
@pytest.mark.parametrize("size", [(8, 8), (12, 6)])
def test_a_prepared_condition_gives_the_same_output(config, lengths, size) -> None:
    model, cond = randomised(config), captions(*lengths)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)  # so that rounding alone stays below 1e-6
    x, t = torch.randn(2, 4, *size), torch.tensor([7.0, 7.0])
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        model, cond = model.to(dtype), cond.to(dtype)
        with torch.no_grad():
            plain = joined(model(x, t, cond))
            for times in (None, torch.tensor([998.0, 7.0, 3.25])):
                ready = joined(model(x, t, model.prepare(cond, times)))
                assert (ready - plain).norm() <= tolerance * plain.norm()


@pytest.mark.parametrize("micro", [False, True])
def test_a_prepared_condition_equals_diffusers(micro: bool) -> None:
    from diffusers import PixArtTransformer2DModel

    model = randomised(MICRO if micro else CONFIG)
    peer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=20,
        sample_size=8,
        interpolation_scale=1,
        use_additional_conditions=micro,
    ).eval()
    peer.load_state_dict(diffusers_state(model), strict=True)
    x, t, cond = torch.randn(3, 4, 12, 6), torch.full((3,), 403.0), captions(4, 13, 1)
    added = {"resolution": cond.size, "aspect_ratio": cond.aspect}
    with torch.no_grad():
        ours = joined(model(x, t, model.prepare(cond, t[:1])))
        theirs = peer(
            x,
            encoder_hidden_states=cond.tokens,
            timestep=t,
            added_cond_kwargs=added if micro else dict.fromkeys(added),
            encoder_attention_mask=cond.mask,
        ).sample
    assert close(ours, theirs, 1e-5)


def test_padding_is_dropped_to_a_multiple_of_eight() -> None:
    assert captions(3, 11).trim().tokens.shape[1] == 16
    assert captions(3, 11).trim().mask.sum(1).tolist() == [3, 11]
    assert captions(8, 8).trim().mask is None  # nothing is masked any more
    assert captions(20, 1).trim().tokens.shape[1] == 20  # never longer than it was
    assert captions(0, 5).trim().tokens.shape[1] == 20  # a row that averages its padding
    assert Cond().trim() == Cond()
    ready = randomised(CONFIG).prepare(captions(3, 11))
    k, v = ready.text[0]
    assert k.shape == v.shape == (2, 4, 16, 12)


def test_the_table_is_used_for_its_own_times_only() -> None:
    model = randomised(MICRO)
    ready = model.prepare(captions(4, 9), torch.tensor([998.0, 7.0]))
    assert ready.at(torch.tensor([7.0, 7.0])) is ready.times[7.0]
    assert ready.at(torch.tensor([7.0, 998.0])) is None  # rows at two times
    assert ready.at(torch.tensor([8.0, 8.0])) is None
    x, cond = torch.randn(2, 4, 4, 4), captions(4, 9)
    with torch.no_grad():
        for t in ([7.0, 998.0], [8.0, 8.0]):
            out = joined(model(x, torch.tensor(t), ready))
            assert close(out, joined(model(x, torch.tensor(t), cond)))


@pytest.mark.parametrize("path", [DDPM(), Flow()])
@pytest.mark.parametrize("learned_null", [False, True])
def test_guided_sampling_is_the_same_for_every_prompt(path, learned_null, monkeypatch) -> None:
    model = randomised(MICRO)
    schedule = make_schedule(path, 3)
    looked_up: list[bool] = []
    at = Prepared.at

    def noted(ready: Prepared, t: Tensor) -> tuple[Tensor, Tensor] | None:
        if ready.times:
            looked_up.append(at(ready, t) is not None)
        return at(ready, t)

    monkeypatch.setattr(Prepared, "at", noted)

    def plainly(x: Tensor, t: Tensor, cond: Cond) -> Prediction:  # a backbone without `prepare`
        return model(x, t, cond)

    pictures = []
    with torch.no_grad():
        for seed in (1, 2):  # another prompt: nothing of the first may survive
            cond = captions(5, 12, seed=seed)
            null = model.null(cond) if learned_null else captions(1, 1, seed=9)
            x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            options = {"guidance_scale": 4.5, "schedule": schedule, "interval": (0.0, 0.7)}
            for backbone in (model, plainly):
                denoise = guide(Denoiser(backbone, path, "v"), cond, null, **options)
                pictures.append(euler.sample(denoise, x, schedule))
    assert close(pictures[0], pictures[1], 1e-5) and close(pictures[2], pictures[3], 1e-5)
    assert not close(pictures[0], pictures[2], 0.1)
    assert any(looked_up) and all(looked_up)


def test_gradients_flow_past_a_bound_denoiser() -> None:
    model, cond = randomised(CONFIG), captions(3, 9)
    denoise = Denoiser(model, DDPM(), "epsilon").bind(cond)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([10.0, 500.0])
    for _ in range(2):  # twice: no graph is shared between evaluations
        denoise(x, t).x0.sum().backward()
    assert model.y_embedder.y_proj.fc1.weight.grad.abs().sum() > 0
    assert model.blocks[0].cross_attn.kv_linear.weight.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused_when_prepared() -> None:
    with pytest.raises(GessoError, match="width 20"):
        randomised(CONFIG).prepare(Cond(tokens=torch.zeros(1, 3, 21)))
    with pytest.raises(GessoError, match="micro-conditions"):
        randomised(MICRO).prepare(text().replace(size=None))


@pytest.fixture
def half() -> PixArt:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16 products")
    return randomised(CONFIG).bfloat16()


def test_packed_weights_compute_the_same_and_come_back(half: PixArt) -> None:
    x, t, cond = torch.randn(2, 4, 8, 8), torch.full((2,), 400.0), captions(3, 11)
    before = {k: v.clone() for k, v in half.state_dict().items()}
    parameters = dict(half.named_parameters())
    with torch.no_grad():
        exact = joined(randomised(CONFIG)(x, t, cond))
        plain = joined(half(x, t, cond)).float()
    with torch.inference_mode(), packed(half):
        assert half.blocks[0].mlp.fc1.packed is not None
        assert half.blocks[0].mlp.fc1.weight.numel() == 0  # no second copy
        out = joined(half(x, t, cond)).float()
    scale = exact.norm()
    assert (plain - exact).norm() > 0.001 * scale  # bfloat16's own error ...
    assert (out - exact).norm() < 1.5 * (plain - exact).norm()  # ... is not exceeded
    assert all(torch.equal(v, before[k]) for k, v in half.state_dict().items())
    assert all(p is parameters[k] for k, p in half.named_parameters())
    half(x, t, cond).value.float().sum().backward()  # it can be trained on as before


def test_weights_that_were_loaded_in_inference_mode_come_back_usable(half: PixArt) -> None:
    x, t, cond = torch.randn(2, 4, 8, 8), torch.full((2,), 400.0), captions(3, 11)
    with torch.inference_mode():
        model = PixArt(CONFIG).bfloat16()
        model.load_state_dict(half.state_dict())
        before = joined(model(x, t, cond))
        with packed(model):
            assert model.blocks[0].mlp.fc1.packed is not None
        assert torch.equal(joined(model(x, t, cond)), before)


def test_compiled_blocks_sample_the_same_and_are_not_packed() -> None:
    model, cond = randomised(CONFIG), captions(3, 11)
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 400.0)
    with torch.inference_mode():
        ready = model.prepare(cond, t[:1])
        plain = joined(model(x, t, ready))
        assert compile_blocks([model], learning=False)
        fast = joined(model(x, t, ready))
    assert close(fast, plain, 1e-5)
    model.bfloat16()
    with torch.inference_mode(), packed(model):
        assert model.blocks[0].mlp.fc1.packed is None
    model(x, t, cond).value.float().sum().backward()  # eager, and as before
    assert model.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_packing_is_undone_after_an_error_and_left_out_where_it_does_not_fit(half: PixArt) -> None:
    fc1, before = half.blocks[0].mlp.fc1, half.blocks[0].mlp.fc1.weight.clone()
    with pytest.raises(RuntimeError), torch.no_grad(), packed(half):
        raise RuntimeError
    assert fc1.packed is None and torch.equal(fc1.weight, before)
    with packed(half):  # gradients are recorded
        assert fc1.packed is None
    whole = randomised(CONFIG)
    with torch.no_grad(), packed(whole):  # float32, to be computed in float32
        assert whole.blocks[0].mlp.fc1.packed is None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed(whole):
        assert whole.blocks[0].mlp.fc1.packed is not None
        assert whole.blocks[0].mlp.fc1.weight.dtype == torch.float32
        out = joined(whole(torch.ones(1, 4, 4, 4), torch.ones(1), captions(3)))
    with torch.no_grad():
        exact = joined(whole(torch.ones(1, 4, 4, 4), torch.ones(1), captions(3)))
    assert (out - exact).norm() < 0.03 * exact.norm()


def test_a_pipeline_paints_the_same_with_packed_weights(tiny_model, monkeypatch) -> None:
    tiny_model.backbone.bfloat16()
    pipe = Pipeline(tiny_model)
    before = {k: v.clone() for k, v in tiny_model.state().items()}
    tiny_model.sample.dtype = "bfloat16"
    options = {"seed": 3, "num_inference_steps": 8, "output_type": "latent"}
    pictures, packs, forward = [], [], Linear.packed_forward
    for threshold in (0, 10**9):
        monkeypatch.setattr("gesso.nn.packed.BREAK_EVEN", threshold)
        monkeypatch.setattr(
            Linear, "packed_forward", lambda s, *a, **k: (packs.append(s), forward(s, *a, **k))[1]
        )
        pictures.append(pipe(["a red circle", "two blue stars"], **options).images)
        monkeypatch.undo()
    assert packs and not any(layer.packed is not None for layer in packs)
    assert (pictures[0] - pictures[1]).norm() < 0.03 * pictures[1].norm()
    assert all(torch.equal(v, before[k]) for k, v in tiny_model.state().items())
