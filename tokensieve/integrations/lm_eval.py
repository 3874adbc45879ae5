"""lm-eval under a plan: its `hf` and `hf-multimodal`, registered as `tokensieve-hf` and `tokensieve-hf-multimodal`.

They take the model's arguments of lm-eval, and ``plan`` and ``sieve_seed``. `generate_until` runs under the plan as it stands. A
likelihood is one forward pass in lm-eval, which leaves nothing to read from a cache: under stages at ``site="cache"`` the context
without its last token is the prompt, behind which entries leave, and that token and the continuation are read from what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tokensieve.core.plan import Plan
from tokensieve.extras import install
from tokensieve.integrations.command import Harness
from tokensieve.integrations.planned import NAME, Planned, check_hooks, read_plan
from tokensieve.integrations.scoring import behind

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.hf_vlms import HFMultimodalLM
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(f"lm-eval cannot be imported ({error}); {install('lm-eval')}") from error

TESTED = "0.4.13"
HOOKS = (
    "generate_until",
    "loglikelihood",
    "_loglikelihood_tokens",
    "_detect_batch_size",
    "set_cache_hook",
    "get_model_info",
)
check_hooks(HFLM, HOOKS, "lm-eval", TESTED)

Request = tuple[Any, list[int], list[int]]
"""What answers are cached by, the ids of the context, those of the continuation."""
Row = tuple[tuple[int, ...], tuple[int, ...]]
"""What is read before entries leave, and what behind."""
ANSWERS = "tokensieve.plan"
"""The key under which a cache of answers says what plan they were given under."""


Base: Any = object
"""What stands behind it in a class under a plan is the harness's: a checker of types need not look for that here."""


class UnderPlan(Base):
    """What a plan adds to a model of lm-eval.

    Args:
        plan: as for :func:`read_plan`; by default the one beside the weights.
        sieve_seed: for methods that draw.
        others: the model's own arguments.
    """

    def __init__(self, pretrained: Any, plan: Any = None, sieve_seed: int = 0, **others: Any):
        read = read_plan(plan, pretrained)
        super().__init__(pretrained, **others)
        self.planned = Planned(self.model, read, int(sieve_seed))

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        with self.planned:
            return super().generate_until(requests, *args, **kwargs)

    def _loglikelihood_tokens(self, requests: list[Request], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        plain = super()._loglikelihood_tokens
        if not self.planned.acting:
            return plain(requests, *args, **kwargs)
        check_scores(self.planned)
        rows = {i: _split(request, self.max_length) for i, request in enumerate(requests)}
        short = [i for i, (prompt, _) in rows.items() if not prompt]
        if len(short) == len(rows):
            raise ValueError(
                "contexts of one token (loglikelihood_rolling has no others) leave nothing to evict; score continuations of a "
                "context, or run without a plan"
            )
        answers = dict(zip(short, plain([requests[i] for i in short], *args, **kwargs) if short else (), strict=True))
        self.planned.pass_over(len(short))
        answers |= scores(self, requests, {i: row for i, row in rows.items() if row[0]})
        return [answers[i] for i in range(len(requests))]

    def set_cache_hook(self, hook: Any) -> None:
        """Answers that were kept under another plan are not taken for this one's."""
        kept, own = getattr(hook, "dbdict", None), self.planned.said()
        if kept is not None:
            if len(kept) and kept.get(ANSWERS) != own:
                raise ValueError(
                    "--use_cache names answers that were given without this plan, or under another; name another file"
                )
            kept[ANSWERS] = own
        super().set_cache_hook(hook)

    def get_model_info(self) -> dict[str, Any]:
        """With the plan, and what it kept so far."""
        return {**super().get_model_info(), "tokensieve": {**self.planned.said(), **self.planned.facts()}}


@register_model(NAME + "hf")
class PlannedHF(UnderPlan, HFLM):  # type: ignore[misc]
    """A language model under a plan."""


@register_model(NAME + "hf-multimodal")
class PlannedHFMultimodal(UnderPlan, HFMultimodalLM):  # type: ignore[misc]
    """A vision-language model under a plan."""


def check_scores(planned: Planned) -> None:
    """Refuse plans that a likelihood would not show.

    Raises:
        ValueError: a stage acts on pictures, which no likelihood of lm-eval brings, or while decoding only.
    """
    for stage in planned.acting:
        if stage.site != "cache":
            raise ValueError(
                f"{stage.method.name!r} at site={stage.site!r} acts on pictures, and likelihoods come without; give it tasks of "
                "output_type generate_until with pictures"
            )
        idle = f"every={stage.every} of {stage.method.name!r}" if stage.every else ""
        if stage.cache_method.sparse_decode:
            idle = f"{stage.method.name!r}, which reads a few entries for each decoded token,"
        if idle:
            raise ValueError(
                f"a likelihood decodes nothing, so {idle} would not act; give it tasks of output_type generate_until"
            )


def scores(lm: Any, requests: Sequence[Request], rows: dict[int, Row]) -> dict[int, tuple[float, bool]]:
    """By number of the request, the log likelihood of its continuation and whether greedy decoding says it, read from a cache
    from which entries have left.

    Args:
        rows: what :func:`_split` makes of the requests.
    """
    alike: dict[Row, list[int]] = {}
    for i, row in rows.items():
        alike.setdefault(row, []).append(i)
    order = sorted(alike, key=lambda row: -len(row[0]))
    size = lm.batch_size
    if size == "auto":
        size = lm._detect_batch_size([requests[alike[row][0]] for row in order])
    out: dict[int, tuple[float, bool]] = {}
    with tqdm(total=len(rows), desc="Running loglikelihood requests", disable=lm.rank != 0) as bar:
        for start in range(0, len(order), size):
            some = order[start : start + size]
            with torch.autocast(lm.device.type, lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None):
                logits = behind(lm.planned, *zip(*some, strict=True))
            for row, each in zip(some, F.log_softmax(logits, -1, dtype=lm.softmax_dtype), strict=True):
                for i in alike[row]:
                    out[i] = _answer(each[: len(row[1])], requests[i][2])
                    if requests[i][0] is not None:
                        lm.cache_hook.add_partial("loglikelihood", requests[i][0], out[i])
                bar.update(len(alike[row]))
    lm.planned.check()
    return out


def _split(request: Request, most: int) -> Row:
    """The prompt that is compressed, and what is read behind it: the last token of the context, and all but the last of the
    continuation. What is too long is cut on the left, as lm-eval does."""
    _, context, continuation = request
    ids = tuple([*context, *continuation][-(most + 1) :][:-1])
    at = max(len(ids) - len(continuation), 0)
    return ids[:at], ids[at:]


def _answer(logs: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    said = torch.as_tensor(continuation, device=logs.device)
    return float(logs.gather(1, said[:, None]).sum()), bool((logs.argmax(1) == said).all())


HARNESS = Harness("lm-eval", ("hf", "hf-multimodal"), "run", adds=True)


def run(args: Sequence[str], plan: Plan | None = None, seed: int = 0) -> None:
    """lm-eval's command line under a plan.

    Args:
        args: as lm-eval takes them; ``--model hf`` becomes ``tokensieve-hf``.
        plan: None for the one beside the weights.

    Raises:
        ValueError: a model or a command that no plan goes with.
    """
    from lm_eval.__main__ import cli_evaluate

    own = HARNESS.model(args)
    with HARNESS.called([*HARNESS.told(args, plan, seed), "--model", NAME + own]):
        cli_evaluate()
