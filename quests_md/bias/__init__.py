"""A bias that pushes a run out of what the reference knows: energies and forces that are functions of dH."""

from ._bias import Bias, Push
from ._bias_settings import BiasSettings, check_bias

__all__ = ["Bias", "BiasSettings", "Push", "check_bias"]
