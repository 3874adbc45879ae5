"""What a server and a request ask for, read into one stage at the handoff; nothing here needs vLLM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tokensieve.core import budget
from tokensieve.core.plan import Plan, applied
from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm.refusals import Unserved, why_not
from tokensieve.sites.visual.layer_budgets import solve

KEY = "tokensieve"
"""What a server's plan is called among `--hf-overrides`."""
PREFIX = "sieve_"
"""How the names of a request's own begin, among its `mm_processor_kwargs`."""
SERVER = f"{KEY} in --hf-overrides"


def of_server(given: Any) -> Stage | None:
    """The stage that a server runs where a request asks for no other; None where it thins nothing by itself.

    Args:
        given: ``{"method": ..., "keep": ..., <options>}``, ``{"plan": <file or its contents>}`` or ``{}``.

    Raises:
        ValueError: what is given cannot be read or served; it says why, and the way out.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f'{SERVER} is {given!r}; write {{"method": "divprune", "keep": 64}} or {{"plan": "plan.json"}}'
        )
    if not given:
        return None
    if "plan" not in given:
        return _thinning(_made(given, SERVER))
    if len(given) > 1:
        raise ValueError(f"{SERVER} holds a plan and {sorted(set(given) - {'plan'})}; a plan says all of it itself")
    return _thinning(stage_of(_loaded(given["plan"])))


def of_request(server: Stage | None, given: Mapping[str, Any]) -> Stage | None:
    """The stage of one request: the server's, with what the request says itself on top; None where all tokens stay.

    Args:
        given: the request's `mm_processor_kwargs`; those that begin with `sieve_` are read. Another method comes with its own
            options, and with the server's budget and positions where it names none.

    Raises:
        ValueError: as for :func:`of_server`.
    """
    own = {name.removeprefix(PREFIX): value for name, value in given.items() if name.startswith(PREFIX)}
    if not own:
        return server
    if "plan" in own:
        raise ValueError(f"{PREFIX}plan: a plan is the server's; a request names {PREFIX}method and {PREFIX}keep")
    base: dict[str, Any] = {}
    if server is not None:
        base = {"keep": server.keep, "positions": server.positions}
        if own.get("method", server.method.name) == server.method.name:
            base |= {"method": server.method.name, "site": server.site, **asdict(server.method)}
    return _thinning(_made(base | own, "the request's mm_processor_kwargs"))


def stage_of(plan: Plan) -> Stage:
    """The one stage of a plan that can be served.

    Raises:
        Unserved: it cannot; the message says why, and the way out.
    """
    why = why_not(plan)
    if why is not None:
        raise Unserved(why)
    return plan.stages[0]


def count(stage: Stage | None, tokens: int) -> int:
    """How many of the tokens of a run (a picture, or one of its tiles) a stage keeps."""
    if stage is None:
        return tokens
    keep = stage.keep
    if isinstance(keep, budget.Keep):
        keep = solve(keep, (), 1, tokens, tokens, 0, None)
        keep = keep.direct if isinstance(keep, budget.Keep) else keep
    return int(budget.of(keep, torch.tensor([tokens])))


def digest(stage: Stage) -> str:
    """What tells the pictures of two plans apart in caches: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(stage.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def _thinning(stage: Stage) -> Stage | None:
    return None if stage.whole else stage


def _made(given: Mapping[str, Any], where: str) -> Stage:
    given = dict(given)
    method, keep = given.pop("method", None), given.pop("keep", None)
    if not isinstance(method, str):
        raise ValueError(f"method={method!r} in {where}; name one, such as 'divprune'")
    if keep is None:
        raise ValueError(f"keep is missing in {where}; say how many tokens of a picture stay: 64, or 0.25 of them")
    try:
        return stage_of(applied(method, _budget(keep), **given))
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _budget(keep: Any) -> budget.Budget:
    if isinstance(keep, budget.Keep):
        return keep
    if isinstance(keep, Mapping):
        return budget.Keep(**keep.get("Keep", keep))
    return budget.check(keep)


def _loaded(plan: Any) -> Plan:
    """A plan from its file, or from what the file holds.

    Raises:
        ValueError: there is no such file, or it holds no plan.
    """
    try:
        if isinstance(plan, Mapping):
            return Plan.from_json(dict(plan))
        if not isinstance(plan, str):
            raise ValueError("it is neither a file's name nor what a file holds")
        return Plan.load(Path(plan))
    except OSError as error:
        raise ValueError(f"plan={plan!r} in {SERVER} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, Unserved) else ValueError(f"plan={plan!r} in {SERVER}: {error}") from error
