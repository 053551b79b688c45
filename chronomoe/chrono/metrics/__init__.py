"""What a routing record says: balance, confidence, change, pairs and specialisation, each beside its null."""
