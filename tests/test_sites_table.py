"""Which sites a plan's stages get, and which stages do not go together."""

from types import SimpleNamespace

import pytest
from transformers import ViTConfig, ViTModel

import tokensieve as ts
from tests.models import llava
from tokensieve.core.stage import SITES
from tokensieve.sites.cache.eviction_site import CacheSite
from tokensieve.sites.cache.sparse_decode import ReadingSite
from tokensieve.sites.cache.sparse_prefill import SparseSite
from tokensieve.sites.encoder.site import EncoderSite
from tokensieve.sites.table import TABLE
from tokensieve.sites.visual.language_site import LanguageSite

HANDOFF, PREFILL, CACHE = ts.Stage("divprune", 24), ts.Stage("fastv", 0.5), ts.Stage("h2o", 16)
INSIDE, FOCUS = ts.Stage("tome", 16, site="encoder"), ts.Stage("yopo", 0.5)
DECODE, BLOCKS = ts.Stage("tidaldecode", 0.5), ts.Stage("anchor-attention", 0.5)
CROSS, VECTORS = ts.Stage("trimmed-llama", 0.5), ts.Stage("agglomerative", 0.5)


@pytest.fixture(scope="module")
def model():
    return llava()


@pytest.mark.parametrize("site", SITES)
def test_every_site_has_a_row(site):
    stage = SimpleNamespace(site=site, cache_method=SimpleNamespace(query_block_size=0, sparse_decode=False))
    assert any(row.takes(stage) for row in TABLE)


@pytest.mark.parametrize(
    ("stages", "kinds"),
    [
        ((), [CacheSite]),
        ((CACHE,), [CacheSite]),
        ((CACHE, HANDOFF), [LanguageSite, CacheSite]),
        ((HANDOFF, PREFILL), [LanguageSite]),
        ((INSIDE,), [LanguageSite]),
        ((FOCUS,), [LanguageSite]),
        ((DECODE,), [ReadingSite]),
        ((BLOCKS,), [SparseSite]),
    ],
)
def test_stages_get_their_sites(model, stages, kinds):
    sites = ts.sieve(model, ts.Plan(list(stages)))._sites.sites
    assert [type(site) for site in sites] == kinds


def test_an_encoder_alone_gets_its_own():
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=4
    )
    assert [type(site) for site in ts.sieve(ViTModel(config), INSIDE)._sites.sites] == [EncoderSite]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((VECTORS,), "site='vectors' reduces what an encoder has put out"),
        ((VECTORS, CROSS), "site='vectors' reduces what an encoder has put out"),
        ((CROSS, HANDOFF), "2 stages; a stage at site='cross' stands alone"),
        ((FOCUS, CACHE), "site='focus' and at site='cache' do not go together"),
        ((CACHE, DECODE), "2 stages; tidaldecode, which reads a whole cache, stands alone"),
        ((HANDOFF, BLOCKS), "2 stages; anchor-attention, which reads a whole cache, stands alone"),
    ],
)
def test_stages_that_do_not_go_together(model, stages, says):
    with pytest.raises(ValueError, match=says):
        ts.sieve(model, ts.Plan(list(stages)))
