"""`preprocessor_config.json` of a Hugging Face image model, in the words of `pipeline.json`.

Only what `wire.processing` computes is taken over: a bilinear resize, a scale, mean and standard deviation. Anything
else is refused with its name, so that no model is silently fed other pictures than it was trained on; who accepts the
difference describes `[image]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.errors import Incompatible, Malformed
from compiler.sources.files import read_json
from wire.errors import WireError
from wire.pipeline import Image

_BILINEAR = 2
"""The library's number of the filter."""


def image_of(folder: Path, config: Mapping[str, Any]) -> Image:
    """How a picture becomes `pixel_values`. Raises `Malformed`, or `Incompatible` for steps that cannot be done."""
    path = folder / "preprocessor_config.json"
    says = read_json(path)
    height, width = _size(says, path)
    _check_steps(says, path)
    channels = config.get("num_channels", 3)
    scale = _number(says, "rescale_factor", 1 / 255, path) if says.get("do_rescale", True) else 1.0
    normal = bool(says.get("do_normalize", True))
    try:
        return Image(
            height=height,
            width=width,
            channels=channels if isinstance(channels, int) else 0,
            layout="NCHW",
            scale=scale,
            mean=_numbers(says, "image_mean", path) if normal else (),
            std=_numbers(says, "image_std", path) if normal else (),
        )
    except WireError as e:
        raise Malformed(f"source {path}: {e}") from e


def _size(says: Mapping[str, Any], path: Path) -> tuple[int, int]:
    size = _sides(says.get("size"))
    if not says.get("do_center_crop", False):
        if size is None:
            raise _refused(path, f"size {says.get('size')}: a picture is resized to a height and width")
        return size
    cut = _sides(says.get("crop_size"))
    if cut is None or cut != size:
        raise _refused(path, f"a crop to {says.get('crop_size')} after a resize to {says.get('size')}")
    return cut


def _sides(size: object) -> tuple[int, int] | None:
    """Older files hold one number for a square."""
    if isinstance(size, int):
        return size, size
    match size:
        case {"height": int(height), "width": int(width)}:
            return height, width
        case _:
            return None


def _check_steps(says: Mapping[str, Any], path: Path) -> None:
    if says.get("do_resize", True) and says.get("resample", _BILINEAR) != _BILINEAR:
        raise _refused(path, f"resample {says.get('resample')}: pictures are resized bilinearly (2)")
    if says.get("do_flip_channel_order", False):
        raise _refused(path, "do_flip_channel_order: channels stay in the order of the picture")


def _refused(path: Path, what: str) -> Incompatible:
    return Incompatible(
        f"source {path}: {what}; if that may differ, describe [image] with the size that the model takes"
    )


def _number(says: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = says.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Malformed(f"source {path}: {key}: expected a number")
    return float(value)


def _numbers(says: Mapping[str, Any], key: str, path: Path) -> tuple[float, ...]:
    value = says.get(key)
    if not isinstance(value, list) or not all(isinstance(v, (int, float)) for v in value):
        raise Malformed(f"source {path}: {key}: expected a list of numbers, one for each channel")
    return tuple(float(v) for v in value)
