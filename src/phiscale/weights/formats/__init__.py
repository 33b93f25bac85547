"""The layouts that are known, one file each: a map of names and nothing else."""

from phiscale.weights.formats.article import ARTICLE
from phiscale.weights.formats.huggingface import HUGGINGFACE
from phiscale.weights.formats.keras import KERAS
from phiscale.weights.formats.keymap import KeyMap
from phiscale.weights.formats.lukemelas import LUKEMELAS
from phiscale.weights.formats.own import OWN
from phiscale.weights.formats.timm import TIMM
from phiscale.weights.formats.torchvision import TORCHVISION

__all__ = ["FORMATS", "KeyMap"]

FORMATS: dict[str, KeyMap] = {
    "phiscale": OWN,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "lukemelas": LUKEMELAS,
    "keras": KERAS,
    "huggingface": HUGGINGFACE,
    "article": ARTICLE,
}
