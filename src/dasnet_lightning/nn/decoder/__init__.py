"""Decoders, which stage two trains. Importing this package registers every builder."""

from dasnet_lightning.nn.decoder import light, paper, zoom  # noqa: F401  (imported to register)
from dasnet_lightning.nn.decoder.base import DECODERS, BoxDecoder, Decoder, MapDecoder, build_decoder

__all__ = ["DECODERS", "BoxDecoder", "Decoder", "MapDecoder", "build_decoder"]
