"""ObjectTransfer: a volume gets another claim, in another namespace or of another name, and nothing is copied."""
