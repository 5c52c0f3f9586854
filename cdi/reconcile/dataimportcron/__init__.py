"""The life of golden images: polls, imports, proofs, offers and retention of a DataImportCron's versions."""
