"""Change the tones of foreground and background separately: two photographs seldom have the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.validation import check_number


class JitterTones:
    """Change gamma and white balance of the "foreground" and of the "background", drawn separately.

    Every value c of a channel becomes c' = min(k c^g, 1). k is drawn for red and blue, and 1 for green. Gains on
    encoded values equal gains on linear light, as cameras apply them, if the tone curve is a power: (K c^2.2)^(1/2.2) =
    K^(1/2.2) c. Exponents and gains are log-uniform: brighter is as likely as darker, and warmer as colder. All random
    numbers are always drawn, so that switching one kind on or off does not change the other. With both neutral nothing
    is drawn and the sample is returned unchanged. (Gamma of backgrounds: Sengupta et al. 2020, "Background Matting";
    gains per channel, von Kries's model, for robustness: Afifi and Brown 2019.)

    Args:
        gamma: exponents lie within 1 / gamma to gamma; at least 1, which is neutral. 1.5 is strong.
        white_balance: gains lie within 1 / white_balance to white_balance; at least 1, which is neutral. 1.3 is strong.

    Raises:
        ConfigError: a value is not a number of at least 1.
    """

    def __init__(self, gamma: float = 1.0, white_balance: float = 1.0) -> None:
        check_number("gamma", gamma, 1)
        check_number("white_balance", white_balance, 1)
        self.gamma = gamma
        self.white_balance = white_balance

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.gamma == self.white_balance == 1:
            return sample
        layers = ("foreground", "background")
        exponents = self.gamma ** rng.uniform(-1, 1, len(layers))
        gains = self.white_balance ** (rng.uniform(-1, 1, (len(layers), 2)) @ [[1, 0, 0], [0, 0, 1]])
        changed = {
            name: change_tones(sample[name], *tones) for name, *tones in zip(layers, exponents, gains, strict=True)
        }
        return {**sample, **changed}


def change_tones(colours: NDArray[np.float32], exponent: float, gains: NDArray[np.floating]) -> NDArray[np.float32]:
    """Compute min(k c^g, 1).

    Args:
        colours: c, (H, W, 3) RGB in [0, 1].
        exponent: g, above 0; 1 leaves tones as they are.
        gains: k, (3,) above 0.

    Returns: (H, W, 3) in [0, 1], a new array.
    """
    powers = colours if exponent == 1 else colours ** np.float32(exponent)
    return np.minimum(powers * gains.astype(np.float32), 1)
