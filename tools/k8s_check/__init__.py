"""Checks of the manifests under k8s/ that need no cluster; run by ``make k8s-check`` and, in part, by tests/k8s.

``build`` makes plain objects of overlays and components, ``objects`` looks things up in them, ``rules_*`` say what is
wrong with them, ``settings_page`` writes docs/settings.md. Not here: whether a cluster takes and runs them.
"""
