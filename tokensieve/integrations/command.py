"""A harness's own command line, with a model under a plan."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tokensieve.core.errors import near
from tokensieve.core.plan import Plan
from tokensieve.integrations.planned import NAME


@dataclass(frozen=True)
class Harness:
    """How a harness is called.

    Attributes:
        name: its command.
        models: those of its models that a plan goes with.
        command: the one of its commands that runs a model; options alone mean it too.
        adds: whether ``--model_args`` given twice adds up; otherwise the last holds.
    """

    name: str
    models: tuple[str, ...]
    command: str
    adds: bool

    def model(self, args: Sequence[str]) -> str:
        """The harness's own name of the model that its arguments ask for.

        Raises:
            ValueError: a command that runs no model, a configuration file, or a model that no plan goes with.
        """
        if args and not args[0].startswith("-") and args[0] != self.command:
            raise ValueError(f"{self.name} {args[0]} runs no model; call it without tokensieve")
        for option in ("--config", "-C"):
            if _find(args, option) is not None:
                raise ValueError(
                    f"{option}: a configuration file may name models that no plan would reach; write its settings behind --"
                )
        at = _find(args, "--model", "-M")
        if at is None:
            raise ValueError(f"no --model behind --; a plan goes with {near('', self.models)}")
        named = _value(args, at)
        own = named.removeprefix(NAME)
        if own not in self.models:
            raise ValueError(
                f"--model {named}: a plan goes with models of transformers; {self.name} has {near(own, self.models)}"
            )
        return own

    def told(self, args: Sequence[str], plan: Plan | None, seed: int) -> list[str]:
        """Its arguments, where the model's have plan and seed as well: the plan as JSON, so that the results carry it."""
        more: dict[str, Any] = {"plan": plan.to_json()} if plan is not None else {}
        more |= {"sieve_seed": seed} if seed else {}
        if not more:
            return list(args)
        if self.adds:
            return [*args, "--model_args", json.dumps(more)]
        at = _find(args, "--model_args")
        given = [] if at is None else [_value(args, at)]
        pairs = [f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in more.items()]
        return [*args, "--model_args", ",".join([*given, *pairs])]

    @contextmanager
    def called(self, args: Sequence[str]) -> Iterator[None]:
        """While the harness reads its arguments from where programs do."""
        before, sys.argv = sys.argv, [self.name, *args]
        try:
            yield
        finally:
            sys.argv = before


def _find(args: Sequence[str], *names: str) -> int | None:
    """Where an option stands last."""
    found = [i for i, arg in enumerate(args) if arg.split("=", 1)[0] in names]
    return found[-1] if found else None


def _value(args: Sequence[str], at: int) -> str:
    name, sign, value = args[at].partition("=")
    if sign:
        return value
    if at + 1 == len(args):
        raise ValueError(f"{name} has no value")
    return args[at + 1]
