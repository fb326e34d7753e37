"""A QR code as lines of text: two rows of modules a line, in half blocks.

Light modules are drawn, dark ones left to the terminal's background: that is right on a dark terminal. A light one shows the inverse, which
most readers take as well; the URI stands beside it.
"""

from itertools import zip_longest
from typing import Final

import segno

# ISO/IEC 18004, 9.1: the quiet zone is 4 modules wide on all sides.
_QUIET_ZONE: Final = 4
# Upper half light, lower half light → the character.
_BLOCKS: Final = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}


def qr_lines(text: str) -> list[str]:
    """The code of a text, error correction level M, as lines of equal width. Raises segno.DataOverflowError for a text that is too long."""
    code = segno.make_qr(text, error="m", boost_error=False)
    rows = [[not module for module in row] for row in code.matrix_iter(border=_QUIET_ZONE)]
    # The number of rows is odd: below the last one the quiet zone goes on.
    light = [True] * len(rows[0])
    return [
        "".join(_BLOCKS[upper, lower] for upper, lower in zip(above, below, strict=True))
        for above, below in zip_longest(rows[::2], rows[1::2], fillvalue=light)
    ]
