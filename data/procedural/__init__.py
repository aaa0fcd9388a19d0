"""Draw foregrounds with exact alphas: eight kinds at any resolution, and two effects of a camera.

A seed draws the same image at every resolution: all lengths are shares of the image's side.
"""

from collections.abc import Callable

from numpy.random import Generator

from data.procedural.canvas import Array
from data.procedural.coats import feathers, fur
from data.procedural.drops import drops
from data.procedural.effects import defocus, motion_blur
from data.procedural.foliage import foliage
from data.procedural.glass import glass
from data.procedural.hair import hair
from data.procedural.lace import lace
from data.procedural.smoke import smoke

# (random generator, side in pixels) -> foreground (H, W, 3) RGB, defined everywhere, and alpha (H, W), both in [0, 1]
KINDS: dict[str, Callable[[Generator, int], tuple[Array, Array]]] = {
    "hair": hair, "fur": fur, "feathers": feathers, "foliage": foliage, "lace": lace, "smoke": smoke, "glass": glass,
    "drops": drops,
}  # fmt: skip
# (random generator, foreground, alpha) -> foreground and alpha
EFFECTS: dict[str, Callable[[Generator, Array, Array], tuple[Array, Array]]] = {
    "motion": motion_blur, "defocus": defocus,
}  # fmt: skip
