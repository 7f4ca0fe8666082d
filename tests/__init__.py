"""Tests; `typecheck` is loaded here because the annotation checker is looked up as an attribute."""

from tests import typecheck as typecheck
