"""Supply: which signal a site gives for each need of a method."""

from __future__ import annotations

from collections.abc import Sequence

from tokensieve.core.needs import Need


def supplied(needs: Sequence[Need], available: tuple[str, ...], where: str, method: str) -> list[str]:
    """For each need, the name that a site can supply: the signal itself or its first stand-in.

    Raises:
        ValueError: a need that the site cannot supply.
    """
    out = []
    for need in needs:
        name = next((n for n in (need.name, *need.instead) if n in available), None)
        if name is None:
            raise ValueError(
                f"{method} needs {need.name}, which the {where} site cannot give; it gives {', '.join(available)} (methods "
                "that read features only, such as 'divprune', run everywhere)"
            )
        out.append(name)
    return out
