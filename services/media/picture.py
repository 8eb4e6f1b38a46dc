"""Looks at a picture that a stranger made: a program of its own, run for one picture with little
memory and time, so that what breaks a decoder breaks nothing else.

Standard input is the picture; standard output a line of JSON {"width", "height", "dhash"} and then
the thumbnail, a JPEG. Exit status 1 for what is no picture, or too large a one.
"""

from __future__ import annotations

import io
import json
import resource
import sys

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
PIXELS_MAX = 40_000_000
MEMORY_BYTES = 1 << 30
CPU_S = 8
THUMBNAIL = 320  # pixels, the longer side
QUALITY = 80


def dhash(picture: Image.Image) -> int:
    """64 bits: of each row of 9 grey dots, whether a dot is brighter than the next. Scaling and
    compression change few of them, another picture about half."""
    dots = picture.convert("L").resize((9, 8), Image.Resampling.BOX).tobytes()
    bits = 0
    for row in range(8):
        for column in range(8):
            at = 9 * row + column
            bits = bits << 1 | (dots[at] > dots[at + 1])
    return bits


def look(data: bytes) -> tuple[int, int, int, bytes]:
    """Width and height as it is shown, dhash, thumbnail. Raises ValueError for what is too large,
    and whatever a decoder raises."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        # What the header says, before a dot is decoded: a small file may claim a huge picture.
        if opened.width * opened.height > PIXELS_MAX:
            raise ValueError("too many pixels")
        width, height = opened.size
        if opened.getexif().get(0x0112, 1) >= 5:  # it lies on its side
            width, height = height, width
        opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        opened.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
        small = ImageOps.exif_transpose(opened).convert("RGBA")
    white = Image.new("RGBA", small.size, "white")
    shown = Image.alpha_composite(white, small).convert("RGB")
    bits = dhash(shown)
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    shown.save(out, "JPEG", quality=QUALITY)
    return width, height, bits, out.getvalue()


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        width, height, bits, thumbnail = look(sys.stdin.buffer.read())
    except Exception:  # a decoder fails in any way, and that is all there is to say
        return 1
    head = json.dumps({"width": width, "height": height, "dhash": bits})
    sys.stdout.buffer.write(head.encode() + b"\n" + thumbnail)
    return 0


if __name__ == "__main__":
    sys.exit(main())
