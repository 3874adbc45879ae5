"""Late-interaction search over fewer vectors."""
