"""``contentType: archive``: a tar, wrapped or not, into a directory."""

from __future__ import annotations
