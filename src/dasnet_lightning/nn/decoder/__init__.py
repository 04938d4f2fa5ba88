"""Decoders, which stage two trains. Importing this package registers every builder."""

from dasnet_lightning.nn.decoder import light, paper  # noqa: F401  (imported to register)
from dasnet_lightning.nn.decoder.base import DECODERS, Decoder, build_decoder

__all__ = ["DECODERS", "Decoder", "build_decoder"]
