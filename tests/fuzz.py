"""How many random cases a test draws."""

import os

from hypothesis import HealthCheck, settings


def cases(usual: int) -> settings:
    """`usual` many, the same in every run; or as many as N2N_FUZZ in the environment says, and others every time."""
    more = int(os.environ.get("N2N_FUZZ", "0"))
    return settings(
        max_examples=more or usual,
        derandomize=not more,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
