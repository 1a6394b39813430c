"""One file a source: each reads what it finds on disk into `Pair`s."""
