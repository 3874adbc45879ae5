"""`make pins`: what the library's own methods keep on random tokens, for `tokensieve.testing`."""

from tokensieve.testing import pinned

if __name__ == "__main__":
    pinned.write()
