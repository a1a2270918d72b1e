"""Frozen text encoders of the transformers library, read from folders, with their embeddings cached on the disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.numbers import whole

__all__ = ["POOLINGS", "Text", "TextEncoder"]

POOLINGS = ("mean", "first", "model")
"""The ways to make one vector of the tokens of a text; :class:`TextEncoder` explains them."""

_MOST_TOKENS = 32


class Text(NamedTuple):
    """The embeddings of texts.

    Example:
        >>> found = Text(torch.zeros(2, 5), torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool))
        >>> found.at(torch.tensor([1])).pooled.shape, sorted(found.conditions())
        (torch.Size([1, 5]), ['context', 'context_mask', 'pooled'])
    """

    pooled: Tensor
    """One vector for each text, shape ``(batch, features)``."""
    tokens: Tensor
    """One vector for each token, zero after the end of a text, shape ``(batch, length, features)``."""
    mask: Tensor
    """Whether there is a token, shape ``(batch, length)``, booleans."""

    def conditions(self) -> dict[str, Tensor]:
        """Return the embeddings by the names of the conditions of :class:`~scoresde.models.UNet`.

        Of a network with ``context`` and without ``pooled``, leave out the latter.
        """
        return {"context": self.tokens, "context_mask": self.mask, "pooled": self.pooled}

    def at(self, indices: Tensor) -> Text:
        """Return the embeddings of the texts at ``indices``."""
        return Text(self.pooled[indices], self.tokens[indices], self.mask[indices])


class TextEncoder:
    """A frozen text encoder in a folder of the transformers library: BERT and its relatives, CLIP, T5.

    Nothing is downloaded. Its weights get no gradients, and are neither trained nor stored with a model.

    Args:
        folder: the folder with the model and the tokenizer.
        pooling: how the vector of a text is made: ``"mean"`` of its tokens; the ``"first"`` token; or by the ``"model"``,
            its ``pooler_output``.
        length: the number of tokens of a text; longer texts are cut. By default 32, or fewer where the encoder takes fewer.
        cache: a folder for embeddings. They are found again by the identity of the encoder, these settings and the texts.
        device: the device of the encoder and its embeddings.

    Raises:
        ImportError: without transformers.
        ValueError: for a folder without an encoder, and an unknown pooling.

    Attributes:
        features: number of features of an embedding.

    Example:
        >>> encoder = TextEncoder("text-encoder-minilm", cache="embeddings")  # doctest: +SKIP
        >>> encoder(["red apple", "steam locomotive"]).pooled.shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        pooling: str = "mean",
        length: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"got pooling={pooling!r}; expected one of {', '.join(map(repr, POOLINGS))}")
        self.folder, self.pooling, self.cache = Path(folder), pooling, None if cache is None else Path(cache)
        if not (self.folder / "config.json").is_file():
            raise ValueError(
                f"got {str(folder)!r} for a text encoder, where there is no config.json; expected a folder that "
                "save_pretrained of transformers has written, with the model and its tokenizer"
            )
        self.device = as_device(device)
        self.model, self.tokenizer = _opened(self.folder)
        self.model = self.model.to(self.device).requires_grad_(False).eval()
        config = self.model.config
        most = int(getattr(config, "max_position_embeddings", None) or _MOST_TOKENS)
        self.length = min(_MOST_TOKENS, most) if length is None else whole("length", length, 1, most)
        self.features = int(getattr(config, "hidden_size", None) or config.d_model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, pooling={self.pooling!r}, length={self.length})"

    @functools.cached_property
    def identity(self) -> str:
        """What tells the encoder from others: a digest of its weights, its tokenizer and its settings."""
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        words = sorted(self.tokenizer.get_vocab().items())
        return digest(type(self.model).__name__, weights, words, self.pooling, self.length)

    def __call__(self, texts: str | Sequence[str], batch_size: int = 128) -> Text:
        """Return the embeddings of texts, or of a single one, on the device of the encoder.

        Args:
            texts: the texts; an empty one is allowed, and has the embedding that the encoder gives it.
            batch_size: the number of texts that are encoded together.

        Raises:
            ValueError: for no texts.
            TypeError: for entries that are not texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("got no texts to encode; expected at least one")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"got a text of type {type(wrong[0]).__name__}; expected a str")
        file = None if self.cache is None else self.cache / f"{digest(self.identity, texts)[:32]}.safetensors"
        if file is not None and (known := _read(file, self.device)) is not None:
            return known
        found = [self._encode(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        text = Text(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        if file is not None:
            _write(text, file)
        return text

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Text:
        told = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        told = {name: value.to(self.device) for name, value in told.items()}
        output = self.model(**told)
        mask = told["attention_mask"].bool()
        tokens = torch.where(mask[..., None], output.last_hidden_state, 0.0)
        if self.pooling == "model":
            pooled = getattr(output, "pooler_output", None)
            if pooled is None:
                raise ValueError(
                    f"got pooling='model' for {type(self.model).__name__}, which has no pooled output; expected 'mean'"
                )
        elif self.pooling == "first":
            pooled = tokens[:, 0]
        else:
            pooled = tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return Text(pooled.float(), tokens.float(), mask)


def _opened(folder: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer in a folder; of a model with a decoder, its encoder."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "text needs the package transformers, which is not installed; install it: pip install 'scoresde[text]'"
        ) from error
    try:
        with _silent(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).float()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"got {str(folder)!r}, from which no text encoder can be loaded: {error}") from error
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


@contextmanager
def _silent(logging: Any) -> Iterator[None]:
    """Show no progress bars of transformers meanwhile."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write(text: Text, file: Path) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in text._asdict().items()}, temporary)


def _read(file: Path, device: torch.device) -> Text | None:
    """Return cached embeddings; ``None`` for a file that is missing or damaged, which is then written anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
        return Text(*(found[name].to(device) for name in Text._fields))
    except (SafetensorError, OSError, KeyError):
        return None
