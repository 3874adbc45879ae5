"""A server that was asked to thin pictures: what it knows of its model, and what it lets a request do."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokensieve.core.plan import Plan
from tokensieve.core.stage import Stage
from tokensieve.integrations.vllm import rope
from tokensieve.integrations.vllm.anatomies import anatomy_of, tower_of
from tokensieve.integrations.vllm.refusals import Tower, Unserved, why_not
from tokensieve.integrations.vllm.stages import KEY, PREFIX, of_request, of_server

BLIND = "tokensieve_blind"
"""Where a config carries why attention cannot be read on this server."""


class Server:
    """What a config says of a server's plan and model.

    Attributes:
        stage: what thins a picture where its request asks for nothing else; None for nothing.
        one_axis: whether the model's own positions have one axis.
    """

    def __init__(self, config: Any):
        self.config = config
        self.stage = of_server(getattr(config, KEY))
        self.one_axis = rope.section(config.get_text_config()) is not None or not self.axes
        self._known: dict[str, Stage | None] = {}

    @functools.cached_property
    def anatomy(self) -> Any:
        return anatomy_of(self.config)

    @functools.cached_property
    def tower(self) -> Tower:
        made = tower_of(self.config, self.anatomy)
        return replace(made, blind=getattr(self.config, BLIND, "") or made.blind)

    @property
    def axes(self) -> bool:
        """Whether its rotary tables have several axes."""
        return "mrope_section" in (getattr(self.config.get_text_config(), "rope_parameters", None) or {})

    def check(self, stage: Stage) -> None:
        """Refuse a stage that this server cannot run.

        Raises:
            Unserved: it says why, and the way out.
        """
        why = why_not(Plan(stage), self.tower)
        if why is not None:
            raise Unserved(why)
        if stage.positions == "original" and not self.axes:
            why = rope.narrow(self.config.get_text_config())
            raise Unserved(f"positions='original' cannot be served with this model: {why}; pass positions='compact'")

    def of_request(self, given: Mapping[str, Any]) -> Stage | None:
        """The stage of a request with these `mm_processor_kwargs`.

        Raises:
            ValueError: it cannot be read or served.
        """
        own = {name: value for name, value in given.items() if name.startswith(PREFIX)}
        if not own:
            return self.stage
        key = json.dumps(own, sort_keys=True, default=repr)
        if key not in self._known:
            stage = of_request(self.stage, own)
            if stage is not None:
                self.check(stage)
            if len(self._known) >= 1024:
                self._known.clear()
            self._known[key] = stage
        return self._known[key]
