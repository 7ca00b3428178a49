# SPDX-License-Identifier: Apache-2.0
"""Text files, compressed or not, as lines or as blocks of whole lines in constant memory."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from bert4rec_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Larger blocks than Arrow's 1 MiB need about a third less time: fewer dictionaries are unified.
_BLOCK_BYTES = 1 << 24
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
# pzstd and seekable files begin with a skippable frame, which has one of 16 magic numbers.
_COMPRESSIONS |= {bytes([0x50 + i]) + b"\x2a\x4d\x18": "zstd" for i in range(16)}
_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*\"[^\"]*\"\s*:")
_ARCHIVES = (b"PK\x03\x04", b"\xfd7zXZ", b"7z\xbc\xaf", b"PAR1")
_ENDINGS = (".gz", ".bz2", ".zst")


def plain_name(path: str) -> str:
    """Returns the path in lower case without the extension of a compression."""
    stem, ending = os.path.splitext(path.lower())
    return stem if ending in _ENDINGS else path.lower()


def open_bytes(path: str) -> io.BufferedReader:
    """Opens a file for reading; decompresses gzip, bzip2 and Zstandard.

    The compression is detected from the first bytes, not the extension.

    Raises:
      UserError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        compression = next(
            (name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None
        )
        if compression is None:
            return open(path, "rb")
        return io.BufferedReader(
            _Checked(path, pa.CompressedInputStream(pa.OSFile(path), compression)), 1 << 20
        )
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check config.data.path."
        ) from None


class _Checked(io.RawIOBase):
    """An Arrow stream as a Python file; damage raises a `UserError` with the path."""

    def __init__(self, path: str, stream: pa.NativeFile):
        self._path = path
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            data = self._stream.read(len(view))
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"{self._path} is damaged or cut short ({reason}); create or download it again."
            ) from None
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def check_text(path: str) -> None:
    """Checks that a file exists, is not empty, and is text.

    Raises:
      UserError: it is not; names the path.
    """
    with open_bytes(path) as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise UserError(f"{path} is empty; it should contain interactions or items.")
    if head.startswith(_ARCHIVES) or b"\0" in head:
        raise UserError(
            f"{path} is not plain text (binary, or an archive); unpack it, or give text (also .gz, "
            ".bz2, .zst) or a .parquet file."
        )
    if found := _JSON.match(head):
        lines = "False" if found[2] else "True"
        raise UserError(
            f'{path} is JSON; convert it, for example with python -c "import pandas; '
            f"pandas.read_json('{path}', lines={lines}).to_csv('log.csv', index=False)\"."
        )


def lines_of(path: str, encoding: str) -> io.TextIOWrapper:
    """Opens a text file; line breaks stay as they are, and a byte order mark is skipped."""
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(open_bytes(path), codec, newline="")


def first_lines(path: str, count: int) -> list[str]:
    """Returns the first lines of a UTF-8 text file that are not blank, without line breaks."""
    check_text(path)
    try:
        with lines_of(path, "utf-8") as file:
            filled = (line.rstrip("\r\n") for line in file if line.strip())
            return list(itertools.islice(filled, count))
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text; convert it, for example with iconv, or give a .parquet "
            "file."
        ) from None


def first_line(path: str) -> str:
    """Returns the first line of a UTF-8 text file that is not blank, without the line break."""
    return next(iter(first_lines(path, 1)), "")


def line_blocks(path: str, quotes: bool, skip_line: bool) -> Iterator[bytes]:
    """Yields the file in blocks of whole rows; a line break in quotation marks does not end a row.

    Args:
      path: of the file.
      quotes: whether fields may be quoted.
      skip_line: whether to skip the first line that is not blank: the header.
    """
    with open_bytes(path) as file:
        rest = b""
        first = True
        while data := file.read(_BLOCK_BYTES):
            if first and data.startswith(b"\xef\xbb\xbf"):
                data = data[3:]
            data = rest + data
            rest = b""
            if first and skip_line:
                begin = len(data) - len(data.lstrip(b"\r\n \t"))
                end = data.find(b"\n", begin)
                if end < 0:
                    rest = data
                    continue
                data = data[end + 1 :]
            first = False
            end = _last_row_end(data, quotes)
            rest = data[end:]
            if end:
                yield data[:end]
        if rest.strip() and not (first and skip_line):
            yield rest


def _last_row_end(data: bytes, quotes: bool) -> int:
    """Returns the end of the last whole row; the first row begins at 0."""
    end = data.rfind(b"\n") + 1
    if not quotes or b'"' not in data:
        return end
    # Inside quotation marks, the number of marks before is odd.
    odd = data.count(b'"', 0, end) % 2
    while end and odd:
        before = data.rfind(b"\n", 0, end - 1) + 1
        odd = (odd + data.count(b'"', before, end)) % 2
        end = before
    return end


def encoding_of(path: str) -> str:
    """Returns "utf-8", or "latin-1" if the file is not UTF-8. MovieLens files use both."""
    check_text(path)
    with open_bytes(path) as file:
        try:
            file.read().decode("utf-8")
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"
