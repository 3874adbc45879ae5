"""Methods, one short file per idea, in folders by family. Every module here is found and imported by the registry."""
