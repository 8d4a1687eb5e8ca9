"""What a predictor must know of a model to agree with its training. Plain data, no torch.

A `Card` travels in the bundle and in the ONNX file's metadata; `Preprocessing` is the part that turns
a picture into the input tensor, read by the predictor, the server and the Triton repository alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from saccade.errors import BundleError

Task = Literal[
    "classification",
    "embedding",
    "zero_shot",
    "features",
    "detection",
    "instance_segmentation",
    "semantic_segmentation",
    "depth",
]
Resampler = Literal["pillow-bilinear", "pillow-bicubic", "opencv-bilinear"]
Resize = Literal["shorter", "stretch", "fit"]


@dataclasses.dataclass(frozen=True, slots=True)
class Preprocessing:
    """From an RGB picture (H, W, 3) uint8 to a float32 tensor (3, *input_size_hw).

    1. resize: ``shorter`` scales the shorter side to `resize_hw[0]`, keeping the aspect ratio
       (the longer side is ``int(long * resize / short)``, torchvision's rule); ``stretch`` scales to
       `resize_hw` exactly; ``fit`` scales to fit inside `resize_hw` (short, long), mmdet's rule.
    2. centre crop to `input_size_hw` (a smaller picture is padded with zeros, torchvision's rule);
       ``fit`` pads right and bottom to `pad_multiple` instead and does not crop.
    3. divide by `value_range` (255 for cards in units of 0..1, 1 for mmdet cards in units of 0..255).
    4. subtract `mean_rgb`, divide by `std_rgb`.
    """

    input_size_hw: tuple[int, int] = (224, 224)
    resize: Resize = "shorter"
    resize_hw: tuple[int, int] = (256, 256)
    resampler: Resampler = "pillow-bicubic"
    mean_rgb: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std_rgb: tuple[float, float, float] = (0.229, 0.224, 0.225)
    value_range: float = 255.0
    pad_multiple: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """From a text to the tokens of a CLIP model, and from two embeddings to a logit.

    vocabulary, context: of `saccade.tokenizer.Tokenizer`. scale: the factor of cosine similarities before a
    softmax. templates: sentences with one {} for the name of a class; () takes prompts as they are.
    """

    vocabulary: int = 49408
    context: int = 77
    scale: float = 100.0
    templates: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """One model: what it is, how its input is made, where it comes from.

    `parameters` and `multiply_accumulates` are counts for one picture at `preprocessing.input_size_hw`;
    `top1` is the published ImageNet-1k accuracy in percent at that size, None where nothing was published.
    `unit` is that of depths: "metre", or "relative" where it is not known. `texts` says how the text tower
    reads, None where there is none.
    """

    name: str
    family: str
    task: Task = "classification"
    preprocessing: Preprocessing = Preprocessing()
    labels: tuple[str, ...] = ()
    unit: str = ""
    texts: Texts | None = None
    parameters: int | None = None
    multiply_accumulates: int | None = None
    top1: float | None = None
    paper: str = ""
    weights: str = ""
    licence: str = ""
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Card:
        """Read what `to_json` wrote. Unknown, missing or ill-typed fields raise BundleError by name."""
        fields = dict(_checked(cls, data))
        fields["preprocessing"] = Preprocessing(**_checked(Preprocessing, fields.get("preprocessing", {})))
        if fields.get("texts") is not None:
            fields["texts"] = Texts(**_checked(Texts, fields["texts"]))
        card = cls(**fields)
        _check_choice("task", card.task, get_args(Task))
        _check_choice("resampler", card.preprocessing.resampler, get_args(Resampler))
        _check_choice("resize", card.preprocessing.resize, get_args(Resize))
        return card


_SIZES = ("input_size_hw", "resize_hw")
_COLOURS = ("mean_rgb", "std_rgb")


def _checked(cls: type[Card] | type[Preprocessing] | type[Texts], data: Any) -> dict[str, Any]:
    """`data` with lists as tuples, after checking field names and the types that arithmetic relies on."""
    if not isinstance(data, Mapping):
        raise BundleError(f"{cls.__name__.lower()} must be an object, not {type(data).__name__}")
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    missing = sorted(n for n, f in known.items() if f.default is dataclasses.MISSING and n not in data)
    if unknown or missing:
        raise BundleError(f"{cls.__name__.lower()}: unknown fields {unknown}, missing fields {missing}")
    checked = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    for name, value in checked.items():
        if not _well_typed(name, value):
            raise BundleError(f"{cls.__name__.lower()} field {name!r} has the value {value!r}")
    return checked


def _well_typed(name: str, value: Any) -> bool:
    if name in _SIZES:
        return len(value) == 2 and all(type(v) is int and 0 < v <= 16384 for v in value)
    if name in _COLOURS:
        numbers = all(isinstance(v, int | float) for v in value)
        return len(value) == 3 and numbers and (name == "mean_rgb" or all(v > 0 for v in value))
    if name in ("labels", "templates"):
        return isinstance(value, tuple) and all(isinstance(v, str) for v in value)
    if name in ("pad_multiple", "vocabulary", "context"):
        return type(value) is int and value > 0
    if name in ("value_range", "scale"):
        return isinstance(value, int | float) and value > 0
    if name in ("parameters", "multiply_accumulates", "top1"):
        return value is None or isinstance(value, int | float)
    return name in ("preprocessing", "texts") or isinstance(value, str)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BundleError(f"card field {name!r} is {value!r}; this version knows {', '.join(choices)}")
