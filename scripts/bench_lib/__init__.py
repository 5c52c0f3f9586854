"""Benchmark: cases are data (`cases`), contenders are commands (`ways`), the other modules measure them."""
