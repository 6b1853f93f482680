"""Helpers that tests of several packages share. No tests here."""
