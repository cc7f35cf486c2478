"""Pictures that move: H.264 files that every browser plays, and the open-loop comparison of world and model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

SMALLEST = 256  # pixels of the shorter side of a video; less is enlarged by a whole factor
GREEN, RED = (40, 200, 80), (230, 60, 50)  # borders: the model sees the frame, the model dreams it
BORDER, ROWS, PAUSE = 2, 6, 10  # border pixels, sequences shown at most, black frames at the end


class Film:
    """An mp4 written frame by frame, so that an episode never lies in memory. H.264, yuv420p.

    Small frames are enlarged by a whole factor without blurring, odd sizes repeat their last row or column: codecs want even
    ones. The file appears under its name only when the film is closed, and not at all where no frame was added.
    """

    def __init__(self, path: Path, fps: float = 30.0) -> None:
        self.path = Path(path)
        self.frames = 0
        self._fps = Fraction(fps).limit_denominator(1000)
        self._part = self.path.with_name(self.path.name + ".part")
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._shape: tuple[int, ...] = ()

    def add(self, frame: np.ndarray) -> None:
        """Append one frame: uint8 (height, width, 3), the same size each time. Raises ValueError otherwise."""
        import av

        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a video frame must be uint8 of shape (height, width, 3), not {frame.dtype} of {frame.shape}")
        if self.frames and frame.shape != self._shape:
            raise ValueError(f"frame {self.frames} has shape {frame.shape}, the ones before {self._shape}")
        self._shape = frame.shape
        picture = av.VideoFrame.from_ndarray(playable(frame), format="rgb24")
        if self._container is None:
            self._open(picture.width, picture.height)
        assert self._container is not None
        assert self._stream is not None
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def _open(self, width: int, height: int) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": "20", "preset": "veryfast"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.thread_count = 1  # training needs the cores

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._container is None:
            return
        assert self._stream is not None
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._container = None
        os.replace(self._part, self.path)

    def discard(self) -> None:
        """Leave no file."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.discard()


def save_video(path: Path, frames: np.ndarray | Iterable[np.ndarray], fps: float = 30.0) -> Path:
    """Write frames, uint8 (T, height, width, 3), to an mp4 at `fps` frames per second. See `Film` for sizes. Returns the path.

    Raises ValueError for frames of another type or shape, or where there is none.
    """
    with Film(path, fps) as film:
        for frame in frames:
            film.add(frame)
        if not film.frames:
            raise ValueError(f"no frames for {path}")
    return film.path


def playable(frame: np.ndarray) -> np.ndarray:
    """A frame enlarged to at least 256 pixels by repeating its own, with even sides. (height, width, 3) -> (2 i, 2 j, 3)."""
    factor = -(-SMALLEST // min(frame.shape[:2]))
    if factor > 1:
        frame = frame.repeat(factor, 0).repeat(factor, 1)
    height, width = frame.shape[:2]
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def openloop_video(truth: np.ndarray, model: np.ndarray, context: int) -> np.ndarray:
    """Frames that compare the world with the model: sequences side by side; truth, model and error from top to bottom.

    truth, model: (B, T, H, W, 3) floats in [0, 1]; at most 6 sequences are shown. `model` is reconstructed from the posterior
    for the first `context` steps (green border) and dreamed with the recorded actions after that (red border). Error is
    (model - truth + 1) / 2, so grey means none. Ten black frames at the end mark the repetition.
    Returns uint8 (T + 10, 3 H + 4, B (W + 4), 3). As in the open-loop report of danijar/dreamerv3.
    Raises ValueError where shapes differ or `context` is not in 1 ... T.
    """
    truth, model = np.asarray(truth, np.float32), np.asarray(model, np.float32)
    if truth.ndim != 5 or truth.shape[-1] != 3 or truth.shape != model.shape:
        raise ValueError(f"truth and model must both be (B, T, H, W, 3), not {truth.shape} and {model.shape}")
    if not 1 <= context <= truth.shape[1]:
        raise ValueError(f"context is {context}, and must be 1 to {truth.shape[1]}, the number of steps")
    truth, model = truth[:ROWS], model[:ROWS]
    stacked = np.concatenate([truth, model, (model - truth + 1) / 2], 2)
    content = np.rint(255 * stacked.clip(0, 1)).astype(np.uint8)
    columns, length, height, width, _ = content.shape
    framed = np.empty((columns, length, height + 2 * BORDER, width + 2 * BORDER, 3), np.uint8)
    framed[:, :context], framed[:, context:] = GREEN, RED
    framed[:, :, BORDER:-BORDER, BORDER:-BORDER] = content
    frames = framed.transpose(1, 2, 0, 3, 4).reshape(length, height + 2 * BORDER, columns * (width + 2 * BORDER), 3)
    return np.concatenate([frames, np.zeros_like(frames[:1]).repeat(PAUSE, 0)])
