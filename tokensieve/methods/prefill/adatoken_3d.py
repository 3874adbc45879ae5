from dataclasses import dataclass

from tokensieve.core.method_registry import register_method
from tokensieve.methods.prefill.text_attention import TextRanking


@register_method("adatoken-3d", systems=[64])
@dataclass(frozen=True)
class AdaToken3D(TextRanking):
    """Keeps the visual or spatial tokens from which most information flows to the text: attention over heads and text tokens.

    Source: arXiv 2505.12782. The paper measures this flow at every layer of a 3D model and derives from it how many tokens
    each layer needs: `tokensieve.planner.stages.adatoken3d` does so for any model and returns the plan. Alone, this method is
    that plan's single stage, at layer 2. Deviations: the flow is attention as it is, without the paper's comparison of
    streams; position-tagged tokens and plain visual ones compete for one budget.
    """

    sites = ("prefill",)
