"""Finds the packages: a new case or vendor folder is installed without touching pyproject.toml, which says the rest."""

from setuptools import find_packages, setup

FOLDERS = {"cases": "flagperf.cases", "vendors": "flagperf.vendors", "reports": "flagperf.reports"}

packages = find_packages(include=["flagperf", "flagperf.*"])
for folder, name in FOLDERS.items():
    packages += [name] + [f"{name}.{below}" for below in find_packages(folder)]

setup(packages=packages)
