"""The developers' tool, run by ./dev: installs what is missing, then runs what was asked for.

Standard library only, because it runs before anything is installed.
"""
