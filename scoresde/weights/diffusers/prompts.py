"""The texts of a pipeline of diffusers: its frozen text encoders, and a score model that is told prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.models.embedding import PositionalFeatures
from scoresde.score import ScoreModel, Wrapper
from scoresde.sde import Time
from scoresde.weights.files import WeightsError

__all__ = ["Prompted", "Prompts", "Reader"]

READERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
"""The classes of transformers that pipelines use as text encoders."""
_MOST_KNOWN = 8


@dataclass(frozen=True)
class Reader:
    """A frozen text encoder of transformers with its tokenizer.

    Args:
        tokenizer: the tokenizer.
        model: the text encoder.
    """

    tokenizer: Any
    model: Any

    @classmethod
    def of(cls, folder: Path, name: str, kind: str | None) -> Reader:
        """Load the text encoder ``name`` of a pipeline, of the class ``kind``, with the tokenizer of the same number.

        Raises:
            ImportError: without transformers.
            WeightsError: for another class, and for files that are missing or cannot be read.
        """
        if kind not in READERS:
            raise WeightsError(f"{folder / name} is of a {kind}; expected one of {', '.join(READERS)}")
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                "text needs the package transformers, which is not installed; install it: pip install 'scoresde[text]'"
            ) from error
        where = folder / name.replace("text_encoder", "tokenizer")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, local_files_only=True)
            model = getattr(transformers, kind).from_pretrained(folder / name, local_files_only=True)
        except Exception as error:  # a damaged folder can fail in any way
            raise WeightsError(f"{folder / name} or {where} cannot be loaded: {error}") from error
        return cls(tokenizer, model.float().eval().requires_grad_(False))

    def __call__(self, texts: Sequence[str], length: int | None = None) -> Any:
        """Return the output of the encoder, with its hidden states, for texts padded and cut to ``length`` tokens."""
        config = self.model.config
        most = int(getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length)
        length = length or min(most, self.tokenizer.model_max_length)
        told = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = told["attention_mask"] if getattr(config, "use_attention_mask", False) else None
        return self.model(input_ids=told["input_ids"], attention_mask=mask, output_hidden_states=True)


# What each family of networks is told --------------------------------------------------------------------------------

Told = dict[str, Tensor]


@dataclass(frozen=True)
class Prompts:
    """The text encoders of a pipeline, which make of prompts what its network is told.

    Args:
        readers: the encoders by their names in the pipeline.
        kind: the class of the network in diffusers.
        net: the network.
        factor: the number of pixels of an image for one of a latent, along each axis.
        silent: the encodings of an empty prompt are zeros, as in some pipelines of Stable Diffusion XL.

    Raises:
        WeightsError: for a network and encoders that belong to no family here.
    """

    readers: Mapping[str, Reader]
    kind: str
    net: Any
    factor: int = 1
    silent: bool = False

    def __post_init__(self) -> None:
        if (self.kind, tuple(self.readers)) not in RECIPES:
            known = "; ".join(f"{kind} with {' and '.join(names)}" for kind, names in RECIPES)
            raise WeightsError(f"got a {self.kind} with {' and '.join(self.readers)} for prompts; expected one of {known}")

    def __call__(self, texts: Sequence[str], event: Sequence[int]) -> Told:
        """Return the conditions of ``texts`` for samples of shape ``event``, on the CPU in float32."""
        sizes = tuple(self.factor * n for n in event[-2:])
        with torch.inference_mode(False), torch.no_grad():
            return RECIPES[self.kind, tuple(self.readers)](self, texts, sizes)


# What each family of networks is told --------------------------------------------------------------------------------


def _stable(prompts: Prompts, texts: Sequence[str], sizes: tuple[int, ...]) -> Told:
    """Stable Diffusion 1 and 2: the tokens after the last layer."""
    return {"context": prompts.readers["text_encoder"](texts).last_hidden_state}


def _stable_xl(prompts: Prompts, texts: Sequence[str], sizes: tuple[int, ...]) -> Told:
    """Stable Diffusion XL: the tokens before the last layer, a pooled vector, and the sizes of an image that is not cut."""
    found = [reader(texts) for reader in prompts.readers.values()]
    context = torch.cat([output.hidden_states[-2] for output in found], dim=2)
    pooled = found[-1].text_embeds
    if prompts.silent:
        empty = torch.tensor([not text for text in texts])
        context, pooled = context.masked_fill(empty[:, None, None], 0.0), pooled.masked_fill(empty[:, None], 0.0)
    numbers = torch.tensor([*sizes, 0, 0, *sizes], dtype=torch.float32)
    rest = prompts.net.config["pooled"] - pooled.shape[1]
    if rest <= 0 or rest % (2 * len(numbers)):
        raise ValueError(
            f"got a network told vectors of {prompts.net.config['pooled']} features for a text of {pooled.shape[1]}; "
            f"expected room for the features of {len(numbers)} sizes"
        )
    of_sizes = PositionalFeatures(rest // len(numbers))(numbers).flatten()
    return {"context": context, "pooled": torch.cat([pooled, of_sizes.expand(len(texts), -1)], dim=1)}


def _stable_3(prompts: Prompts, texts: Sequence[str], sizes: tuple[int, ...]) -> Told:
    """Stable Diffusion 3: the tokens of two CLIPs beside each other, those of T5 after them, and both pooled vectors."""
    clips = [prompts.readers[name](texts) for name in ("text_encoder", "text_encoder_2")]
    features = prompts.net.config["context"]
    tokens = torch.cat([output.hidden_states[-2] for output in clips], dim=2)
    tokens = torch.nn.functional.pad(tokens, (0, features - tokens.shape[2]))
    if "text_encoder_3" in prompts.readers:
        more = prompts.readers["text_encoder_3"](texts, 256).last_hidden_state
    else:
        more = tokens.new_zeros(len(texts), 256, features)
    pooled = torch.cat([output.text_embeds for output in clips], dim=1)
    return {"context": torch.cat([tokens, more], dim=1), "pooled": pooled}


def _flux(prompts: Prompts, texts: Sequence[str], sizes: tuple[int, ...]) -> Told:
    """Flux: the tokens of T5, and the pooled vector of CLIP."""
    pooled = prompts.readers["text_encoder"](texts).pooler_output
    return {"context": prompts.readers["text_encoder_2"](texts, 512).last_hidden_state, "pooled": pooled}


Recipe = Callable[[Prompts, Sequence[str], tuple[int, ...]], Told]
RECIPES: Mapping[tuple[str, tuple[str, ...]], Recipe] = {
    ("UNet2DConditionModel", ("text_encoder",)): _stable,
    ("UNet2DConditionModel", ("text_encoder", "text_encoder_2")): _stable_xl,
    ("UNet3DConditionModel", ("text_encoder",)): _stable,
    ("SD3Transformer2DModel", ("text_encoder", "text_encoder_2")): _stable_3,
    ("SD3Transformer2DModel", ("text_encoder", "text_encoder_2", "text_encoder_3")): _stable_3,
    ("FluxTransformer2DModel", ("text_encoder", "text_encoder_2")): _flux,
}
"""What is told, by the class of the network and the names of the text encoders."""


class Prompted(Wrapper):
    """A score model that is told texts, the condition ``prompt``, by frozen text encoders.

    A prompt is a text for each sample, in a list, or one for all of them. The encoders read each text once for a run. The
    conditions of the network itself, such as ``context``, may be given in place of a prompt.

    Args:
        model: any score model.
        prompts: a function of texts and the shape of a sample that returns the conditions of the network; see
            :class:`Prompts`.
    """

    def __init__(self, model: ScoreModel, prompts: Callable[[Sequence[str], Sequence[int]], Told]) -> None:
        super().__init__(model)
        self.prompts = prompts
        self._known: dict[Any, Told] = {}

    def told(self, x: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``conditions`` with the prompt replaced by what the network is told of it.

        Raises:
            ValueError: for another number of prompts than samples, and a prompt beside the conditions that it stands for.
            TypeError: for a prompt that is no text.
        """
        if (prompt := conditions.get("prompt")) is None:
            return {name: value for name, value in conditions.items() if name != "prompt"}
        texts = [prompt] * len(x) if isinstance(prompt, str) else list(prompt)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(
                f"got a prompt of type {type(wrong[0]).__name__}; expected a text for each sample: ['red apple', ..]"
            )
        if len(texts) != len(x):
            raise ValueError(f"got {len(texts)} prompts for {len(x)} samples; expected one for each, or one text for all")
        different = tuple(dict.fromkeys(texts))
        key = (different, tuple(x.shape[1:]))
        if key not in self._known:
            while len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self.prompts(different, x.shape[1:])
        found, which = self._known[key], torch.tensor([different.index(text) for text in texts])
        if both := sorted(found.keys() & conditions.keys()):
            raise ValueError(f"got a prompt and {both[0]}, which the prompt stands for; expected one of the two")
        own = {name: value[which].to(x) for name, value in found.items()}
        return {**{name: value for name, value in conditions.items() if name != "prompt"}, **own}

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse prompts that do not fit the batch, and a batch that does not fit the inner model."""
        self.model.check_start(x, **self.told(x, conditions))

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction of the inner model, shape of ``x``."""
        return self.model.x0(x, t, **self.told(x, conditions))

    def outputs(self, x: Tensor, t: Time, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Return :meth:`forward`, and the inner model's fraction of the learned variance, both of the shape of ``x``."""
        return self.forward(x, t, **conditions), self.model.outputs(x, t, **self.told(x, conditions))[1]

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return functions like those of :meth:`at`, with the inner model's fraction of the learned variance beside each."""

        def bind(t: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            return lambda x: (self.x0(x, t, **conditions), self.outputs(x, t, **conditions)[1])

        return [bind(t) for t in times.to(device="cpu", dtype=torch.float64)]
