"""The benchmark: cases are data (`cases`), contenders are commands (`ways`), everything else measures them."""
