from setuptools import setup

# A console entry point would import all of elseq, torch included, to print a path.
setup(scripts=["scripts/elseq-user-dir"])
