"""Frames as files that play: GIF, MP4, and a page of HTML with a slider."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.base.files import replacing

__all__ = ["BORDER", "SUFFIXES", "gif", "write_frames"]

BORDER = 255 - 40
"""A light grey, for what is between images and around them."""

SUFFIXES = (".gif", ".mp4", ".html")
"""The formats that :func:`write_frames` writes."""

Frames = np.ndarray[Any, Any]


def write_frames(
    frames: Frames, path: str | os.PathLike[str], fps: float, *, colours: int | None = None, alt: str = ""
) -> None:
    """Write frames to a file that plays, atomically.

    Args:
        frames: RGB bytes, shape ``(frames, height, width, 3)``.
        path: the file, which ends with ``.gif``, ``.mp4`` or ``.html``. MP4 needs the extra ``video``, which brings an
            encoder. The HTML is one page that needs no network; its frames can be stepped through.
        fps: frames in a second.
        colours: the number of colours of a GIF, by default up to 256 in each frame.
        alt: the alternative text of the HTML, for readers who do not see the frames.

    Raises:
        ValueError: for another suffix, a number of frames in a second that is not positive, and MP4 where no encoder is
            installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_frames(np.zeros((2, 8, 8, 3), np.uint8), f"{folder}/black.html", 2)
        ...     Path(folder, "black.html").read_text()[:15]
        '<!doctype html>'
    """
    suffix = Path(path).suffix.lower()
    if not fps > 0:
        raise ValueError(f"got fps={fps}; expected a positive number of frames in a second")
    if suffix not in SUFFIXES:
        raise ValueError(f"got {str(path)!r} for moving pictures; expected a name that ends with .gif, .mp4 or .html")
    if suffix == ".mp4":
        _mp4(frames, fps, path)
        return
    content = gif(frames, fps, colours) if suffix == ".gif" else _page(frames, fps, alt).encode()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def gif(frames: Frames, fps: float, colours: int | None = None) -> bytes:
    """Return frames as a GIF that repeats, each with a palette of its own, or all with one palette of ``colours``.

    Example:
        >>> gif(np.zeros((1, 8, 8, 3), np.uint8), 2)[:6]
        b'GIF89a'
    """
    from PIL import Image

    content, images = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    if colours is not None:
        # From distinct colours, each once: by their number of pixels a few points would lose theirs to the background.
        distinct = np.unique(frames[:: max(1, len(frames) // 8)].reshape(-1, 3), axis=0)
        palette = Image.fromarray(distinct[None]).quantize(colours)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        white = Image.new("RGB", (1, 1), "white").quantize(palette=palette, dither=Image.Dither.NONE).tobytes()[0]
        found = bytearray(palette.getpalette() or b"")
        found[3 * white : 3 * white + 3] = b"\xff\xff\xff"  # a background that is almost white shows on a white page
        for image in images:
            image.putpalette(bytes(found))
    duration = max(20, round(1000 / fps))  # in milliseconds; players take less than 20 for an error
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return content.getvalue()


def _mp4(frames: Frames, fps: float, path: str | os.PathLike[str]) -> None:
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError(
            f"got {str(path)!r}, and no encoder of MP4 is installed; expected a name that ends with .gif, or "
            "pip install 'scoresde[video]'"
        )
    import imageio.v2 as imageio

    height, width = (n + n % 2 for n in frames.shape[1:3])  # which the encoder wants to be even
    even = np.full((len(frames), height, width, 3), BORDER, np.uint8)
    even[:, : frames.shape[1], : frames.shape[2]] = frames
    with replacing(path) as temporary:
        imageio.mimsave(temporary, list(even), fps=fps, macro_block_size=2)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>@alt@</title>
<style>
body { margin: 1rem; font: 15px system-ui, sans-serif }
img { max-width: 100%; height: auto }
input { width: min(24rem, 60vw) }
</style>
<img id="frame" width="@width@" height="@height@" alt="@alt@">
<p><button id="play">Pause</button> <input id="place" type="range" min="0" max="@last@" value="0" aria-label="frame"></p>
<script>
const pictures = [@pictures@], frames = [@order@].map(i => pictures[i]);
const [frame, place, play] = ["frame", "place", "play"].map(name => document.getElementById(name));
let running = !matchMedia("(prefers-reduced-motion: reduce)").matches;
function show(i) { place.value = i; frame.src = "data:image/png;base64," + frames[i]; }
function set(on) { running = on; play.textContent = on ? "Pause" : "Play"; }
play.onclick = () => set(!running);
place.oninput = () => { set(false); show(+place.value); };
setInterval(() => { if (running) show((+place.value + 1) % frames.length); }, @pause@);
set(running);
show(0);
</script>
</html>
"""


def _page(frames: Frames, fps: float, alt: str) -> str:
    pictures: dict[bytes, int] = {}  # each once, though the last is shown for long
    order = [pictures.setdefault(_png(frame), len(pictures)) for frame in frames]
    parts = {
        "alt": html.escape(alt or "an animation"),
        "width": str(frames.shape[2]),
        "height": str(frames.shape[1]),
        "last": str(len(frames) - 1),
        "pause": str(max(20, round(1000 / fps))),
        "order": ",".join(map(str, order)),
        "pictures": ",".join(f'"{base64.b64encode(picture).decode()}"' for picture in pictures),
    }
    page = _PAGE
    for name, part in parts.items():
        page = page.replace(f"@{name}@", part)
    return page


def _png(frame: Frames) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG", optimize=True)
    return content.getvalue()
