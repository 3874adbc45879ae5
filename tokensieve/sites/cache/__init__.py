"""The site at which entries leave the cache of keys and values, and its cache layers."""
