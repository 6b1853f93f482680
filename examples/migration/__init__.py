"""An application that has its own engine, before and after it moves over to Carrel; see README.md beside this file.

``before`` is the application as it was, ``after`` the same with an adapter on each of its routes, ``agents`` its engine
as agents. An example of ``carrel.migration``, not installed with the package.
"""
