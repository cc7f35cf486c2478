"""Videos are decoded again and compared; open-loop pictures are checked pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from polydream.eval.video import GREEN, RED, Film, openloop_video, playable, save_video


def read(path: Path) -> tuple[np.ndarray, str, str, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, stream.codec_context.name, str(stream.codec_context.pix_fmt), float(stream.average_rate or 0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (84, 84), (63, 65), (1, 1), (240, 320), (257, 301), (480, 640)])
def test_a_video_holds_what_was_put_in(tmp_path: Path, height: int, width: int) -> None:
    frames = np.zeros((5, height, width, 3), np.uint8)
    for t in range(5):  # colours that change in time and across
        frames[t] = (40 * t, 200 - 30 * t, 90)
        frames[t, :, width // 2 :] //= 2
    path = save_video(tmp_path / "deep/film.mp4", frames, fps=25)
    decoded, codec, pixels, fps = read(path)
    assert (codec, pixels, fps) == ("h264", "yuv420p", 25.0)
    assert decoded.shape[0] == 5
    assert min(decoded.shape[1:3]) >= 256
    assert decoded.shape[1] % 2 == decoded.shape[2] % 2 == 0
    wanted = np.stack([playable(frame) for frame in frames]).astype(int)
    assert decoded.shape == wanted.shape
    assert np.abs(decoded - wanted).mean() < 4  # what chroma subsampling and the codec cost
    assert np.abs(decoded[:, 8:-8, 8 : wanted.shape[2] // 2 - 8] - wanted[:, 8:-8, 8 : wanted.shape[2] // 2 - 8]).max(initial=0) < 12
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_small_frames_are_enlarged_by_a_whole_factor_without_blur() -> None:
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    big = playable(frame)
    assert big.shape == (256, 384, 3)
    for i in range(2):
        for j in range(3):
            assert (big[128 * i : 128 * (i + 1), 128 * j : 128 * (j + 1)] == frame[i, j]).all()
    odd = np.random.default_rng(0).integers(0, 256, (257, 301, 3), np.uint8)
    even = playable(odd)
    assert even.shape == (258, 302, 3)
    assert (even[:257, :301] == odd).all()
    assert (even[257, :301] == odd[256]).all()
    assert (even[:257, 301] == odd[:, 300]).all()


def test_bad_frames_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    good = np.zeros((8, 8, 3), np.uint8)
    for bad in (good.astype(np.float32), good[..., 0], np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            save_video(path, [good, bad])
    with pytest.raises(ValueError, match="frame 1"):
        save_video(path, [good, np.zeros((8, 9, 3), np.uint8)])
    with pytest.raises(ValueError, match="no frames"):
        save_video(path, [])
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_film_does_not_replace_the_last_one(tmp_path: Path) -> None:
    path = save_video(tmp_path / "film.mp4", np.full((3, 8, 8, 3), 200, np.uint8))
    film = Film(path)
    film.add(np.zeros((8, 8, 3), np.uint8))
    assert len(read(path)[0]) == 3
    film.close()
    film.close()
    assert len(read(path)[0]) == 1


def test_openloop_by_hand() -> None:
    truth = np.zeros((2, 3, 4, 5, 3), np.float32)
    model = np.zeros_like(truth)
    truth[1], model[1] = 1.0, 0.5
    truth[0, 2] = 0.2
    frames = openloop_video(truth, model, context=2)
    assert frames.shape == (3 + 10, 3 * 4 + 4, 2 * (5 + 4), 3)
    assert frames.dtype == np.uint8
    first, second = frames[:3, :, :9], frames[:3, :, 9:]
    for part in (first, second):
        for t, colour in enumerate((GREEN, GREEN, RED)):
            edge = part[t].copy()
            assert (edge[:2] == colour).all()
            assert (edge[-2:] == colour).all()
            assert (edge[:, :2] == colour).all()
            assert (edge[:, -2:] == colour).all()
    inside = frames[:3, 2:-2]
    assert (inside[:2, :4, 2:7] == 0).all()  # truth of the first sequence
    assert (inside[2, :4, 2:7] == 51).all()
    assert (inside[:, 4:8, 2:7] == 0).all()  # its model
    assert (inside[:2, 8:, 2:7] == 128).all()  # no error: grey
    assert (inside[2, 8:, 2:7] == 102).all()  # (0 - 0.2 + 1) / 2
    assert (inside[:, :4, 11:16] == 255).all()
    assert (inside[:, 4:8, 11:16] == 128).all()
    assert (inside[:, 8:, 11:16] == 64).all()
    assert (frames[3:] == 0).all()


def test_openloop_shows_six_sequences_and_refuses_nonsense() -> None:
    video = np.zeros((9, 2, 4, 4, 3), np.float32)
    assert openloop_video(video, video, 1).shape[2] == 6 * 8
    for context in (0, 3):
        with pytest.raises(ValueError, match="context"):
            openloop_video(video, video, context)
    with pytest.raises(ValueError, match="truth and model"):
        openloop_video(video, video[:, :1], 1)
