"""Solvers as schedulers of diffusers. Importing this module needs diffusers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.interop.ask_tell import AskTell, rows_of
from scoresde.sde import ChainSDE, GaussianSDE, RectifiedFlow
from scoresde.sde.chain import Chain
from scoresde.solvers import PATHS, Path, Point, get, make_path
from scoresde.solvers.updates import Update
from scoresde.weights.diffusers import Scheduler, process

try:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
    from diffusers.utils.torch_utils import randn_tensor
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "diffusers":
        raise
    raise ModuleNotFoundError(
        "diffusers is not installed, and a scheduler for its pipelines needs it: pip install 'scoresde[peers]'",
        name="diffusers",
    ) from error

__all__ = ["SolverScheduler"]

FLOW = "flow_prediction"
"""The ``prediction_type`` of networks that predict the velocity eps - x_0 of rectified flow, as in Stable Diffusion 3."""

Generators = torch.Generator | list[torch.Generator] | None


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers publishes no types
    """A solver as a scheduler of diffusers; :func:`scoresde.interop.diffusers_scheduler` makes one.

    ``timesteps`` lists the time of every evaluation of the network, so that a pipeline that calls the network once for each
    of them, and :meth:`step` with its output, makes all evaluations of the solver. ``num_inference_steps`` counts the steps
    of the solver. A solver that adds noise before its first evaluation has one more entry at the start, whose output it does
    not use.

    Args:
        solver: a name of ``scoresde.solvers.SOLVERS``, with settings after it: ``"ddim: eta=0.5"``.
        path: a name of ``scoresde.solvers.PATHS``. The default is the path of a solver that brings one, such as ``"auto"``;
            otherwise ``"lam"``, and ``"t"`` for rectified flow.
        end: the end of the path, as in :func:`scoresde.sample`; by default the solver's own, mostly ``"denoise"``.
        clip: the largest absolute value of a data prediction; ``None`` does not clip.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the training chain.
        prediction_type: the quantity that the network predicts: ``"epsilon"``, ``"sample"`` or ``"v_prediction"`` on a
            chain, ``"flow_prediction"`` on rectified flow.
        shift: the factor by which the times of rectified flow are shifted towards the noise, s t / (1 + (s - 1) t).
        use_dynamic_shifting: whether ``set_timesteps`` gets the logarithm of the shift, ``mu``, from the pipeline.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: numbers from which pipelines compute ``mu``.

    Raises:
        ValueError: for an unknown solver, path, end, schedule or prediction, and a solver that chooses its own steps.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012  # read by diffusers as a list

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: str = "dpmpp-2m",
        path: str | None = None,
        end: str | None = None,
        clip: float | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
    ) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(f"got clip={clip}; expected a positive number, the largest value of data, or None")
        if not shift > 0:
            raise ValueError(f"got shift={shift}; expected a positive number")
        self.method = get(solver)
        self.spacing = PATHS[path or ("t" if prediction_type == FLOW else "lam")]
        self.sde, self.predicts = _process(self.config)
        self.end = end or self.method.own_end
        self.brings_path = path is None and self.method.brings_path
        self._set(make_path(self.sde, "t", 2, end=self.end))  # refuses a solver without rows, and an unknown end
        self.num_inference_steps: int | None = None

    # The run ---------------------------------------------------------------------------------------------------------

    def _set(self, path: Path, device: Any = None) -> None:
        self.points = path
        self._rows = rows_of(self.method, path)
        self.timesteps = self._net_times(_evaluated(self._rows, path)).to(device)
        self._run: AskTell | None = None
        self._begin_index: int | None = None
        self._index: int | None = None
        self._given: Tensor | None = None
        self._generator: Generators = None

    def _net_times(self, t: Sequence[float]) -> Tensor:
        times = torch.tensor(t, dtype=torch.float64)
        if isinstance(self.sde, ChainSDE):
            return self.sde.chain.index(times).float()
        return times.mul(self.config["num_train_timesteps"]).float()

    def _times(self, timesteps: Any) -> Tensor:
        """Return the times of the process that belong to the network's times, float64."""
        given = torch.as_tensor(timesteps).to(device="cpu", dtype=torch.float64)
        count = self.config["num_train_timesteps"]
        found: Tensor = ((given + 1) / len(self.sde.chain) if isinstance(self.sde, ChainSDE) else given / count).clamp(0, 1)
        return found

    @property
    def order(self) -> int:
        """The number of evaluations of the network in a step of the solver."""
        return self.method.description.evaluations or 1

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the start."""
        return self.points.points[0].sigma

    @property
    def begin_index(self) -> int | None:
        """The number of the entry of ``timesteps`` from which the pipeline starts, if it has been set."""
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The number of the entry of ``timesteps`` whose output is expected next; ``None`` before the first step."""
        return self._index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start from a later entry of ``timesteps``, as pipelines do that start from a noised image."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the number of steps of the solver, or their times.

        Args:
            num_inference_steps: the number of steps.
            device: the device of ``timesteps``.
            timesteps: in place of a number, the network's times at the starts of the steps, falling.
            sigmas: in place of a number, the levels of noise sigma / alpha there; for rectified flow the times in [0, 1],
                before they are shifted.
            mu: the logarithm of the shift of rectified flow, with ``use_dynamic_shifting``.

        Raises:
            ValueError: for none or several of these, or times that do not fall.
        """
        given = [value is not None for value in (timesteps, sigmas)]
        if all(given) or (num_inference_steps is None and not any(given)):
            raise ValueError("got both or none of timesteps and sigmas; expected a number of steps, or one of the two")
        shift = self._shift(mu)
        if timesteps is not None:
            path = self._through(self._times(timesteps))
        elif sigmas is not None:
            levels = torch.as_tensor(sigmas, dtype=torch.float64)
            levels = levels[:-1] if len(levels) > 1 and levels[-1] == 0 else levels
            path = self._through(_shifted(levels, shift) if self._flow else self.sde.time(-levels.log()))
        elif shift != 1:
            assert num_inference_steps is not None
            n = num_inference_steps + (self.end == "stop")
            path = self._through(_shifted(self.spacing(self.sde, n, self.sde.span[1], self.sde.span[0]), shift))
        else:
            assert num_inference_steps is not None
            if self.brings_path:
                path = self.method.own_path(self.sde, num_inference_steps, end=self.config["end"])
            else:
                path = make_path(self.sde, self.spacing, num_inference_steps, end=self.end)
        if num_inference_steps is not None and len(path) != num_inference_steps:
            raise ValueError(f"got {num_inference_steps} steps and {len(path)} times; expected one of the two")
        self.num_inference_steps = len(path)
        self._set(path, device)

    @property
    def _flow(self) -> bool:
        return isinstance(self.sde, RectifiedFlow)

    def _shift(self, mu: float | None) -> float:
        if mu is not None and self._flow:
            return float(torch.tensor(float(mu), dtype=torch.float64).exp())
        if self.config["use_dynamic_shifting"] and self._flow:
            raise ValueError("got no mu with use_dynamic_shifting; expected set_timesteps(.., mu=..), as pipelines pass it")
        return float(self.config["shift"]) if self._flow else 1.0

    def _through(self, times: Tensor) -> Path:
        clean = [] if self.end == "stop" else [torch.zeros(1, dtype=torch.float64)]
        return Path.from_times(self.sde, torch.cat([times, *clean]), self.end)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return ``sample`` unchanged: the network gets the state itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> Any:
        """Take the output of the network at one entry of ``timesteps``, and return the state at which the next is needed.

        A ``sample`` that differs from the one returned last replaces the state, so that a pipeline may change it on the way.
        In half precision the state is kept in float32.

        Args:
            model_output: the output, shape of ``sample``, or twice its channels with a learned variance.
            timestep: the entry of ``timesteps``; calls follow their order.
            sample: the state, shape ``(batch, *event)``.
            generator: the source of the noise of a stochastic solver: a generator, one for each sample, or ``None`` for
                PyTorch's own, as in diffusers.
            return_dict: whether to return an object with ``prev_sample`` instead of a tuple.
            eta: must be 0: the noise of the solver is set in its name.
            use_clipped_model_output: must be false: ``clip`` is a setting of the scheduler.

        Raises:
            ValueError: for a start between two steps, an option that belongs to another scheduler, or a wrong shape.
        """
        if eta or use_clipped_model_output:
            raise ValueError(
                f"got eta={eta} and use_clipped_model_output={use_clipped_model_output}; expected neither: settings are "
                "given with the solver, diffusers_scheduler('ddim: eta=0.5', clip=1.0)"
            )
        self._generator = generator
        dtype = torch.promote_types(sample.dtype, torch.float32)
        run = self._run
        if run is None:
            run = self._run = self._started(timestep, sample.to(dtype))
            if not self._leads:
                run.tell(model_output.to(dtype))
        else:
            run.tell(model_output.to(dtype), None if sample is self._given else sample.to(dtype))
        assert self._index is not None
        self._index += 1
        x = self._given = run.x.to(sample.dtype)
        if run.ask() is None:  # the next call starts anew
            self._run = self._given = self._index = None
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    @property
    def _leads(self) -> bool:
        return self._rows[0].at is None

    def _started(self, timestep: Any, x: Tensor) -> AskTell:
        entries = [] if self._begin_index is None else [self._begin_index]
        if self._begin_index is None:
            found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
            entries = found.flatten().tolist()
            if not entries:
                raise ValueError(
                    f"got timestep {timestep}; expected the first of scheduler.timesteps, or a later one to start at"
                )
        self._index, path = self._from(entries)
        clip = self.config["clip"]
        return AskTell(
            self.method,
            path,
            x,
            self._draw,
            predicts=self.predicts,
            transform=None if clip is None else functools.partial(_clipped, clip),
        )

    def _from(self, entries: Sequence[int]) -> tuple[int, Path]:
        """Return the first of ``entries`` of ``timesteps`` at which a step starts, and the rest of the path from there."""
        if 0 in entries:
            return 0, self.points
        for i in range(1, len(self.points)):
            path = Path(self.sde, self.points.points[i:], self.points.end)
            times = self._net_times(_evaluated(rows_of(self.method, path), path))
            for entry in entries:
                if torch.equal(times, self.timesteps[entry:].cpu()):
                    return entry, path
        raise ValueError(
            f"got a start at entry {entries[-1]} of scheduler.timesteps, where solver {self.method.name!r} starts no step, "
            f"or would evaluate at other times than from the beginning; expected a multiple of {self.order}, or a solver "
            "without a starting procedure, such as 'dpmpp-3m'"
        )

    def _draw(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        return out.copy_(randn_tensor(tuple(out.shape), self._generator, out.device, out.dtype))

    # The forward process ---------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha x_0 + sigma eps for data, noise and the network's times, shape ``(batch,)`` or ``()``."""
        t = self._times(timesteps)
        alpha, sigma = (expand(f(t), original_samples).to(original_samples) for f in (self.sde.alpha, self.sde.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return :meth:`add_noise` under the name by which pipelines of rectified flow call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the v-prediction alpha eps - sigma x_0 for data and noise, the target of a training."""
        t = self._times(timesteps)
        alpha, sigma = (expand(f(t), sample).to(sample) for f in (self.sde.alpha, self.sde.sigma))
        return alpha * noise - sigma * sample

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _process(config: Mapping[str, Any]) -> tuple[GaussianSDE, str]:
    """Return the process that a configuration describes, and what the network predicts."""
    if config["prediction_type"] == FLOW:
        return RectifiedFlow(1 / config["num_train_timesteps"]), "velocity"
    betas = config["trained_betas"]
    schedule = Scheduler(
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        trained_betas=None if betas is None else tuple(float(b) for b in betas),
        rescale_betas_zero_snr=config["rescale_betas_zero_snr"],
        prediction_type=config["prediction_type"],
    )
    made, predicts, _ = process(schedule, source="the scheduler")
    return made.sde() if isinstance(made, Chain) else made, predicts


def _evaluated(rows: Sequence[Update], path: Path) -> list[float]:
    """Return the times of all evaluations; where updates precede the first, a pipeline needs one at the start as well."""
    leading = [path.points[0].t] if rows[0].at is None else []
    return leading + [row.at.t for row in rows if row.at is not None]


def _shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def _clipped(bound: float, m: Tensor, t: Any) -> Tensor:
    return m.clamp(-bound, bound)
