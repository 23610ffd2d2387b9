"""Package discovery, plus the one folder that lives elsewhere: prompts/ ships as dsas_diffusion/prompts."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["dsas_core*", "dsas_diffusion*"]), "dsas_diffusion.prompts"])
