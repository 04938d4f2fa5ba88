"""`--json` of the commands: one JSON document on stdout, all messages on stderr."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from dasnet_lightning.errors import DasnetError


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, messages on stderr")


@contextmanager
def json_document(enabled: bool) -> Iterator[dict[str, Any]]:
    """Yield a dict that is printed as JSON on stdout at the end; everything else that is printed goes to stderr.

    After an error of the library, the document has the key "error" with its message too. Only rank 0 prints.

    Args:
        enabled: False changes nothing and prints nothing.
    """
    document: dict[str, Any] = {}
    if not enabled:
        yield document
        return
    stdout = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield document
    except DasnetError as error:
        document["error"] = str(error)
        raise
    finally:
        from dasnet_lightning.distributed import is_rank_zero

        if document and is_rank_zero():
            print(json.dumps(plain(document), indent=1, ensure_ascii=False), file=stdout, flush=True)


def plain(value: Any) -> Any:
    """Return the value as JSON has it: numbers that are not finite become null, paths and other objects text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
