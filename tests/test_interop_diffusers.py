"""Solvers as schedulers of diffusers: pipelines unchanged, equal to `sample` on their networks."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from support import covering, generator, mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import DDPM, RectifiedFlow, ScoreModel, guidance, interop, sample, solvers
from scoresde.solvers import SOLVERS, FreshNoise, RowSolver

pytest.importorskip("diffusers")

F64 = torch.float64
ROWS = {name: solver for name in SOLVERS if isinstance(solver := solvers.get(name), RowSolver)}
PREDICTS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


class Net(nn.Module):
    """A smooth network of fixed weights that gets the index of a step, in float32 as from a scheduler."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(0.4 * torch.randn(3, 3 * outputs, generator=generator(1), dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ self.w + torch.cos(t.float().to(x) / 100)[:, None])


class Drawn(FreshNoise):
    """Noise from one generator, as a pipeline draws it."""

    def __init__(self, source: torch.Generator, n: int) -> None:
        super().__init__(range(n), "cpu")
        self.source = source

    def normal(self, out: Tensor) -> Tensor:
        return out.copy_(torch.randn(out.shape, generator=self.source, dtype=out.dtype))


def through(scheduler: Any, net: Any, x: Tensor, source: torch.Generator | None = None, begin: int = 0) -> Tensor:
    """The loop of a pipeline."""
    for t in scheduler.timesteps[begin:]:
        output = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(output, t, x, generator=source).prev_sample
    return x


def model_of(net: nn.Module, predicts: str = "eps", **options: Any) -> ScoreModel:
    return ScoreModel(net, DDPM.linear(1000), predicts, **options)


# The scheduler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_scheduler_takes_the_steps_of_its_solver(name: str) -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    scheduler = interop.diffusers_scheduler(name)
    scheduler.set_timesteps(7)
    found = through(scheduler, net, x, generator(5))
    expected = sample(model_of(net), x, name, 7, noise=Drawn(generator(5), 4), progress=False)
    torch.testing.assert_close(found, expected.x, rtol=1e-9, atol=1e-9)
    wasted = scheduler._rows[0].at is None  # an evaluation before which the state would have to change
    assert len(scheduler.timesteps) == expected.evaluations + wasted
    torch.testing.assert_close(through(scheduler, net, x, generator(5)), found)  # a second run of the same steps


@pytest.mark.parametrize(("path", "predicts"), covering(["t", "karras", "trailing", "leading", "linspace"], PREDICTS))
def test_a_scheduler_takes_every_prediction_and_path(predicts: str, path: str) -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    for end in ("denoise", "flow", "stop"):
        scheduler = interop.diffusers_scheduler("dpm-2", prediction_type=PREDICTS[predicts], path=path, end=end)
        scheduler.set_timesteps(6)
        # A path that leaves out the noisiest steps is taken from the scheduler.
        where = scheduler.points if path == "leading" else path
        expected = sample(model_of(net, predicts), x, "dpm-2", 6, where, end=end, progress=False)
        torch.testing.assert_close(through(scheduler, net, x), expected.x, rtol=1e-9, atol=1e-9)
        assert scheduler.init_noise_sigma == pytest.approx(float(model_of(net).sde.sigma(scheduler.points.times[0])))


def test_the_training_chain_is_that_of_the_scheduler_that_is_replaced() -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    chains = {
        "scaled_linear": DDPM(torch.linspace(0.01**0.5, 0.04**0.5, 300, dtype=F64) ** 2),
        "linear": DDPM(torch.linspace(0.01, 0.04, 300, dtype=F64)),
        "squaredcos_cap_v2": DDPM.cosine(300),
    }
    for name, chain in chains.items():
        theirs = {"num_train_timesteps": 300, "beta_start": 0.01, "beta_end": 0.04, "beta_schedule": name, "steps_offset": 1}
        scheduler = interop.diffusers_scheduler("dpmpp-3m", {**theirs, "prediction_type": "v_prediction"})
        scheduler.set_timesteps(8)
        expected = sample(ScoreModel(net, chain, "v"), x, "dpmpp-3m", 8, progress=False).x
        torch.testing.assert_close(through(scheduler, net, x), expected, rtol=1e-9, atol=1e-9)
    betas = torch.linspace(0.01, 0.04, 300, dtype=F64).tolist()
    scheduler = interop.diffusers_scheduler("dpmpp-3m", num_train_timesteps=300, trained_betas=betas)
    assert scheduler.sde == DDPM(betas).sde()


def test_predictions_are_clipped_where_it_is_asked_for() -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    scheduler = interop.diffusers_scheduler("heun", clip=0.5)
    scheduler.set_timesteps(7)
    expected = sample(model_of(net), x, "heun", 7, transform=lambda m, t: m.clamp(-0.5, 0.5), progress=False)
    torch.testing.assert_close(through(scheduler, net, x), expected.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddpm: variance='learned'", "dpmpp-2m"])
def test_a_network_with_a_learned_variance_gives_both_halves(name: str) -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net(2)
    scheduler = interop.diffusers_scheduler(name, path="trailing")
    scheduler.set_timesteps(7)
    found = through(scheduler, net, x, generator(5))
    model = model_of(net, learned_variance=True)
    expected = sample(model, x, name, 7, "trailing", noise=Drawn(generator(5), 4), progress=False)
    torch.testing.assert_close(found, expected.x, rtol=1e-9, atol=1e-9)


LATER = ["ddim", "dpmpp-3m", "heun", "dpm-3", "unipc-3", "euler-a", "sde-dpmpp-2m"]


@pytest.mark.parametrize("name", LATER)
def test_a_run_may_begin_at_a_noised_image(name: str) -> None:
    """As image-to-image pipelines do: by set_begin_index, and by the first time that is given."""
    x0, net = torch.rand(4, 3, generator=generator(), dtype=F64), Net()
    eps = torch.randn(4, 3, generator=generator(2), dtype=F64)
    for told in (True, False):
        scheduler = interop.diffusers_scheduler(name)
        scheduler.set_timesteps(8)
        begin = 3 * scheduler.order
        if told:
            scheduler.set_begin_index(begin)
        rest = solvers.Path(scheduler.sde, scheduler.points.points[3:], scheduler.points.end)
        start = scheduler.add_noise(x0, eps, scheduler.timesteps[begin : begin + 1].repeat(4))
        torch.testing.assert_close(start, scheduler.sde.perturb(x0, rest.times[0], eps), rtol=0, atol=1e-6)
        found = through(scheduler, net, start, generator(5), begin)
        expected = sample(model_of(net), start, name, path=rest, noise=Drawn(generator(5), 4), progress=False)
        torch.testing.assert_close(found, expected.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "begin"), [("heun", 3), ("pndm", 4), ("edm", 6)])
def test_a_run_cannot_begin_inside_a_step_or_without_its_starting_procedure(name: str, begin: int) -> None:
    scheduler = interop.diffusers_scheduler(name)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(begin)
    with pytest.raises(ValueError, match="starts no step"):
        scheduler.step(torch.zeros(2, 3), scheduler.timesteps[begin], torch.zeros(2, 3))


def test_times_may_be_given_as_times_of_the_network_or_as_levels() -> None:
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    sde = model_of(net).sde
    t = torch.tensor([999.0, 700.0, 400.0, 100.0, 10.0])
    scheduler = interop.diffusers_scheduler("dpmpp-3m")
    times = [*((t.double() + 1) / 1000).tolist(), 0.0]
    expected = sample(model_of(net), x, "dpmpp-3m", path=times, progress=False).x
    levels = (-sde.lam(torch.tensor(times[:-1], dtype=F64))).exp().tolist()
    for given in ({"timesteps": t.tolist()}, {"sigmas": levels}, {"sigmas": [*levels, 0.0]}):
        scheduler.set_timesteps(**given)
        assert scheduler.num_inference_steps == 5
        torch.testing.assert_close(scheduler.timesteps, t, rtol=0, atol=1e-3)
        torch.testing.assert_close(through(scheduler, net, x), expected, rtol=1e-5, atol=1e-5)
    for wrong in ({}, {"timesteps": [9, 5], "sigmas": [1.0, 0.1]}, {"num_inference_steps": 4, "timesteps": [9, 5]}):
        with pytest.raises(ValueError, match="expected"):
            scheduler.set_timesteps(**wrong)


def test_a_pipeline_may_change_the_state_and_a_state_in_half_precision_is_kept_in_single() -> None:
    net = Net()
    scheduler = interop.diffusers_scheduler("heun")
    scheduler.set_timesteps(6)
    x = torch.randn(4, 3, generator=generator(), dtype=F64)
    kept = torch.tensor([True, False, False])
    state = x
    for i, t in enumerate(scheduler.timesteps):
        state = scheduler.step(net(state, t.expand(4)), t, state).prev_sample
        if i == 3:  # at the end of the second step, a part of the state is replaced, as in inpainting
            state = torch.where(kept, torch.ones_like(state), state)
            halfway = state
    rest = solvers.Path(scheduler.sde, scheduler.points.points[2:], "denoise")
    expected = sample(model_of(net), halfway, "heun", path=rest, progress=False).x
    torch.testing.assert_close(state, expected, rtol=1e-9, atol=1e-9)
    assert bool((halfway[:, 0] == 1).all())

    scheduler = interop.diffusers_scheduler("ddim")
    scheduler.set_timesteps(200)
    half = through(scheduler, lambda x, t: torch.zeros_like(x), x.half())
    assert half.dtype == torch.float16
    exact = through(scheduler, lambda x, t: torch.zeros_like(x), x.half().double())
    torch.testing.assert_close(half.double(), exact, rtol=2e-3, atol=0)  # one rounding, not two hundred


def test_rectified_flow_takes_the_steps_of_diffusers_own_scheduler() -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x * 0.3 + t[:, None].to(x) / 1000)

    x = torch.randn(4, 3, generator=generator(), dtype=F64)
    for options, given in (
        ({}, {"num_inference_steps": 6}),
        ({"shift": 3.0}, {"num_inference_steps": 6}),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 6, "mu": 0.8}),
        ({"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.4, 0.1]}),
    ):
        theirs = FlowMatchEulerDiscreteScheduler(**options)
        ours = interop.diffusers_scheduler("velocity-1", theirs)
        found = []
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(**given)
            found.append(through(scheduler, net, x) if scheduler is ours else _theirs(scheduler, net, x))
        if "shift" in options and "sigmas" not in given:  # theirs shifts the last time twice
            continue
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-4, atol=0)
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert isinstance(ours.sde, RectifiedFlow)
    with pytest.raises(ValueError, match="mu"):
        interop.diffusers_scheduler("velocity-1", FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)).set_timesteps(
            4
        )
    eps = torch.randn(4, 3, generator=generator(2), dtype=F64)
    t = torch.full((4,), 250.0)
    torch.testing.assert_close(ours.scale_noise(x, t, eps), 0.75 * x + 0.25 * eps)


def _theirs(scheduler: Any, net: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
    return x


def test_noise_and_velocity_of_a_training_are_those_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler()
    ours = interop.diffusers_scheduler("ddim", theirs)
    x0, eps = (torch.randn(5, 3, generator=generator(i)) for i in (0, 1))
    t = torch.tensor([0, 1, 300, 998, 999])
    torch.testing.assert_close(ours.add_noise(x0, eps, t), theirs.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.get_velocity(x0, eps, t), theirs.get_velocity(x0, eps, t), rtol=1e-4, atol=1e-5)
    assert len(ours) == len(theirs)


def test_a_scheduler_is_saved_loaded_and_replaced_by_one_of_diffusers(tmp_path: FilePath) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    from scoresde.interop.scheduler import SolverScheduler

    made = interop.diffusers_scheduler("ddim: eta=0.5", beta_schedule="scaled_linear", path="karras", end="flow", clip=2.0)
    made.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == "SolverScheduler" and stored["solver"] == "ddim: eta=0.5"
    again = SolverScheduler.from_pretrained(tmp_path)
    assert {k: again.config[k] for k in stored if k[0] != "_"} == {k: v for k, v in stored.items() if k[0] != "_"}
    assert "ddim: eta=0.5" in repr(again)
    for scheduler in (made, again):
        scheduler.set_timesteps(9)
    assert torch.equal(made.timesteps, again.timesteps)
    x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
    assert torch.equal(through(made, net, x, generator(3)), through(again, net, x, generator(3)))
    theirs = DPMSolverMultistepScheduler.from_config(made.config)
    assert theirs.config.beta_schedule == "scaled_linear"
    back = SolverScheduler.from_config(theirs.config)
    assert back.config.beta_schedule == "scaled_linear"


def test_what_a_scheduler_cannot_do_is_refused_in_words() -> None:
    for name in SOLVERS:
        if name not in ROWS:
            with pytest.raises(ValueError, match="chooses its own steps"):
                interop.diffusers_scheduler(name)
    scheduler = interop.diffusers_scheduler("ddim")
    scheduler.set_timesteps(5)
    for options in ({"eta": 0.5}, {"use_clipped_model_output": True}):
        with pytest.raises(ValueError, match="given with the solver"):
            scheduler.step(torch.zeros(2, 3), scheduler.timesteps[0], torch.zeros(2, 3), **options)
    with pytest.raises(ValueError, match="expected the first of"):
        scheduler.step(torch.zeros(2, 3), 1234, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="thresholding"):
        interop.diffusers_scheduler("ddim", {"thresholding": True})
    with pytest.raises(ValueError, match="cannot hold"):
        interop.diffusers_scheduler(solvers.ddim(eta=0.5))
    with pytest.raises(TypeError, match="a scheduler of diffusers or its config"):
        interop.diffusers_scheduler("ddim", 3)
    for options, words in (
        ({"beta_schedul": "linear"}, "beta_schedule"),
        ({"path": "trailling"}, "trailing"),
        ({"end": "den"}, "denoise"),
        ({"clip": -1.0}, "positive"),
        ({"shift": 0.0}, "positive"),
        ({"prediction_type": "noise"}, "prediction_type"),
        ({"beta_schedule": "exp"}, "linear"),
    ):
        with pytest.raises(ValueError, match=words):
            interop.diffusers_scheduler("ddim", **options)
    assert interop.diffusers_scheduler(solvers.heun()).config.solver == "heun"


def test_a_solver_of_ones_own_goes_into_a_pipeline_under_a_name() -> None:
    SOLVERS.register("mine", lambda: solvers.ddim(eta=0.3))
    try:
        scheduler = interop.diffusers_scheduler("mine")
        scheduler.set_timesteps(6)
        x, net = torch.randn(4, 3, generator=generator(), dtype=F64), Net()
        expected = sample(model_of(net), x, "ddim: eta=0.3", 6, noise=Drawn(generator(5), 4), progress=False)
        torch.testing.assert_close(through(scheduler, net, x, generator(5)), expected.x, rtol=1e-9, atol=1e-9)
    finally:
        SOLVERS.unregister("mine")


# Pipelines ------------------------------------------------------------------------------------------------------------


def unet(**options: Any) -> Any:
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            **options,
        )


def images(pipeline: Any, seed: int, **options: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(batch_size=2, generator=generator(seed), output_type="np", **options).images
    return torch.as_tensor(found).permute(0, 3, 1, 2)


def shown(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)


PIPED = mostly_slow(["dpmpp-3m", "heun", "euler-a", "ddpm", "unipc-3", "edm", "sde-dpmpp-2m", "rk4"], ["dpmpp-3m"])


@pytest.mark.parametrize("predicts", mostly_slow(["epsilon", "v_prediction"], ["epsilon"]))
@pytest.mark.parametrize("name", PIPED)
def test_a_pipeline_equals_sampling_from_its_loaded_model(name: str, predicts: str, tmp_path: FilePath) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    pipeline = DDPMPipeline(unet(), DDPMScheduler(prediction_type=predicts))
    pipeline.save_pretrained(tmp_path)
    model = scoresde.load(tmp_path)
    pipeline.scheduler = interop.diffusers_scheduler(name, pipeline.scheduler)
    found = images(pipeline, 1, num_inference_steps=6)
    source = generator(1)
    x = torch.randn(2, 1, 8, 8, generator=source)
    expected = sample(model, x, name, 6, noise=Drawn(source, 2), progress=False).x
    size = float(expected.abs().max())  # of a random network, which reaches far beyond 1
    torch.testing.assert_close(found, shown(expected), rtol=0, atol=1e-6 * max(1.0, size))
    assert float(found.std()) > 0.05  # the pictures are not all clamped

    pipeline.save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is type(pipeline.scheduler)
    torch.testing.assert_close(images(again, 1, num_inference_steps=6), found, rtol=0, atol=1e-6)
    assert scoresde.load(tmp_path).sde == model.sde


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpmpp-3m", "heun", "euler-a"])
def test_a_pipeline_of_ddim_takes_a_solver(name: str) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(unet(), DDIMScheduler())
    pipeline.scheduler = interop.diffusers_scheduler(name, pipeline.scheduler)
    found = images(pipeline, 1, num_inference_steps=6)
    source = generator(1)
    x = torch.randn(2, 1, 8, 8, generator=source)
    expected = sample(model_of(pipeline.unet), x, name, 6, noise=Drawn(source, 2), progress=False).x
    torch.testing.assert_close(found, shown(expected), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="given with the solver"):
        images(pipeline, 1, num_inference_steps=6, eta=0.5)


class Transformer(nn.Module):
    """A DiT of diffusers as a network here."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.transformer(x, timestep=t, class_labels=label).sample[:, : x.shape[1]]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", ["dpmpp-3m", "heun", "sde-dpmpp-2m"])
def test_a_pipeline_of_classes_equals_classifier_free_guidance(name: str, scale: float) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=4,
            patch_size=2,
            norm_num_groups=4,
        ).eval()
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4, sample_size=4).eval()
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler(prediction_type="v_prediction"))
    pipeline.scheduler = interop.diffusers_scheduler(name, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"guidance_scale": scale, "num_inference_steps": 5, "output_type": "np", "generator": generator(1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)  # this pipeline gives its generator to the start alone
        found = torch.as_tensor(pipeline(class_labels=[3, 7], **options).images).permute(0, 3, 1, 2)
    x, source, n = torch.randn(2, 4, 4, 4, generator=generator(1)), generator(5), 4 if scale > 1 else 2
    model: ScoreModel = model_of(Transformer(transformer), "v")
    model = guidance.ClassifierFree(model, scale, {"label": 1000}) if scale > 1 else model

    class Doubled(Drawn):  # with guidance the pipeline draws for both halves of its batch, and keeps the first
        def normal(self, out: Tensor) -> Tensor:
            return out.copy_(torch.randn((n, *out.shape[1:]), generator=self.source, dtype=out.dtype)[:2])

    noise = Doubled(source, 2)
    expected = sample(model, x, name, 5, noise=noise, conditions={"label": [3, 7]}, progress=False).x
    with torch.no_grad():
        expected = shown(vae.decode(expected / vae.config.scaling_factor).sample)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
