"""The API in use, in curl, Python and JavaScript: what docs/api.md shows. No agents."""
